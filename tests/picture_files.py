"""Picture files for tests, encoded by other libraries (Pillow, tifffile) than the one tested."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageCms, TiffImagePlugin


def photo(height: int = 48, width: int = 64, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, 3) smooth colours with some grain; the same each time."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1)
    values = np.clip(0.15 + 0.6 * base + rng.normal(0, 0.01, base.shape), 0, 1)
    if dtype is np.float32:
        return values.astype(np.float32)
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def exif_block(orientation: int | None = None) -> bytes:
    """A big-endian EXIF block: maker, copyright with UTF-8, exposure, GPS, thumbnail."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0132] = "1994:05:06 07:08:09"
    if orientation is not None:
        exif[0x0112] = orientation
    details = exif.get_ifd(0x8769)
    details[0x829A] = TiffImagePlugin.IFDRational(1, 250)
    details[0x9003] = "1994:05:06 07:08:09"
    details[0xA002] = 64
    details[0xA003] = 48
    details[0x927C] = b"maker note with offsets of its own"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (12.0, 30.0, 1.5)
    return exif.tobytes()


XMP = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF "
    b"xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description "
    b"xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation='6'/></rdf:RDF></x:xmpmeta>"
)


def wide_profile() -> bytes:
    """An ICC profile with P3's primaries and transfer curve, as libvips carries it."""
    import pyvips

    return bytes(pyvips.Operation.call("profile_load", "p3"))


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def gray_profile(gamma: float = 1.8) -> bytes:
    """A minimal gray ICC profile (version 2.1) with one gamma curve."""

    def tag(kind: bytes, body: bytes) -> bytes:
        data = kind + bytes(4) + body
        return data + bytes(-len(data) % 4)

    white = tag(b"XYZ ", struct.pack(">3i", 63190, 65536, 54061))
    curve = tag(b"curv", struct.pack(">IH", 1, round(gamma * 256)))
    text = tag(b"desc", struct.pack(">I", 5) + b"gray\0" + bytes(78))
    words = tag(b"text", b"public domain\0")
    blocks = [(b"desc", text), (b"cprt", words), (b"wtpt", white), (b"kTRC", curve)]
    table = struct.pack(">I", len(blocks))
    offset = 128 + 4 + 12 * len(blocks)
    body = b""
    for name, data in blocks:
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s", offset + len(body), b"test", 0x02100000, b"mntr", b"GRAY", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def save_png16(path: Path, pixels: np.ndarray, profile: bytes | None = None) -> Path:
    """A 16 bit PNG, written chunk by chunk."""
    import zlib

    height, width = pixels.shape[:2]
    colour = {2: 0, 3: {2: 4, 3: 2, 4: 6}.get(pixels.shape[-1], 0)}[pixels.ndim]
    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    out = b"\x89PNG\r\n\x1a\n"
    out += chunk(b"IHDR", struct.pack(">2I5B", width, height, 16, colour, 0, 0, 0))
    if profile is not None:
        out += chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))
    out += chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(out)
    return path


def save_tiff(path: Path, pixels: np.ndarray, **options: object) -> Path:
    options.setdefault("metadata", None)
    options.setdefault("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
    tifffile.imwrite(path, pixels, **options)
    return path


def save_pillow(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    """Encode by the extension with Pillow."""
    buffer = io.BytesIO()
    kind = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".tif": "TIFF"}
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    image.save(buffer, kind[path.suffix], **options)
    path.write_bytes(buffer.getvalue())
    return path


def album(folder: Path, count: int = 3) -> Path:
    """A folder "album" in `folder` with pictures 0.png, 1.png, ..."""
    made = folder / "album"
    made.mkdir()
    for number in range(count):
        save_pillow(made / f"{number}.png", photo())
    return made
