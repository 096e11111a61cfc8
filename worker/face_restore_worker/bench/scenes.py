"""Photographs to time the whole job with: a size in megapixels and a number of faces."""

from __future__ import annotations

import math
from importlib import util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from face_restore_shared.schema import FaceTarget

#: Of the demo's photograph (512 x 512): head to cut out, box and landmarks of its face.
_HEAD = (135, 0, 315, 225)
_BOX = (180.0, 58.0, 270.0, 180.0)
_LANDMARKS = ((203.5, 102.0), (246.0, 103.0), (224.0, 129.0), (204.5, 143.5), (243.0, 144.5))
_FACE_HEIGHT = 0.2  # of the photograph's height


def has_photograph() -> bool:
    """Whether the demo's photograph (in scikit-image) is in this environment."""
    return util.find_spec("skimage") is not None


def scene(megapixels: float, faces: int) -> tuple[np.ndarray, tuple[FaceTarget, ...]]:
    """A 3:2 photograph of noise and clouds with faces in a row, each 20 % of its height.

    The faces are Eileen Collins's (NASA, public domain) where scikit-image is installed, else
    drawn ones, which detectors need not find.

    Returns:
        (H, W, 3) uint8 RGB, and where the faces are.
    """
    import cv2
    import numpy as np
    from face_restore_shared.schema import FaceTarget

    width = round(math.sqrt(megapixels * 1e6 * 1.5))
    height = round(width / 1.5)
    picture = _background(width, height)
    head, scale = _head(), _FACE_HEIGHT * height / (_BOX[3] - _BOX[1])
    size = (round(head.shape[1] * scale), round(head.shape[0] * scale))
    head = cv2.resize(head, size, interpolation=cv2.INTER_CUBIC)
    soft = np.zeros(head.shape[:2], np.float32)
    radii = (round(size[0] * 0.42), round(size[1] * 0.42))
    cv2.ellipse(soft, (size[0] // 2, size[1] // 2), radii, 0, 0, 360, 1, -1)
    soft = cv2.GaussianBlur(soft, (0, 0), size[0] * 0.03)[..., None]
    targets = []
    for number in range(faces):
        x = round(width * (number + 0.5) / faces - size[0] / 2)
        y = (height - size[1]) // 2
        left, right = max(x, 0), min(x + size[0], width)
        part = picture[y : y + size[1], left:right]
        cut = slice(left - x, right - x)
        part[:] = np.rint(part * (1 - soft[:, cut]) + head[:, cut] * soft[:, cut])
        corner = np.array([x, y]) - np.array(_HEAD[:2]) * scale
        box = np.array(_BOX) * scale + np.tile(corner, 2)
        points = (np.array(_LANDMARKS) + 0.5) * scale + corner - 0.5
        landmarks = tuple(map(tuple, points.tolist()))
        targets.append(FaceTarget(box=tuple(box.tolist()), landmarks=landmarks, score=1.0))
    return picture, tuple(targets)


def _background(width: int, height: int) -> np.ndarray:
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    coarse = random.integers(40, 200, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8)
    clouds = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = random.integers(0, 12, (height, width, 1), dtype=np.uint8)
    return np.minimum(clouds, 243) + grain


def _head() -> np.ndarray:
    """(225, 180, 3) uint8 RGB, the face where `_BOX` and `_LANDMARKS` say."""
    x0, y0, x1, y1 = _HEAD
    if has_photograph():
        from skimage import data

        return data.astronaut()[y0:y1, x0:x1]
    import cv2
    import numpy as np

    drawn = np.full((y1 - y0, x1 - x0, 3), (206, 160, 136), np.uint8)
    points = [(round(x - x0), round(y - y0)) for x, y in _LANDMARKS]
    for eye in points[:2]:
        cv2.ellipse(drawn, eye, (11, 6), 0, 0, 360, (245, 245, 245), -1, cv2.LINE_AA)
        cv2.circle(drawn, eye, 5, (60, 40, 30), -1, cv2.LINE_AA)
    cv2.ellipse(drawn, points[2], (8, 5), 0, 0, 180, (150, 100, 90), 2, cv2.LINE_AA)
    cv2.line(drawn, points[3], points[4], (150, 60, 60), 5, cv2.LINE_AA)
    return drawn
