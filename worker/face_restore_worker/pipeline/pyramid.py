"""The photograph at several scales, cut in tiles, without ever copying all of a large one.

Levels are shrunk by whole numbers, so that one pixel of a level covers exactly factor x factor
pixels of the photograph: in pixel-edge coordinates photo = factor * level, with no rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.errors import ImageError

Pixels = NDArray[np.uint8]
Rect = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 are exclusive."""

STEP = 3
"""Ratio of neighbouring levels; the network covers more than that (see detect.FACE_MARGIN)."""
COARSEST_SIDE = 320
"""Levels are added until the long side is at most this, so that a face filling the picture fits."""
_BAND_BYTES = 32 << 20


class Picture:
    """A photograph read piece by piece as uint8 RGB, whatever its own form.

    image: (H, W, 3) RGB, (H, W) or (H, W, 1) gray; uint8, uint16 or float32 in [0, 1] (values
    outside are clipped, NaN counts as black). It is not copied and must not change meanwhile.
    Raises ImageError for any other form.
    """

    def __init__(self, image: NDArray[Any]) -> None:
        array = np.asarray(image)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
            raise ImageError(
                f"Faces are searched in RGB or gray pictures, not in an array of {array.shape}.",
                hint="Give an array of (height, width, 3) or (height, width).",
                code="image-form",
            )
        if array.dtype not in (np.uint8, np.uint16, np.float32):
            raise ImageError(
                f"Faces are searched in uint8, uint16 or float32 pictures, not in {array.dtype}.",
                hint="Convert the array first; float32 is expected in [0, 1].",
                code="image-form",
            )
        if min(array.shape[:2]) < 1:
            raise ImageError("The picture has no pixels.", code="image-form")
        self.array: NDArray[Any] = array
        """(H, W, 3) or (H, W), of the type it was given in."""
        self.height, self.width = int(array.shape[0]), int(array.shape[1])

    def read(self, rect: Rect) -> Pixels:
        """The pixels of rect, which lies inside the picture: (h, w, 3) uint8 RGB, contiguous."""
        import cv2

        x0, y0, x1, y1 = rect
        piece = np.ascontiguousarray(self.array[y0:y1, x0:x1])
        if piece.dtype == np.uint16:
            piece = cv2.convertScaleAbs(piece, alpha=1 / 257)
        elif piece.dtype == np.float32:
            piece = np.nan_to_num(piece, nan=0.0, posinf=1.0, neginf=0.0)
            piece = (np.clip(piece, 0, 1) * 255 + 0.5).astype(np.uint8)
        if piece.ndim == 2:
            piece = cv2.cvtColor(piece, cv2.COLOR_GRAY2RGB)
        return piece


class Scale(Protocol):
    """One scale of a photograph, its pixels in the computer's memory or on a device; see Level."""

    @property
    def factor(self) -> float:
        """Pixels of the photograph per pixel of the level."""

    @property
    def width(self) -> int:
        """Of the level."""

    @property
    def height(self) -> int:
        """Of the level."""

    def read(self, rect: Rect) -> Any:
        """(h, w, 3) uint8 RGB, an array or a tensor."""


AnyScale = TypeVar("AnyScale", bound=Scale)


@dataclass(frozen=True)
class Level:
    """The photograph at one scale.

    factor: pixels of the photograph per pixel of the level; 1/2 or 1/3 where it is magnified.
    width, height: of the level, rounded up.
    """

    factor: float
    width: int
    height: int
    picture: Picture
    pixels: Pixels | None = None

    def read(self, rect: Rect) -> Pixels:
        """The pixels of rect, in the level's pixels and inside it: (h, w, 3) uint8 RGB."""
        x0, y0, x1, y1 = rect
        if self.pixels is not None:
            return np.ascontiguousarray(self.pixels[y0:y1, x0:x1])
        if self.factor == 1:
            return self.picture.read(rect)
        return self._magnified(rect)

    def _magnified(self, rect: Rect) -> Pixels:
        import cv2

        ratio = round(1 / self.factor)
        margin = 2  # what bilinear and cubic kernels reach
        x0, y0 = (max(v // ratio - margin, 0) for v in rect[:2])
        x1 = min(-(-rect[2] // ratio) + margin, self.picture.width)
        y1 = min(-(-rect[3] // ratio) + margin, self.picture.height)
        source = self.picture.read((x0, y0, x1, y1))
        size = ((x1 - x0) * ratio, (y1 - y0) * ratio)
        large = cv2.resize(source, size, interpolation=cv2.INTER_CUBIC)
        left, top = rect[0] - x0 * ratio, rect[1] - y0 * ratio
        piece = large[top : top + rect[3] - rect[1], left : left + rect[2] - rect[0]]
        return np.ascontiguousarray(piece)


def shrink(source: Level, factor: int) -> Pixels:
    """`source` shrunk by a whole number, area-correct: (ceil(h / factor), ceil(w / factor), 3).

    Works in bands; the last row and column of blocks are completed by repeating the border.
    """
    import cv2

    out_h, out_w = -(-source.height // factor), -(-source.width // factor)
    out = np.empty((out_h, out_w, 3), dtype=np.uint8)
    rows = max(_BAND_BYTES // (source.width * 3 * factor), 1)
    for top in range(0, out_h, rows):
        bottom = min(top + rows, out_h)
        band = source.read((0, top * factor, source.width, min(bottom * factor, source.height)))
        below = (bottom - top) * factor - band.shape[0]
        right = out_w * factor - band.shape[1]
        if below or right:
            band = cv2.copyMakeBorder(band, 0, below, 0, right, cv2.BORDER_REPLICATE)
        out[top:bottom] = cv2.resize(band, (out_w, bottom - top), interpolation=cv2.INTER_AREA)
    return out


def build_levels(picture: Picture, finest: int, coarsest_side: int = COARSEST_SIDE) -> list[Level]:
    """The levels from factor `finest` in steps of STEP, finest first, until the last is small.

    The long side of the last level is at most `coarsest_side`, or its factor is `finest`.
    """
    native = Level(1.0, picture.width, picture.height, picture)
    levels = [native if finest == 1 else _shrunk(native, finest)]
    while max(levels[-1].width, levels[-1].height) > coarsest_side:
        levels.append(_shrunk(levels[-1], STEP))
    return levels


def _shrunk(source: Level, factor: int) -> Level:
    pixels = shrink(source, factor)
    height, width = pixels.shape[:2]
    return Level(source.factor * factor, width, height, source.picture, pixels)


def magnified(picture: Picture, times: int) -> Level:
    """The photograph at `times` its size, computed tile by tile."""
    return Level(1 / times, picture.width * times, picture.height * times, picture)


def tiles(
    rect: Rect, side: int, overlap: int, multiple: int = 1, height: int | None = None
) -> list[Rect]:
    """Cover `rect` with equal tiles of at most `side` pixels a side, or `side` x `height`.

    Neighbours share at least `overlap` pixels, so whatever is no larger than that lies whole in
    one of them. Where more than one tile is needed along a side its length is a multiple of
    `multiple` (which divides `side`).
    """
    columns = _spans(rect[0], rect[2], side, overlap, multiple)
    rows = _spans(rect[1], rect[3], height or side, overlap, multiple)
    return [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def _spans(start: int, stop: int, side: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    length = stop - start
    if length <= side:
        return [(start, stop)]
    count = -(-(length - overlap) // (side - overlap))
    wanted = -(-(length + (count - 1) * overlap) // count)
    span = min(-(-wanted // multiple) * multiple, side)
    last = length - span
    starts = [start + i * last // (count - 1) for i in range(count)]
    return [(s, s + span) for s in starts]
