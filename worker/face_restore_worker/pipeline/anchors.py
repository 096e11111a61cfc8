"""RetinaFace's anchors and the decoding of its outputs, vectorised.

The network predicts at three strides (8, 16, 32) with two anchor sizes each. An anchor is a square
about the middle of its cell; the network gives offsets in units of a tenth of the anchor's side and
the logarithm of the box's side in units of a fifth (facexlib's configuration: min_sizes, steps,
variance). All coordinates here are pixel-edge coordinates of the network's input.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS: tuple[tuple[int, tuple[int, int]], ...] = (
    (8, (16, 32)),
    (16, (64, 128)),
    (32, (256, 512)),
)
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2
STRIDE = 32
"""Inputs are padded to a multiple of this, so that every level's cells tile them exactly."""
_LARGEST_LOG_SIZE = 8.0
"""exp() of more than this is no box; keeps a broken network's output finite."""


@lru_cache(maxsize=16)
def anchor_grid(height: int, width: int) -> Floats:
    """Anchors of an input of height x width pixels, in the order of the network's outputs.

    Returns (A, 3) float64, read-only: centre x, centre y, side, in pixels (pixel-edge).
    """
    parts = []
    for stride, sizes in LEVELS:
        rows, columns = -(-height // stride), -(-width // stride)
        x = (np.arange(columns) + 0.5) * stride
        y = (np.arange(rows) + 0.5) * stride
        grid = np.empty((rows, columns, len(sizes), 3))
        grid[..., 0] = x[None, :, None]
        grid[..., 1] = y[:, None, None]
        grid[..., 2] = sizes
        parts.append(grid.reshape(-1, 3))
    anchors = np.concatenate(parts)
    anchors.flags.writeable = False
    return anchors


def decode(
    offsets: NDArray[np.floating], points: NDArray[np.floating], anchors: Floats
) -> tuple[Floats, Floats]:
    """Turn the network's outputs at N anchors into boxes and landmarks.

    offsets: (N, 4) centre and logarithmic size. points: (N, 10) five landmarks. anchors: (N, 3).
    Returns boxes (N, 4) x0, y0, x1, y1 and landmarks (N, 5, 2), float64, pixels (pixel-edge).
    """
    offsets = np.asarray(offsets, dtype=np.float64)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 5, 2)
    centres, sides = anchors[:, :2], anchors[:, 2:]
    middle = centres + offsets[:, :2] * CENTRE_VARIANCE * sides
    log_size = np.clip(offsets[:, 2:] * SIZE_VARIANCE, -_LARGEST_LOG_SIZE, _LARGEST_LOG_SIZE)
    half = sides * np.exp(log_size) / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    landmarks = centres[:, None] + points * CENTRE_VARIANCE * sides[:, None]
    return boxes, landmarks
