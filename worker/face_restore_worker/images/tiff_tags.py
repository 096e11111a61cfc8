"""Read and write the tag directories (IFDs) that TIFF files and EXIF blocks are made of.

Layout from the TIFF 6.0 specification, section 2, and Adobe's BigTIFF addition. libvips drops
most tags of a TIFF file and rewrites EXIF blocks through libexif, which moves maker notes, so
this module carries them over byte for byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Bytes of one value, by TIFF field type.
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TYPE_SIZES |= {16: 8, 17: 8, 18: 8}  # BigTIFF
# Bytes that are swapped together: a rational is two 4-byte numbers.
_SWAP_UNITS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

ORIENTATION = 274
EXIF_IFD = 34665
GPS_IFD = 34853
MAX_TAGS = 4096


class TagError(ValueError):
    """The tag structure is damaged."""


@dataclass(frozen=True)
class Tag:
    """One tag: TIFF field type, number of values, and the values as little-endian bytes."""

    type: int
    count: int
    data: bytes

    def numbers(self) -> list[int]:
        """The values as integers, for the integer types; an empty list for the others."""
        formats = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
        if self.type not in formats:
            return []
        return list(struct.unpack(f"<{self.count}{formats[self.type]}", self.data))


@dataclass(frozen=True)
class Entry:
    """Where one tag lies: the offsets of its 12 (or 20) bytes and of its values."""

    tag: int
    type: int
    count: int
    entry_offset: int
    value_offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Byte order and widths of one TIFF structure."""

    order: str
    big: bool
    first_ifd: int

    @property
    def offset_size(self) -> int:
        return 8 if self.big else 4


def read_layout(data: bytes | memoryview) -> Layout:
    """Byte order, kind and first directory of a TIFF file or EXIF block (without "Exif\\0\\0").

    Raises:
        TagError: the header is not TIFF's.
    """
    head = bytes(data[:16])
    if head[:2] not in (b"II", b"MM") or len(head) < 8:
        raise TagError("no TIFF header")
    order = "<" if head[:2] == b"II" else ">"
    (magic,) = struct.unpack(order + "H", head[2:4])
    if magic == 42:
        return Layout(order, False, struct.unpack(order + "I", head[4:8])[0])
    if magic == 43 and len(head) == 16:
        return Layout(order, True, struct.unpack(order + "Q", head[8:16])[0])
    raise TagError("no TIFF header")


def read_entries(data: bytes | memoryview, layout: Layout, offset: int) -> tuple[list[Entry], int]:
    """The entries of the directory at ``offset`` and the offset of the next directory (0: none).

    Raises:
        TagError: the directory or a value lies outside the data.
    """
    size = len(data)
    count_format, entry_size = ("Q", 20) if layout.big else ("H", 12)
    start = offset + struct.calcsize(count_format)
    if offset <= 0 or start > size:
        raise TagError("a tag directory lies outside the file")
    (count,) = struct.unpack_from(layout.order + count_format, data, offset)
    end = start + count * entry_size
    if count > MAX_TAGS or end > size:
        raise TagError("a tag directory is cut short")
    width = layout.offset_size
    number = "Q" if layout.big else "I"
    entries = []
    for position in range(start, end, entry_size):
        tag, kind = struct.unpack_from(layout.order + "HH", data, position)
        (values,) = struct.unpack_from(layout.order + number, data, position + 4)
        length = TYPE_SIZES.get(kind, 0) * values
        value_offset = position + 4 + width
        if length > width:
            (value_offset,) = struct.unpack_from(layout.order + number, data, value_offset)
        if value_offset + length > size:
            raise TagError(f"the value of tag {tag} lies outside the file")
        entries.append(Entry(tag, kind, values, position, value_offset, length))
    following = 0
    if end + width <= size:
        (following,) = struct.unpack_from(layout.order + number, data, end)
    return entries, following


def _little_endian(raw: bytes, kind: int, order: str) -> bytes:
    unit = _SWAP_UNITS.get(kind, 1)
    if order == "<" or unit == 1:
        return raw
    return b"".join(raw[i : i + unit][::-1] for i in range(0, len(raw), unit))


def read_tags(data: bytes | memoryview, layout: Layout, offset: int) -> dict[int, Tag]:
    """The tags of the directory at ``offset``; a damaged one raises TagError."""
    entries, _ = read_entries(data, layout, offset)
    return {
        entry.tag: Tag(
            entry.type,
            entry.count,
            _little_endian(
                bytes(data[entry.value_offset : entry.value_offset + entry.size]),
                entry.type,
                layout.order,
            ),
        )
        for entry in entries
        if entry.type in TYPE_SIZES
    }


def pack_directory(tags: dict[int, Tag], offset: int, following: int = 0) -> bytes:
    """A little-endian classic directory with its values behind it, to be put at ``offset``."""
    ordered = sorted(tags.items())
    values_at = offset + 2 + 12 * len(ordered) + 4
    head = [struct.pack("<H", len(ordered))]
    values = bytearray()
    for number, tag in ordered:
        if len(tag.data) <= 4:
            field = tag.data.ljust(4, b"\0")
        else:
            field = struct.pack("<I", values_at + len(values))
            values += tag.data + b"\0" * (len(tag.data) % 2)
        head.append(struct.pack("<HHI", number, tag.type, tag.count) + field)
    head.append(struct.pack("<I", following))
    return b"".join(head) + bytes(values)
