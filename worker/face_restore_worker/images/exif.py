"""EXIF blocks: taken from one picture, corrected, and put into another.

A block is the TIFF structure that EXIF 2.32 (section 4.5) defines, without the "Exif\\0\\0" that
JPEG puts before it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from face_restore_worker.images.tiff_tags import (
    EXIF_IFD,
    GPS_IFD,
    ORIENTATION,
    Layout,
    Tag,
    TagError,
    pack_directory,
    read_entries,
    read_layout,
    read_tags,
)

_PREFIX = b"Exif\0\0"
_WIDTH, _HEIGHT = 40962, 40963
_INTEROPERABILITY_IFD = 40965
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 513, 514

# Tags of a TIFF file's first directory that describe the picture and not how it is stored.
DESCRIPTIVE = frozenset(
    {269, 270, 271, 272, 285, 305, 306, 315, 316, 18246, 18249, 33432, 36867}
    | set(range(40091, 40096))
)


@dataclass
class ExifTags:
    """The directories of one EXIF block, by tag number."""

    image: dict[int, Tag] = field(default_factory=dict)
    exif: dict[int, Tag] = field(default_factory=dict)
    gps: dict[int, Tag] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.image or self.exif or self.gps)


def strip_prefix(block: bytes) -> bytes:
    """The block without JPEG's "Exif\\0\\0"."""
    return block[len(_PREFIX) :] if block.startswith(_PREFIX) else block


def parse(block: bytes | memoryview) -> ExifTags:
    """The tags of a block, or of a TIFF file's first directory (descriptive tags only).

    Raises:
        TagError: the block is damaged.
    """
    layout = read_layout(block)
    first = read_tags(block, layout, layout.first_ifd)
    tags = ExifTags(image={n: t for n, t in first.items() if n in DESCRIPTIVE})
    for number, target in ((EXIF_IFD, "exif"), (GPS_IFD, "gps")):
        pointer = first[number].numbers() if number in first else []
        if pointer:
            found = read_tags(block, layout, pointer[0])
            found.pop(_INTEROPERABILITY_IFD, None)
            setattr(tags, target, found)
    return tags


def build(tags: ExifTags) -> bytes:
    """A little-endian EXIF block holding the tags."""
    return struct.pack("<2sHI", b"II", 42, 8) + pack_block(tags, {}, 8)


def pack_block(tags: ExifTags, more: dict[int, Tag], offset: int) -> bytes:
    """The directories of ``tags``, with ``more`` in the first, laid out from ``offset`` on."""
    image = {**tags.image, **more}
    for number, directory in ((EXIF_IFD, tags.exif), (GPS_IFD, tags.gps)):
        if directory:
            image[number] = Tag(4, 1, struct.pack("<I", 0))
    # The first directory's length does not depend on the pointers' values.
    length = len(pack_directory(image, offset))
    behind = b""
    for number, directory in ((EXIF_IFD, tags.exif), (GPS_IFD, tags.gps)):
        if directory:
            position = offset + length + len(behind)
            image[number] = Tag(4, 1, struct.pack("<I", position))
            behind += pack_directory(directory, position)
    return pack_directory(image, offset) + behind


def upright(block: bytes, width: int, height: int) -> bytes:
    """The block for a picture whose orientation was applied: ``width`` x ``height``, upright.

    Every other byte stays where it is, so that maker notes keep their offsets; the thumbnail,
    which shows the picture before it was restored and turned, is blanked.

    Raises:
        TagError: the block is damaged.
    """
    layout = read_layout(block)
    result = bytearray(block)
    entries, following = read_entries(block, layout, layout.first_ifd)
    for entry in entries:
        if entry.tag == ORIENTATION and entry.type == 3 and entry.count == 1:
            struct.pack_into(layout.order + "H", result, entry.value_offset, 1)
        if entry.tag == EXIF_IFD and entry.size == 4:
            (pointer,) = struct.unpack_from(layout.order + "I", block, entry.value_offset)
            _set_size(result, layout, pointer, width, height)
    if following:
        _blank_thumbnail(result, layout, following)
        after = layout.first_ifd + 2 + 12 * len(entries)
        struct.pack_into(layout.order + "I", result, after, 0)
    return bytes(result)


def _set_size(data: bytearray, layout: Layout, offset: int, width: int, height: int) -> None:
    entries, _ = read_entries(bytes(data), layout, offset)
    for entry in entries:
        value = {_WIDTH: width, _HEIGHT: height}.get(entry.tag)
        if value is None or entry.count != 1:
            continue
        if entry.type == 4:
            struct.pack_into(layout.order + "I", data, entry.value_offset, value)
        elif entry.type == 3 and value < 65536:
            struct.pack_into(layout.order + "H", data, entry.value_offset, value)


def _blank_thumbnail(data: bytearray, layout: Layout, offset: int) -> None:
    try:
        tags = read_tags(bytes(data), layout, offset)
    except TagError:
        return  # it is unlinked all the same
    where = tags[_THUMBNAIL_OFFSET].numbers() if _THUMBNAIL_OFFSET in tags else []
    length = tags[_THUMBNAIL_LENGTH].numbers() if _THUMBNAIL_LENGTH in tags else []
    if where and length and where[0] + length[0] <= len(data):
        data[where[0] : where[0] + length[0]] = bytes(length[0])
