"""Non-maximum suppression: one box for each face.

OpenCV's suppression is used, because torchvision's compiled operators are missing where its build
does not match torch's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


def intersections(a: Floats, b: Floats) -> Floats:
    """Areas shared by boxes a (N, 4) and b (M, 4), x0, y0, x1, y1: (N, M)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def areas(boxes: Floats) -> Floats:
    """Areas of boxes (N, 4): (N,)."""
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes a (N, 4) and b (M, 4): (N, M), 0 to 1."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - shared
    return shared / np.maximum(union, 1e-12)


def suppress(boxes: Floats, scores: Floats, overlap: float = 0.4) -> Indices:
    """Greedy suppression of boxes that overlap a better one by more than `overlap` (IoU).

    boxes: (N, 4) x0, y0, x1, y1. scores: (N,). Returns the indices kept, best score first.
    """
    if len(boxes) == 0:
        return np.empty(0, dtype=np.intp)
    import cv2

    rectangles = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxes(
        np.ascontiguousarray(rectangles, dtype=np.float64),  # type: ignore[arg-type]
        np.ascontiguousarray(scores, dtype=np.float32),  # type: ignore[arg-type]
        0.0,
        overlap,
    )
    return np.asarray(kept, dtype=np.intp).reshape(-1)


def suppress_nested(boxes: Floats, scores: Floats, share: float = 0.8) -> Indices:
    """Drop boxes that lie inside a better one, or swallow it, by more than `share` of the smaller.

    Intersection over union does not see these: an eye taken for a face inside a large face.
    boxes: (N, 4). scores: (N,). Returns the indices kept, best score first. N should be small:
    the work grows with its square.
    """
    order = np.argsort(-scores, kind="stable")
    area = areas(boxes)
    kept: list[int] = []
    for index in order:
        if kept:
            shared = intersections(boxes[index : index + 1], boxes[kept])[0]
            smaller = np.maximum(np.minimum(area[index], area[kept]), 1e-12)
            if np.any(shared > share * smaller):
                continue
        kept.append(int(index))
    return np.asarray(kept, dtype=np.intp)
