"""One face from the photograph through the network and back, without detection and policy.

Bringing the result back keeps the photograph's detail. With s crop pixels for each pixel of the
photograph, ``back`` the way back and k(s) falling smoothly from 1 at s <= 1 to 0 at s >= 2.25:

    patch = back(restored - k aligned) + k photo

A face larger than the crop (s < 1) gets the *change* the network made: grain and texture finer than
the network's resolution stay. A face the network saw enlarged is replaced by the network's result,
so that its noise and blocks do not come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.align import rescale, scale_of
from face_restore_worker.pipeline.colour import colour_shift, is_gray, luma, shifted
from face_restore_worker.pipeline.types import Face
from face_restore_worker.pipeline.warp import (
    Rect,
    covered,
    full_scale,
    read_rect,
    source_rect,
    warp_mask_back,
    warp_part_back,
    warp_to_crop,
)

Image = NDArray[Any]
Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]

_KEPT_BELOW, _DROPPED_ABOVE = 1.0, 2.25
_STRIP_ROWS = 256


@dataclass(eq=False)
class Aligned:
    """A face's aligned crop.

    matrix: (2, 3) photograph to crop. size: S.
    crop: (S, S, 3) float32 in [0, 1], or (S, S) where the photograph is gray around the face.
    """

    matrix: FloatArray
    size: int
    crop: Float32

    @property
    def rgb(self) -> Float32:
        """The crop as (S, S, 3)."""
        return three_channels(self.crop)


def align_face(image: Image, matrix: FloatArray, size: int) -> Aligned:
    """Cut the aligned crop out of the photograph; gray where the face's surroundings are.

    Raises:
        ImageError: the crop does not touch the photograph.
    """
    rect = source_rect(matrix, size, image.shape)
    if image.ndim == 3 and not rect.empty and is_gray(rect.cut(image)):
        image = image[..., 0]
    return Aligned(matrix, size, warp_to_crop(image, matrix, size))


@dataclass(eq=False)
class FinishedCrop:
    """A crop after the network, its colour put right where it is asked for.

    output: like ``Aligned.crop`` in shape. shift: what is added (see ``colour``), None for nothing.
    """

    output: Float32
    shift: Float32 | None = None

    @property
    def crop(self) -> Float32:
        """All of it."""
        size = self.output.shape[0]
        return self.change(Rect(0, 0, size, size), self.output, 0.0)

    def change(self, rect: Rect, original: Float32, keep: float) -> Float32:
        """On a rectangle of the crop, less ``keep`` times the original; perhaps a view."""
        if self.shift is not None:
            return shifted(self.output, self.shift, rect, original, keep)
        part = rect.cut(self.output)
        return cv2.addWeighted(part, 1.0, rect.cut(original), -keep, 0.0) if keep > 0 else part


def finish_crop(aligned: Aligned, output: Float32, mask: Float32, colour: bool) -> FinishedCrop:
    """The network's output with the photograph's colour.

    output: (S, S, 3) in [0, 1]. mask: (M, M). colour: keep the original's low frequencies.
    """
    restored = luma(output) if aligned.crop.ndim == 2 else output
    return FinishedCrop(restored, colour_shift(restored, aligned.crop, mask) if colour else None)


def bring_back(
    image: Image, aligned: Aligned, restored: FinishedCrop, mask: Float32 | None
) -> tuple[int, int, Float32, Float32] | None:
    """The patch of a restored crop.

    Args:
        image: the photograph, (H, W, 3) or (H, W).
        aligned: the face's crop before the network.
        restored: the crop after it.
        mask: (M, M) in the crop, or None for the whole photograph (an aligned picture).

    Returns:
        x, y, rgb (h, w, 3), mask (h, w); None where the mask shows nothing of the photograph.
    """
    if mask is None:
        rect = Rect(0, 0, image.shape[1], image.shape[0])
        soft = np.ones(image.shape[:2], dtype=np.float32)
    else:
        found = _mask_on_photo(mask, aligned, image.shape)
        if found is None:
            return None
        rect, soft = found
    keep = kept_detail(scale_of(aligned.matrix))
    at = read_rect(aligned.matrix, aligned.size, rect)
    change = restored.change(at, aligned.crop, keep)
    pixels = warp_part_back(change, at, aligned.size, aligned.matrix, rect)
    if keep > 0:
        _add_photo(pixels, rect.cut(image), keep)
    return rect.x, rect.y, three_channels(pixels), soft


def kept_detail(scale: float) -> float:
    """k(s): how much of what the crop could not hold is taken from the photograph."""
    t = (_DROPPED_ABOVE - scale) / (_DROPPED_ABOVE - _KEPT_BELOW)
    t = min(1.0, max(0.0, t))
    return t * t * (3 - 2 * t)


def whole_picture(
    shape: tuple[int, ...], size: int, landmarks: FloatArray
) -> tuple[Face, FloatArray]:
    """A picture that is an aligned face as a whole: its Face, and its matrix to the crop.

    The picture is scaled to fill the crop by its longer side and centred. landmarks: the
    template's, (5, 2) in the crop.
    """
    height, width = shape[:2]
    scale = size / max(height, width)
    matrix = rescale(scale)
    matrix[:, 2] += (size - scale * width) / 2, (size - scale * height) / 2
    points = (np.asarray(landmarks) - matrix[:, 2]) / scale
    box = np.array([0.0, 0.0, width, height])
    return Face(box=box, score=1.0, landmarks=points), matrix


def mask_rect(mask: Float32, matrix: FloatArray, size: int, shape: tuple[int, ...]) -> Rect | None:
    """The photograph's pixels that a mask (M, M) of a crop may reach; None where there are none.

    matrix: (2, 3), photograph to crop. size: S. shape: of the photograph.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    # From mask pixels to crop pixels, one mask pixel wider on each side.
    to_crop = size / mask.shape[0]
    low = (np.array([columns[0], rows[0]]) - 0.5) * to_crop - 0.5
    high = (np.array([columns[-1], rows[-1]]) + 1.5) * to_crop - 0.5
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    rect = covered(matrix, box, shape, 1)
    return None if rect.empty else rect


def shown_part(soft: Float32) -> Rect | None:
    """The rectangle of a mask (h, w) outside of which it is zero; None where all of it is."""
    ys, xs = np.flatnonzero(soft.any(axis=1)), np.flatnonzero(soft.any(axis=0))
    if not len(ys):
        return None
    return Rect(int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))


def _mask_on_photo(
    mask: Float32, aligned: Aligned, shape: tuple[int, ...]
) -> tuple[Rect, Float32] | None:
    """The mask at the photograph's pixels, trimmed to where it is not zero."""
    rect = mask_rect(mask, aligned.matrix, aligned.size, shape)
    if rect is None:
        return None
    soft = warp_mask_back(mask, aligned.size, aligned.matrix, rect)
    inner = shown_part(soft)
    if inner is None:
        return None
    rect = Rect(rect.x + inner.x, rect.y + inner.y, inner.width, inner.height)
    return rect, np.ascontiguousarray(inner.cut(soft))


def _add_photo(pixels: Float32, photo: Image, keep: float) -> None:
    """Add ``keep`` times the photograph, in strips: no second float copy of the region."""
    factor = np.float32(keep / full_scale(photo.dtype))
    for start in range(0, len(pixels), _STRIP_ROWS):
        part = pixels[start : start + _STRIP_ROWS]
        source = photo[start : start + _STRIP_ROWS]
        if part.ndim == 2 and source.ndim == 3:
            source = source[..., 0]
        part += np.multiply(source, factor, dtype=np.float32)


def three_channels(values: Float32) -> Float32:
    """(h, w) or (h, w, 3) as (h, w, 3)."""
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
