"""Resampling between a photograph and an aligned crop, both ways, on the face's region only.

With s pixels of the crop for each pixel of the photograph:

* photograph to crop, s >= 1: Lanczos (bicubic for crops over a megapixel, where Lanczos would cost
  more than the rest of the pipeline). Far enlargements go through a grid of at least twice the
  photograph's rate, from where a separable bicubic is as exact and much cheaper.
* photograph to crop, s < 1: every pixel of the photograph is averaged (area resampling, in strips,
  so that a large face never exists as a whole in float), then Lanczos or bicubic at about 1:1.
* crop to photograph, s > 1.2: what the photograph's grid cannot hold is filtered out. The filter
  works in the photograph's own axes (the crop is sampled 2 or 4 times finer, then decimated),
  because the spectrum a photograph can hold is a square along *its* axes: at any rotation the
  filter keeps all of it, corners included, and stops what would alias.
* crop to photograph, s <= 1.2: Lanczos or bicubic at the photograph's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.align import (
    apply,
    compose,
    invert,
    rescale,
    scale_of,
    translate,
)

Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]
Image = NDArray[Any]

#: Above this many output pixels bicubic replaces Lanczos, which takes five times as long.
LANCZOS_MAX_PIXELS = 1_200_000
#: Crop pixels for each photograph pixel from which the way back is low-passed.
FILTERED_FROM = 1.2
#: Output rows of one strip of area resampling, in units of the ratio's denominator.
STRIP_PIXELS = 1 << 21
#: Rows of the photograph of one strip of the filtered way back: what it needs stays in the cache.
BACK_ROWS = 64
_MARGIN = 6  # pixels a kernel may reach past the region it samples
_FILTER_REACH = 8  # pixels of the photograph that the way back's filter may reach


@dataclass(frozen=True)
class Rect:
    """A rectangle of whole pixels: columns x to x + width, rows y to y + height."""

    x: int
    y: int
    width: int
    height: int

    @property
    def empty(self) -> bool:
        """Whether it has no pixel."""
        return self.width <= 0 or self.height <= 0

    def cut(self, image: Image) -> Image:
        """The rectangle's pixels, as a view."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


def full_scale(dtype: np.dtype[Any] | type) -> float:
    """The value that stands for 1.0: 255, 65535 or 1."""
    kind = np.dtype(dtype)
    return float(np.iinfo(kind).max) if kind.kind == "u" else 1.0


def covered(
    matrix: FloatArray, box: tuple[float, float, float, float], shape: tuple[int, ...], margin: int
) -> Rect:
    """The photograph's pixels under a box of the crop.

    matrix: (2, 3) photograph to crop. box: x0, y0, x1, y1 in the crop, pixel-centre.
    shape: of the photograph, (height, width, ...). margin: pixels of the photograph to add.
    """
    x0, y0, x1, y1 = box
    corners = apply(invert(matrix), [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    low = np.floor(corners.min(axis=0)).astype(int) - margin
    high = np.ceil(corners.max(axis=0)).astype(int) + 1 + margin
    left, top = max(int(low[0]), 0), max(int(low[1]), 0)
    right, bottom = min(int(high[0]), shape[1]), min(int(high[1]), shape[0])
    return Rect(left, top, max(right - left, 0), max(bottom - top, 0))


def source_rect(matrix: FloatArray, size: int, shape: tuple[int, ...]) -> Rect:
    """The photograph's pixels that a crop of ``size`` pixels is made from."""
    margin = math.ceil(_MARGIN * max(1.0, 1.0 / scale_of(matrix)))
    return covered(matrix, (-0.5, -0.5, size - 0.5, size - 0.5), shape, margin)


def touched_rect(matrix: FloatArray, size: int, shape: tuple[int, ...]) -> Rect:
    """``source_rect``; raises ImageError where the crop does not touch the photograph."""
    rect = source_rect(matrix, size, shape)
    if rect.empty:
        raise ImageError(
            "This face lies outside the picture.",
            hint="Give landmarks in pixels of the picture itself.",
            code="face-outside",
        )
    return rect


def warp_to_crop(image: Image, matrix: FloatArray, size: int) -> Float32:
    """Sample the aligned crop from a photograph.

    Args:
        image: (H, W, 3) or (H, W), uint8, uint16 or float32.
        matrix: (2, 3) float64, photograph to crop, pixel-centre on both sides.
        size: S, side of the crop in pixels.

    Returns:
        (S, S, 3) or (S, S) float32 in [0, 1]. Beyond the photograph's border it is mirrored.

    Raises:
        ImageError: the crop does not touch the photograph.
    """
    rect = touched_rect(matrix, size, image.shape)
    scale = scale_of(matrix)
    numerator, denominator = shrink_ratio(1.0 / scale)
    to_crop = compose(matrix, translate(rect.x, rect.y))
    if numerator > denominator:
        source = _shrink(rect.cut(image), numerator, denominator)
        to_crop = compose(to_crop, rescale(numerator / denominator))
        factor = 1
    else:
        source = np.array(rect.cut(image), dtype=np.float32, order="C")
        factor = largest_divisor(size, scale / 2)
    source *= np.float32(1.0 / full_scale(image.dtype))
    grid = compose(rescale(1.0 / factor), to_crop)
    side = size // factor
    crop = cv2.warpAffine(
        source,
        invert(grid),
        (side, side),
        flags=kernel_for(side * side) | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    if factor > 1:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(crop, 0.0, 1.0, out=crop)


def warp_back(crop: Float32, matrix: FloatArray, rect: Rect) -> Float32:
    """Sample a crop at the photograph's pixels.

    Args:
        crop: (S, S, 3) or (S, S) float32, any range.
        matrix: (2, 3) float64, photograph to crop, the same as for ``warp_to_crop``.
        rect: the photograph's pixels to fill.

    Returns:
        (height, width, 3) or (height, width) float32. Outside the crop its edge is repeated.
    """
    return warp_part_back(crop, Rect(0, 0, *crop.shape[1::-1]), crop.shape[0], matrix, rect)


def warp_part_back(part: Float32, at: Rect, size: int, matrix: FloatArray, rect: Rect) -> Float32:
    """As ``warp_back``, of a crop of which only a part is there, at least ``read_rect``.

    part: (at.height, at.width, 3) or without the 3. at: where it lies. size: the crop's side S.
    """
    scale = scale_of(matrix)
    to_part = compose(translate(-at.x, -at.y), compose(matrix, translate(rect.x, rect.y)))
    finer = _finer(scale)
    if finer > 1:
        factor = largest_divisor(size, scale / finer)
        if factor > 1:
            sides = at.width // factor, at.height // factor
            part = cv2.resize(part, sides, interpolation=cv2.INTER_AREA)
            to_part = compose(rescale(1.0 / factor), to_part)
        return _back_filtered(part, to_part, rect, finer)
    kernel = kernel_for(rect.width * rect.height) if scale > 1 else cv2.INTER_CUBIC
    return _sample(part, to_part, (rect.width, rect.height), kernel)


def read_rect(matrix: FloatArray, size: int, rect: Rect) -> Rect:
    """The crop's pixels that the way back of the photograph's pixels ``rect`` needs, at most.

    matrix: (2, 3) photograph to crop. size: S. Its edges are such that the crop can be shrunk
    first, where ``warp_back`` does that. At least a pixel wide and high.
    """
    scale = scale_of(matrix)
    finer = _finer(scale)
    block = largest_divisor(size, scale / finer) if finer > 1 else 1
    corners = [
        (x, y) for x in (rect.x, rect.x + rect.width) for y in (rect.y, rect.y + rect.height)
    ]
    seen = apply(matrix, corners)
    # The filter's half length, and what the sampling of the (shrunk) crop reaches beyond.
    margin = math.ceil(_FILTER_REACH * scale) + _MARGIN * block
    low = np.floor(seen.min(axis=0)).astype(int) - margin
    high = np.ceil(seen.max(axis=0)).astype(int) + margin
    x0, y0 = (min(max(int(v), 0), size - 1) // block * block for v in low)
    x1, y1 = (min(-(-max(int(v), 1) // block) * block, size) for v in high)
    return Rect(x0, y0, max(x1 - x0, block), max(y1 - y0, block))


def _finer(scale: float) -> int:
    """How many times finer than the photograph a crop is sampled on its way back."""
    if scale <= FILTERED_FROM:
        return 1
    return 2 if scale < 4 else 4


def warp_mask_back(mask: Float32, size: int, matrix: FloatArray, rect: Rect) -> Float32:
    """Sample a soft mask at the photograph's pixels.

    Args:
        mask: (M, M) float32 in [0, 1], zero along its border, spanning the whole crop.
        size: S, side of the crop that ``matrix`` maps to; M need not equal it.
        matrix: (2, 3) float64, photograph to crop.
        rect: the photograph's pixels to fill.

    Returns:
        (height, width) float32 in [0, 1], exactly 0 outside the crop.
    """
    side = mask.shape[0]
    to_mask = compose(rescale(side / size), compose(matrix, translate(rect.x, rect.y)))
    factor = largest_divisor(side, scale_of(to_mask))
    if factor > 1:
        mask = cv2.resize(mask, (side // factor, side // factor), interpolation=cv2.INTER_AREA)
        to_mask = compose(rescale(1.0 / factor), to_mask)
    out = cv2.warpAffine(
        mask,
        to_mask,
        (rect.width, rect.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return np.clip(out, 0.0, 1.0, out=out)


def _back_filtered(crop: Float32, to_crop: FloatArray, rect: Rect, finer: int) -> Float32:
    """Sample ``finer`` times finer than the photograph, low-pass in its axes, decimate."""
    taps = decimator(finer)
    pad = finer * math.ceil(len(taps) / 2 / finer)
    width = rect.width * finer + 2 * pad
    kernel = kernel_for(width * (rect.height * finer + 2 * pad))
    result = np.empty((rect.height, rect.width, *crop.shape[2:]), np.float32)

    def fill(top: int, bottom: int) -> None:
        # Sample finer * i of the fine grid lies on the photograph's pixel i.
        start = np.array([[1.0 / finer, 0.0, -pad / finer], [0.0, 1.0 / finer, top - pad / finer]])
        height = (bottom - top) * finer + 2 * pad
        samples = _sample(crop, compose(to_crop, start), (width, height), kernel)
        samples = cv2.sepFilter2D(samples, -1, taps, taps)
        result[top:bottom] = samples[pad : height - pad : finer, pad : width - pad : finer]

    in_strips(rect.height, BACK_ROWS, fill)
    return result


def in_strips(rows: int, step: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(top, bottom)`` for strips of ``step`` rows, beside each other on all cores.

    As many at a time as OpenCV has threads. Raises what ``work`` raises.
    """
    strips = [(top, min(top + step, rows)) for top in range(0, rows, step)]
    threads = min(cv2.getNumThreads(), len(strips))
    if threads <= 1:
        for top, bottom in strips:
            work(top, bottom)
        return
    with ThreadPoolExecutor(threads, "strips") as pool:
        for done in [pool.submit(work, *strip) for strip in strips]:
            done.result()


def _sample(crop: Float32, to_crop: FloatArray, size: tuple[int, int], kernel: int) -> Float32:
    result: Float32 = cv2.warpAffine(
        crop,
        to_crop,
        size,
        flags=kernel | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return result


def kernel_for(pixels: int) -> int:
    """OpenCV's interpolation for a result of so many pixels."""
    return cv2.INTER_LANCZOS4 if pixels <= LANCZOS_MAX_PIXELS else cv2.INTER_CUBIC


def largest_divisor(size: int, limit: float) -> int:
    """The largest divisor of ``size`` that is at most ``limit``, at least 1."""
    for candidate in range(min(int(limit), size), 1, -1):
        if size % candidate == 0:
            return candidate
    return 1


def shrink_ratio(ratio: float) -> tuple[int, int]:
    """A fraction at most ``ratio`` (>= 1 else 1/1) and close to it, with a small denominator."""
    if ratio <= 1:
        return 1, 1
    denominator = max(1, 32 >> min(5, math.ceil(math.log2(ratio + 1e-9))))
    return math.floor(ratio * denominator + 1e-9), denominator


def _shrink(region: Image, numerator: int, denominator: int) -> Float32:
    """Average a region down by numerator / denominator, strip by strip, keeping its units.

    Rows and columns missing to a whole number of blocks are mirrored.
    """
    height, width = region.shape[:2]
    rows = mirrored(height, numerator)
    columns = mirrored(width, numerator)
    out_width = len(columns) // numerator * denominator
    blocks = max(1, STRIP_PIXELS // (len(columns) * numerator)) * numerator
    strips = []
    for start in range(0, len(rows), blocks):
        part = rows[start : start + blocks]
        strip = np.empty((len(part), len(columns), *region.shape[2:]), dtype=np.float32)
        whole = min(max(height - start, 0), len(part))
        strip[:whole, :width] = region[start : start + whole]
        if whole < len(part):
            strip[whole:, :width] = region[part[whole:]]
        if width < len(columns):
            strip[:, width:] = strip[:, columns[width:]]
        out_height = len(part) // numerator * denominator
        strips.append(cv2.resize(strip, (out_width, out_height), interpolation=cv2.INTER_AREA))
    return np.concatenate(strips) if len(strips) > 1 else strips[0]


def mirrored(length: int, block: int) -> NDArray[np.intp]:
    """Indices 0 to length - 1, then mirrored ones up to the next multiple of ``block``."""
    extra = -length % block
    past = np.arange(length, length + extra)
    period = 2 * length
    past = past % period
    return np.concatenate([np.arange(length), np.minimum(past, period - 1 - past)])


@lru_cache(maxsize=8)
def decimator(finer: int) -> Float32:
    """The filter for a grid ``finer`` times finer than the photograph's.

    Half amplitude at 1.225 times the photograph's Nyquist rate; flat below it to 0.5 %, below 1 %
    above 1.45 times (Kaiser's formulas for 45 dB: J. F. Kaiser, 1974).
    """
    attenuation, low, high = 45.0, 1.0, 1.45
    transition = 2 * math.pi * (high - low) * 0.5 / finer
    count = math.ceil((attenuation - 8) / (2.285 * transition)) | 1
    beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return _low_pass(count, (low + high) / 2 * 0.5 / finer, beta)


def _low_pass(count: int, cutoff: float, beta: float) -> Float32:
    """Kaiser-windowed sinc of ``count`` taps; ``cutoff`` in cycles per sample; gain 1 at 0."""
    n = np.arange(count) - (count - 1) / 2
    taps = np.sinc(2 * cutoff * n) * np.kaiser(count, beta)
    taps /= taps.sum()
    return taps.astype(np.float32)
