"""What belongs to a picture besides its pixels: profile, EXIF, XMP, IPTC, resolution."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from face_restore_worker.images import exif
from face_restore_worker.images.containers import jpeg_quality
from face_restore_worker.images.resolution import stated_resolution
from face_restore_worker.images.tiff_tags import EXIF_IFD, TagError, read_layout, read_tags

_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:=["']|>))\s*[1-8]\s*(?=["'<])""")

# TIFF compressions (tag 259) that libvips can write again without loss.
_LOSSLESS_TIFF = {1: "none", 5: "lzw", 8: "deflate", 32773: "packbits", 32946: "deflate"}


@dataclass
class Metadata:
    """Metadata of one picture, ready to be written with its upright pixels.

    Attributes:
        profile: ICC profile as in the file, or None.
        exif: EXIF block without prefix, orientation 1, thumbnail blanked; or None.
        xmp: XMP packet, orientation 1; or None.
        iptc: IPTC block; or None.
        resolution: pixels per inch across and down, or None when the file states none.
        jpeg_quality: of a JPEG file, as libjpeg counts; else None.
        jpeg_subsampled: whether a JPEG's colour is stored at half size.
        tiff_compression: libvips' name, when it is a lossless one; else None.
        lossless_webp: the file is a lossless WebP.
    """

    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    resolution: tuple[float, float] | None = None
    jpeg_quality: int | None = None
    jpeg_subsampled: bool = False
    tiff_compression: str | None = None
    lossless_webp: bool = False


def _blob(image: Any, name: str) -> bytes | None:
    if image.get_typeof(name) == 0:
        return None
    value = image.get(name)
    return bytes(value) or None


def orientation(image: Any) -> int:
    """EXIF orientation 1 to 8 that the pixels still need."""
    if image.get_typeof("orientation") == 0:
        return 1
    value = int(image.get("orientation"))
    return value if 1 <= value <= 8 else 1


def upright_xmp(packet: bytes) -> bytes:
    """The packet with its orientation, if it states one, set to 1."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet)


def collect(
    image: Any, data: bytes | memoryview, kind: str, width: int, height: int
) -> tuple[Metadata, list[str]]:
    """Metadata of a picture that libvips opened, and remarks for the user.

    Args:
        image: the pyvips image as loaded.
        data: the whole file.
        kind: key in FORMATS.
        width, height: of the upright picture.
    """
    notes: list[str] = []
    meta = Metadata(
        profile=_blob(image, "icc-profile-data"),
        iptc=_blob(image, "iptc-data"),
    )
    xmp = _blob(image, "xmp-data")
    meta.xmp = None if xmp is None else upright_xmp(xmp)
    try:
        if kind == "tiff":
            _collect_tiff(meta, data, notes)
        else:
            block = _blob(image, "exif-data")
            if block is not None:
                meta.exif = exif.upright(exif.strip_prefix(block), width, height)
    except TagError as error:
        notes.append(f"the EXIF data is damaged ({error}) and is left out")
    meta.resolution = stated_resolution(data, kind, meta.exif)
    if meta.resolution is not None and orientation(image) >= 5:
        meta.resolution = meta.resolution[::-1]
    if kind == "jpeg":
        meta.jpeg_quality = jpeg_quality(data)
        if image.get_typeof("jpeg-chroma-subsample") != 0:
            meta.jpeg_subsampled = not str(image.get("jpeg-chroma-subsample")).startswith("4:4:4")
    if kind == "webp":
        meta.lossless_webp = b"VP8L" in bytes(data[12:16]) or b"VP8L" in bytes(data[:4096])
    return meta, notes


def _collect_tiff(meta: Metadata, data: bytes | memoryview, notes: list[str]) -> None:
    layout = read_layout(data)
    first = read_tags(data, layout, layout.first_ifd)
    compression = first[259].numbers() if 259 in first else []
    meta.tiff_compression = _LOSSLESS_TIFF.get(compression[0]) if compression else "none"
    extra = first[338].numbers() if 338 in first else []
    if extra[:1] == [1]:
        # libvips divides the colours by alpha when it reads them.
        notes.append("its colours were multiplied by alpha and are written as plain ones")
    tags = exif.parse(data)
    if tags or EXIF_IFD in first:
        meta.exif = exif.build(tags)
