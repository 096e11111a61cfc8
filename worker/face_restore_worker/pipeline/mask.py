"""Soft masks in the aligned crop: how much of the restored face shows.

A mask is (M, M) float32 in [0, 1] spanning the whole crop, M at most 512: it is smooth, so more
pixels would add nothing. It is exactly 0 along its border and fades out inside a rounded window, so
that no straight edge of the crop can ever be seen.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.align import (
    TEMPLATE_UNITS,
    apply,
    invert,
    template_landmarks,
    umeyama,
)

Float32 = NDArray[np.float32]

MASK_SIZE = 512

# The oval of a face aligned to the FFHQ template, in its 512 units: hairline to under the chin.
_OVAL_CENTRE = (256.0, 286.0)
_OVAL_RADII = (186.0, 214.0)
_OVAL_EXPONENT = 2.4  # 2 is an ellipse, more is squarer: covers the corners of forehead and jaw
_OVAL_FEATHER = 0.26  # share of the radius over which the oval fades at softness 1

BORDER = 26.0  # of 512: the authors zero so much before they feather
SIGMA = 4.0  # of 512: and blur twice by this
LEAST_SOFTNESS = 0.25  # labels have jagged edges, which must not show

_WINDOW_EXPONENT = 3.0
_WINDOW = (0.80, 0.94)  # of half the crop: where the rounded window starts and ends to fade
TAIL = 1.0 / 512  # smaller values are cut off: they would only make patches larger


def oval_mask(size: int, template: str = "ffhq", softness: float = 1.0) -> Float32:
    """A rounded, feathered face-oval.

    Args:
        size: side of the aligned crop in pixels.
        template: the template the crop is aligned to.
        softness: factor on the feather's width; 0 gives the hardest edge that is not jagged.

    Returns:
        (M, M) float32, M = min(size, 512), read-only (it is cached).
    """
    return _oval(min(int(size), MASK_SIZE), template, round(float(softness), 3))


@lru_cache(maxsize=8)
def _oval(side: int, template: str, softness: float) -> Float32:
    to_template = umeyama(template_landmarks("ffhq", 512), template_landmarks(template, 512))
    from_template = invert(to_template)
    grid = (np.arange(side) + 0.5) * (TEMPLATE_UNITS / side) - 0.5
    x, y = np.meshgrid(grid, grid)
    points = apply(from_template, np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(side, side, 2)
    rho = _superellipse(
        (points[..., 0] + 0.5 - _OVAL_CENTRE[0]) / _OVAL_RADII[0],
        (points[..., 1] + 0.5 - _OVAL_CENTRE[1]) / _OVAL_RADII[1],
        _OVAL_EXPONENT,
    )
    feather = min(1.0, max(_OVAL_FEATHER * softness, 3.0 / side))
    mask = _smoothstep((1.0 - rho) / feather) * window(side)
    return _finished(mask)


def parse_mask(face: NDArray[Any], size: int, softness: float = 1.0) -> Float32:
    """A feathered mask from a face parser's labels.

    As the authors of GPEN do it: the border is zeroed first, then two Gaussian blurs of 4 pixels
    of 512. Hair and forehead often reach that border, which would show as a straight edge, so the
    result also fades out inside a rounded window.

    Args:
        face: (K, K), 1 or 255 or True where a pixel belongs to the face, any numeric dtype;
            fractions are allowed in float in [0, 1].
        size: side of the aligned crop in pixels.
        softness: factor on the blur's width; below 0.25 the labels' jagged edges would show.

    Returns:
        (M, M) float32, M = min(size, 512).
    """
    side = min(int(size), MASK_SIZE)
    mask = np.asarray(face).astype(np.float32)
    if face.dtype == np.uint8 and mask.max(initial=0.0) > 1:
        mask /= np.float32(255)
    if mask.shape[0] != side:
        method = cv2.INTER_AREA if mask.shape[0] > side else cv2.INTER_LINEAR
        mask = cv2.resize(mask, (side, side), interpolation=method)
    border = max(1, round(BORDER * side / TEMPLATE_UNITS))
    inner = np.zeros_like(mask)
    inner[border:-border, border:-border] = mask[border:-border, border:-border]
    sigma = max(0.3, SIGMA * side / TEMPLATE_UNITS * max(softness, LEAST_SOFTNESS))
    for _ in range(2):
        inner = cv2.GaussianBlur(inner, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return _finished(inner * window(side))


def covers_face(mask: Float32, template: str = "ffhq") -> bool:
    """Whether a parser's mask holds most of where the template says the face is."""
    side = mask.shape[0]
    points = np.round(template_landmarks(template, side)).astype(int)
    hull = np.zeros(mask.shape, dtype=np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points.astype(np.int32)), 1)
    inside = mask[hull > 0]
    return bool(inside.size and inside.mean() > 0.5)


def full_mask(size: int) -> Float32:
    """All ones, for a picture that is an aligned crop as a whole; (M, M) float32."""
    return np.ones((min(size, MASK_SIZE),) * 2, dtype=np.float32)


@lru_cache(maxsize=8)
def window(side: int) -> NDArray[np.float64]:
    grid = (np.arange(side) + 0.5) / (side / 2) - 1.0
    rho = _superellipse(grid[None, :], grid[:, None], _WINDOW_EXPONENT)
    start, end = _WINDOW
    return _smoothstep((end - rho) / (end - start))


def _finished(mask: NDArray[Any]) -> Float32:
    """Cut off the tail, zero the outermost pixels, freeze."""
    out = np.clip((mask - TAIL) / (1.0 - TAIL), 0.0, 1.0).astype(np.float32)
    out[[0, -1], :] = 0
    out[:, [0, -1]] = 0
    out.setflags(write=False)
    return out


def _superellipse(x: NDArray[Any], y: NDArray[Any], exponent: float) -> NDArray[np.float64]:
    radius: NDArray[np.float64] = (np.abs(x) ** exponent + np.abs(y) ** exponent) ** (1 / exponent)
    return radius


def _smoothstep(t: NDArray[np.float64]) -> NDArray[np.float64]:
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3 - 2 * t)
