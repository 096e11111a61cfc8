"""Keeping the original's colour: a restored face must not shift in tint or brightness.

What is kept is the low-frequency difference between the network's input and its output, measured on
the face only (normalised by the mask, so that background does not bleed in):

* chroma below about 1/32 of the crop: degraded photographs are reliable there, and the tint of skin
  and lips is decided there, while edges keep the network's sharper chroma;
* luma below about 1/10 of the crop: the exposure and the shading of the photograph stay, while
  features the network draws are left alone.

Everything works on sRGB-encoded values. A grayscale photograph goes another way: only the luma of
the network's output is used (``luma``), so that it stays gray to the bit.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.warp import Rect, in_strips

Float32 = NDArray[np.float32]

#: Rec. 709 luma weights (ITU-R BT.709-6, item 3.2).
LUMA = (0.2126, 0.7152, 0.0722)

SIDE = 128  # the differences are of low frequency: this many pixels hold them
CHROMA_SIGMA = 1.0 / 32  # of the crop's side
LUMA_SIGMA = 1.0 / 10
LEAST_WEIGHT = 1e-3
GRAINS = 8  # rows of the shift in a strip


def keep_colour(restored: Float32, original: Float32, mask: Float32) -> Float32:
    """Give a restored crop the low-frequency colour of its original.

    Args:
        restored, original: (S, S, 3) or (S, S) float32, the network's output and its input.
        mask: (M, M) float32 in [0, 1], where the face is.

    Returns:
        A new array like ``restored``; values may leave [0, 1] a little.
    """
    whole = Rect(0, 0, restored.shape[1], restored.shape[0])
    return shifted(restored, colour_shift(restored, original, mask), whole)


def colour_shift(restored: Float32, original: Float32, mask: Float32) -> Float32:
    """What ``keep_colour`` adds, at few pixels: (K, K, 3) or (K, K) float32, K at most SIDE."""
    side = min(SIDE, restored.shape[0])
    weight = _small(mask, side)
    difference = _small(original, side) - _small(restored, side)
    if difference.ndim == 2:
        return _local_mean(difference, weight, LUMA_SIGMA * side)
    light = _dot(difference)
    chroma = difference - light[..., None]
    shift = _local_mean(chroma, weight, CHROMA_SIGMA * side)
    shift += _local_mean(light, weight, LUMA_SIGMA * side)[..., None]
    return shift


def shifted(
    restored: Float32,
    shift: Float32,
    rect: Rect,
    less: Float32 | None = None,
    share: float = 0.0,
) -> Float32:
    """``restored + enlarged shift - share * less`` on a rectangle of the crop, in one pass.

    restored, less: (S, S, 3) or (S, S) float32. shift: see ``colour_shift``. Returns
    (rect.height, rect.width[, 3]) float32.
    """
    size, side = restored.shape[0], shift.shape[0]
    # Pieces of the shift that are enlarged to whole pixels of the crop; all of it, failing that.
    grain = size // side if size % side == 0 else size
    cells = side * grain // size
    columns = slice(rect.x, rect.x + rect.width)
    left = max(rect.x // grain * cells - 1, 0)  # one more on each side, for the interpolation
    right = min(-(-columns.stop // grain) * cells + 1, side)
    first, last = rect.y // grain, -(-(rect.y + rect.height) // grain)
    out = np.empty((rect.height, rect.width, *restored.shape[2:]), np.float32)

    def fill(begin: int, end: int) -> None:
        above = max((first + begin) * cells - 1, 0)
        below = min((first + end) * cells + 1, side)
        piece = shift[above:below, left:right]
        large = cv2.resize(
            piece, ((right - left) * size // side, (below - above) * size // side)
        ).reshape(-1, (right - left) * size // side, *restored.shape[2:])
        top = max((first + begin) * grain, rect.y)
        bottom = min((first + end) * grain, rect.y + rect.height)
        y, x = above * size // side, left * size // side
        target = out[top - rect.y : bottom - rect.y]
        part = large[top - y : bottom - y, columns.start - x : columns.stop - x]
        np.add(part, restored[top:bottom, columns], out=target)
        if less is not None and share:
            cv2.scaleAdd(less[top:bottom, columns], -share, target, dst=target)

    in_strips(last - first, GRAINS, fill)
    return out


def luma(rgb: Float32) -> Float32:
    """The luma of (..., 3) sRGB-encoded values, as (...) float32."""
    return _dot(rgb)


def is_gray(image: NDArray[Any]) -> bool:
    """Whether the three channels of (H, W, 3) are the same in every pixel. Quick on colour."""
    if image.ndim == 2 or image.shape[2] == 1:
        return True
    rows = max(1, (1 << 18) // max(1, image.shape[1]))
    for start in range(0, image.shape[0], rows):
        part = image[start : start + rows]
        first = part[..., 0]
        if not (np.array_equal(first, part[..., 1]) and np.array_equal(first, part[..., 2])):
            return False
    return True


def _small(image: Float32, side: int) -> Float32:
    method = cv2.INTER_AREA if image.shape[0] >= side else cv2.INTER_LINEAR
    result: Float32 = cv2.resize(image, (side, side), interpolation=method)
    return result


def _local_mean(values: Float32, weight: Float32, sigma: float) -> Float32:
    """Gaussian mean of ``values`` weighted by ``weight``; fades to 0 where there is no weight."""
    shaped = weight[..., None] if values.ndim == 3 else weight
    total = cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    sums = cv2.GaussianBlur(values * shaped, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    total = np.maximum(total, np.float32(LEAST_WEIGHT))
    result: Float32 = sums / (total[..., None] if values.ndim == 3 else total)
    return result


def _dot(rgb: Float32) -> Float32:
    if rgb.ndim == 3 and rgb.dtype == np.float32:
        result: Float32 = cv2.transform(rgb, np.array([LUMA], dtype=np.float32))
        return result
    return (rgb @ np.array(LUMA)).astype(np.float32)
