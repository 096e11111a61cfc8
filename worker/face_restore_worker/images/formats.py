"""Picture formats: told apart by content when reading, chosen by extension when writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """What a format can hold. ``loader`` and ``saver`` name libvips operations."""

    name: str
    extensions: tuple[str, ...]
    loader: str
    saver: str | None
    max_bits: int
    alpha: bool = True
    gray: bool = True
    floats: bool = False


FORMATS = {
    "png": Format("PNG", (".png",), "pngload_source", "pngsave_buffer", 16),
    "jpeg": Format(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        "jpegload_source",
        "jpegsave_buffer",
        8,
        alpha=False,
    ),
    "tiff": Format(
        "TIFF", (".tif", ".tiff"), "tiffload_source", "tiffsave_buffer", 32, floats=True
    ),
    "webp": Format("WebP", (".webp",), "webpload_source", "webpsave_buffer", 8, gray=False),
    "avif": Format("AVIF", (".avif",), "heifload_source", "heifsave_buffer", 12, gray=False),
    "heic": Format("HEIC", (".heic", ".heif"), "heifload_source", None, 12, gray=False),
    "gif": Format("GIF", (".gif",), "gifload_source", None, 8, gray=False),
    "ora": Format("OpenRaster", (".ora",), "", "", 16, gray=False),
}

BY_EXTENSION = {ext: key for key, fmt in FORMATS.items() for ext in fmt.extensions}
WRITABLE = tuple(ext for fmt in FORMATS.values() if fmt.saver is not None for ext in fmt.extensions)
# What a folder is searched for. Others that people keep among their photographs are looked at
# too, so that they are reported instead of silently left out.
PICTURE_EXTENSIONS = frozenset(
    {ext for key, fmt in FORMATS.items() if key != "ora" for ext in fmt.extensions}
    | {".bmp", ".jp2", ".jxl", ".ppm", ".pgm", ".psd"}
)

_OTHER_CONTENT = (
    (b"BM", "a BMP picture"),
    (b"8BPS", "a Photoshop document"),
    (b"gimp xcf", "a GIMP document"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"P4", "a PBM picture"),
    (b"P5", "a PGM picture"),
    (b"P6", "a PPM picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or an office or OpenRaster document)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
)


def sniff(head: bytes) -> str | None:
    """The key in FORMATS that the first bytes of a file show, or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[4:8] == b"ftyp":
        brands = head[8:64]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        if any(b in brands for b in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")):
            return "heic"
    return None


def describe_other(head: bytes) -> str:
    """What the first bytes of a file that is no readable picture look like, for a message."""
    for start, words in _OTHER_CONTENT:
        if head[: len(start)].lower() == start.lower():
            return words
    if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "plain text"
    return "no kind of picture known here"


def format_of(path: Path) -> str | None:
    """The key in FORMATS of a file name's extension, or None."""
    return BY_EXTENSION.get(path.suffix.lower())
