"""Patches as plain float arrays: alpha, colours beyond sRGB, where faces overlap.

GIMP's Python has no numpy; whatever runs once per pixel here runs in C (array, memoryview, map)
or only over the few pixels that need it.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from restore_faces.geometry import Rect, groups, union


@dataclass
class Patch:
    """rect: its place, in layer coordinates. rgb: 3 floats a pixel, sRGB-encoded, may lie outside
    [0, 1]. mask: one float in [0, 1] a pixel. box: of the face, pixel-edge, layer coordinates."""

    rect: Rect
    rgb: array[float]
    mask: array[float]
    box: tuple[float, float, float, float]
    score: float = 1.0
    note: str | None = None

    @property
    def visible(self) -> bool:
        """Whether the mask shows anything at all."""
        return any(self.mask)


def trim(patch: Patch) -> Patch:
    """The patch without the rows and columns at its edges where the mask is zero."""
    width, height = patch.rect.width, patch.rect.height
    data = memoryview(patch.mask).cast("B").tobytes()
    rows = [data[y * width * 4 : (y + 1) * width * 4] for y in range(height)]
    filled = [y for y, row in enumerate(rows) if row.strip(b"\0")]
    if not filled:
        return patch
    top, bottom = filled[0], filled[-1] + 1
    left = min((len(rows[y]) - len(rows[y].lstrip(b"\0"))) // 4 for y in filled)
    right = max(-(-len(rows[y].rstrip(b"\0")) // 4) for y in filled)
    if (left, top, right, bottom) == (0, 0, width, height):
        return patch
    part = Rect(left, top, right - left, bottom - top)
    return Patch(
        part.shifted(patch.rect.x, patch.rect.y),
        cut(patch.rgb, width, part, 3),
        cut(patch.mask, width, part, 1),
        patch.box,
        patch.score,
        patch.note,
    )


def cut(values: array[float], width: int, part: Rect, channels: int) -> array[float]:
    """A part of an array of `width` pixels a row."""
    result: array[float] = array(values.typecode)
    for y in range(part.y, part.bottom):
        start = (y * width + part.x) * channels
        result += values[start : start + part.width * channels]
    return result


def limit_to_alpha(mask: array[float], alpha: bytes) -> array[float]:
    """The mask times the source's alpha or mask (one byte a pixel): nothing appears where the
    source shows nothing."""
    if alpha.count(b"\xff") == len(alpha):
        return mask
    return array("f", map(operator.mul, mask, map((1 / 255).__mul__, alpha)))


def interleaved(rgb: array[float], mask: array[float]) -> array[float]:
    """Red, green, blue and alpha of each pixel, the mask being the alpha."""
    rgba = array("f", bytes(16 * len(mask)))
    for channel in range(3):
        rgba[channel::4] = rgb[channel::3]
    rgba[3::4] = mask
    return rgba


def keep_beyond(rgb: array[float], original: array[float]) -> int:
    """Give back what the model could not see: colours outside sRGB, which it was shown clipped.

    rgb: changed in place to restored + (original - clipped original); exact where the original
    lies in [0, 1]. Returns the number of values changed.
    """
    if min(original, default=0.0) >= 0.0 and max(original, default=0.0) <= 1.0:
        return 0
    beyond = [i for i, value in enumerate(original) if not 0.0 <= value <= 1.0]
    changed = 0
    for i in beyond:
        value = original[i]
        if value != value:  # not a number: there is no colour to keep
            continue
        rgb[i] += value - 1.0 if value > 1.0 else value
        changed += 1
    return changed


def settle_overlaps(patches: Sequence[Patch]) -> None:
    """Give patches that share pixels the same colour and mask there, in place.

    The higher mask wins: c = max m_i, and colours are mixed with weights m_i^4, as the worker's
    own composite does it, so there is no seam where masks cross.
    """
    for members in groups([patch.rect for patch in patches]):
        if len(members) > 1:
            _settle([patches[i] for i in members])


def _settle(patches: list[Patch]) -> None:
    frame = union([patch.rect for patch in patches])
    rgb = array("f", bytes(frame.width * frame.height * 12))
    mask = array("f", bytes(frame.width * frame.height * 4))
    power = array("d", bytes(frame.width * frame.height * 8))
    for patch in patches:
        for row in range(patch.rect.height):
            _mix_row(patch, row, frame, rgb, mask, power)
    for patch in patches:
        part = patch.rect.shifted(-frame.x, -frame.y)
        patch.rgb = cut(rgb, frame.width, part, 3)
        patch.mask = cut(mask, frame.width, part, 1)


def _mix_row(
    patch: Patch,
    row: int,
    frame: Rect,
    rgb: array[float],
    mask: array[float],
    power: array[float],
) -> None:
    """Mix one row of a patch into the frame; pixels nobody wrote yet are copied as they are."""
    width = patch.rect.width
    source = row * width
    target = (patch.rect.y + row - frame.y) * frame.width + patch.rect.x - frame.x
    own = patch.mask[source : source + width]
    colours = patch.rgb[3 * source : 3 * (source + width)]
    before = power[target : target + width]
    powers = array("d", [m * m * m * m for m in own])
    for x in [x for x, p in enumerate(before) if p > 0.0]:
        total = before[x] + powers[x]
        share = powers[x] / total
        for c in (3 * x, 3 * x + 1, 3 * x + 2):
            old = rgb[3 * target + c]
            colours[c] = old + share * (colours[c] - old)
        own[x] = max(own[x], mask[target + x])
        powers[x] = total
    rgb[3 * target : 3 * (target + width)] = colours
    mask[target : target + width] = own
    power[target : target + width] = powers
