"""The resolution a picture file states, in pixels per inch; None where it states none.

libvips reports one for every picture, stated or not, so the files are asked themselves.
"""

from __future__ import annotations

import struct

from face_restore_worker.images.tiff_tags import Tag, TagError, read_layout, read_tags

_INCHES_PER_METRE = 1 / 0.0254
Resolution = tuple[float, float]


def stated_resolution(data: bytes | memoryview, kind: str, exif: bytes | None) -> Resolution | None:
    """Pixels per inch across and down, as the file is stored.

    Args:
        data: the whole file.
        kind: key in FORMATS.
        exif: its EXIF block without prefix; asked when the container itself says nothing.
    """
    found = None
    if kind == "png":
        found = _from_png(data)
    elif kind == "jpeg":
        found = _from_jfif(data)
    block = data if kind == "tiff" else exif
    if found is None and block is not None:
        found = _from_tags(block)
    return found


def _from_png(data: bytes | memoryview) -> Resolution | None:
    position = 8
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"pHYs" and length == 9 and position + 17 <= len(data):
            across, down, unit = struct.unpack_from(">IIB", data, position + 8)
            if unit == 1 and across and down:
                return across / _INCHES_PER_METRE, down / _INCHES_PER_METRE
            return None
        if name == b"IDAT":
            return None
        position += 12 + length
    return None


def _from_jfif(data: bytes | memoryview) -> Resolution | None:
    if bytes(data[2:4]) != b"\xff\xe0" or bytes(data[6:11]) != b"JFIF\0" or len(data) < 18:
        return None
    unit, across, down = struct.unpack_from(">BHH", data, 13)
    per_inch = {1: 1.0, 2: 2.54}.get(unit)
    if per_inch is None or not across or not down:
        return None
    return across * per_inch, down * per_inch


def _rational(tag: Tag | None) -> float | None:
    if tag is None or tag.type != 5 or tag.count != 1:
        return None
    top, bottom = struct.unpack("<II", tag.data)
    return top / bottom if top and bottom else None


def _from_tags(block: bytes | memoryview) -> Resolution | None:
    try:
        layout = read_layout(block)
        tags = read_tags(block, layout, layout.first_ifd)
    except TagError:
        return None
    across, down = _rational(tags.get(282)), _rational(tags.get(283))
    unit = tags[296].numbers() if 296 in tags else [2]
    per_inch = {2: 1.0, 3: 2.54}.get(unit[0] if unit else 2)
    if across is None or down is None or per_inch is None:
        return None
    return across * per_inch, down * per_inch
