"""Put EXIF blocks and resolutions into encoded JPEG, PNG, WebP and TIFF files, byte for byte.

libvips encodes the pixels; what it would rewrite or invent (EXIF blocks, a 25.4 dpi
resolution for pictures that state none) is put right here.
"""

from __future__ import annotations

import struct
import zlib

from face_restore_worker.images import exif
from face_restore_worker.images.tiff_tags import Tag, pack_directory, read_layout, read_tags

Parts = list[bytes | memoryview]

_RESOLUTION_TAGS = (282, 283, 296)
_MAX_JPEG_SEGMENT = 65533

# The luminance table of the JPEG standard (ITU T.81, table K.1).
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def _table_sum(quality: int) -> int:
    """Sum of the scaled table: s/100 with s = 5000/q below quality 50, 200 - 2q from there."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(max(1, min(255, (value * scale + 50) // 100)) for value in _LUMINANCE)


def jpeg_quality(data: bytes | memoryview) -> int | None:
    """The quality (1 to 100) that libjpeg would call the file's luminance table, or None.

    The one whose table, as the Independent JPEG Group scales it, has the nearest sum.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = bytes(data[position + 4 : position + 2 + length])
        if marker == 0xDB and body and body[0] & 15 == 0:
            form = ">64H" if body[0] >> 4 else "64B"
            if len(body) <= struct.calcsize(form):
                return None
            table = struct.unpack_from(form, body, 1)
            return min(range(1, 101), key=lambda q: abs(sum(table) - _table_sum(q)))
        if marker == 0xDA:
            return None
        position += 2 + length
    return None


def finish_jpeg(
    data: bytes, block: bytes | None, resolution: tuple[float, float] | None
) -> tuple[Parts, bool]:
    """The file with a JFIF header and the EXIF block behind it (libvips writes neither).

    False when the block is too large for a JPEG segment and was left out.
    """
    rest = 2
    if data[2:4] == b"\xff\xe0" and data[6:11] == b"JFIF\0":
        rest = 4 + int(struct.unpack_from(">H", data, 4)[0])
    unit, across, down = 0, 1, 1
    if resolution is not None:
        unit = 1
        across, down = (max(1, min(65535, round(value))) for value in resolution)
    head = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1" + struct.pack(">BHHBB", unit, across, down, 0, 0)
    fits = block is None or len(block) + 8 <= _MAX_JPEG_SEGMENT
    if block is not None and fits:
        head += b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    return [head, memoryview(data)[rest:]], fits


def finish_png(data: bytes, block: bytes | None, has_resolution: bool) -> Parts:
    """The file with the EXIF block as an eXIf chunk (PNG, third edition, 11.3.3.1)."""
    view = memoryview(data)
    parts: Parts = [view[:8]]
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not (kind == b"eXIf" or (kind == b"pHYs" and not has_resolution)):
            parts.append(view[position:end])
        if kind == b"IHDR" and block is not None:
            body = b"eXIf" + block
            parts.append(struct.pack(">I", len(block)) + body + _crc(body))
        position = end
    return parts


def _crc(body: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(body))


def finish_webp(data: bytes, block: bytes | None, width: int, height: int) -> Parts:
    """The file with the EXIF block as an EXIF chunk (WebP container specification)."""
    if block is None:
        return [data]
    chunks: list[tuple[bytes, memoryview]] = []
    view = memoryview(data)
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind != b"EXIF":
            chunks.append((kind, view[position + 8 : position + 8 + length]))
        position += 8 + length + length % 2
    if chunks and chunks[0][0] == b"VP8X":
        flags = chunks.pop(0)[1][0]
    else:
        # A VP8L bitstream says in bit 28 behind its signature byte whether alpha is used.
        lossless = [c for kind, c in chunks if kind == b"VP8L"]
        flags = 0x10 if lossless and lossless[0][4] & 0x10 else 0
    extended = struct.pack("<I", flags | 0x08)
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks.insert(0, (b"VP8X", memoryview(extended)))
    at = next((i for i, c in enumerate(chunks) if c[0] == b"XMP "), len(chunks))
    chunks.insert(at, (b"EXIF", memoryview(block)))
    body: Parts = []
    for kind, content in chunks:
        body += [struct.pack("<4sI", kind, len(content)), content, b"\0" * (len(content) % 2)]
    total = 4 + sum(len(part) for part in body)
    return [b"RIFF" + struct.pack("<I", total) + b"WEBP", *body]


def finish_tiff(
    data: bytes, tags: exif.ExifTags | None, has_resolution: bool
) -> tuple[Parts, bool]:
    """The file with the EXIF tags in its first directory; False when they could not be put in.

    libvips writes little-endian files with one directory; a new directory is appended and the
    header pointed at it, so no pixel moves. BigTIFF files (above 4 GB) stay as they are.
    """
    layout = read_layout(data[:16])
    if layout.big or layout.order != "<" or len(data) > 0xF0000000:
        return [data], tags is None
    first: dict[int, Tag] = read_tags(data, layout, layout.first_ifd)
    if not has_resolution:
        for number in _RESOLUTION_TAGS:
            first.pop(number, None)
    offset = len(data) + len(data) % 2
    directories = exif.pack_block(tags, first, offset) if tags else pack_directory(first, offset)
    header = data[:4] + struct.pack("<I", offset)
    return [header, memoryview(data)[8:], b"\0" * (len(data) % 2), directories], True
