"""Faces and patches made by hand, for tests of what is done with them."""

from __future__ import annotations

import numpy as np
from face_restore_worker.pipeline.types import Face, Patch


def face_at(x: float, y: float, size: float = 16, score: float = 0.9) -> Face:
    """A face whose box has its upper left corner at (x, y)."""
    points = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    return Face(np.array([x, y, x + size, y + size]), score, np.array([x, y]) + points * size)


def soft_mask(height: int, width: int) -> np.ndarray:
    """(h, w) float32: 1 in the middle, 0 on the border."""
    y = np.minimum(np.arange(height), np.arange(height)[::-1])[:, None] / (height / 4)
    x = np.minimum(np.arange(width), np.arange(width)[::-1])[None] / (width / 4)
    return np.clip(np.minimum(x, y), 0, 1).astype(np.float32)


def patch_at(
    x: int,
    y: int,
    rgb: np.ndarray | tuple[float, float, float],
    size: int = 16,
    strength: float = 1.0,
    aligned: int = 0,
) -> Patch:
    """A square patch of one colour, or of the given (size, size, 3) pixels."""
    pixels = np.broadcast_to(np.asarray(rgb, np.float32), (size, size, 3)).copy()
    matrix = np.array([[1.0, 0, -x], [0, 1.0, -y]])
    before, after = (np.full((aligned, aligned, 3), v, np.float32) for v in (0.25, 0.75))
    return Patch(
        face_at(x, y, size),
        matrix,
        size,
        x,
        y,
        pixels,
        soft_mask(size, size),
        strength,
        aligned_input=before if aligned else None,
        aligned_output=after if aligned else None,
    )
