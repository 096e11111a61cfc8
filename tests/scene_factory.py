"""Scenes whose faces are known: scikit-image's astronaut on made-up backgrounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

ASTRONAUT_BOX = np.array([180.0, 58.0, 270.0, 180.0])
ASTRONAUT_LANDMARKS = np.array(
    [(203.5, 102.0), (246.0, 103.0), (224.0, 129.0), (204.5, 143.5), (243.0, 144.5)]
)
"""Pixel-centre, read off the picture to about two pixels."""
_HEAD = (135, 0, 315, 225)


@dataclass(frozen=True, eq=False)
class Truth:
    """A face put into a scene: box (4,) pixel-edge, landmarks (5, 2) pixel-centre."""

    box: Floats
    landmarks: Floats

    @property
    def height(self) -> float:
        return float(self.box[3] - self.box[1])


@lru_cache(maxsize=1)
def astronaut() -> Pixels:
    """Eileen Collins, 1999 (NASA, public domain): (512, 512, 3) uint8, read-only."""
    import skimage.data

    picture: Pixels = skimage.data.astronaut()
    picture.flags.writeable = False
    return picture


def background(width: int, height: int, seed: int = 0) -> Pixels:
    """Soft clouds of colour with fine grain, no faces: (height, width, 3) uint8."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 200, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8)
    clouds = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = random.integers(0, 12, (height, width, 1), dtype=np.uint8)
    return np.minimum(clouds, 243) + grain


def paste_astronaut(
    scene: Pixels, x: float, y: float, face_height: float, degrees: float = 0.0
) -> Truth:
    """Paste the astronaut's head with a soft edge, the face's centre at (x, y) (pixel-edge).

    face_height: of the upright face's box in pixels. degrees: turn from the x axis towards y.
    """
    source = astronaut()[_HEAD[1] : _HEAD[3], _HEAD[0] : _HEAD[2]]
    scale = face_height / (ASTRONAUT_BOX[3] - ASTRONAUT_BOX[1])
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = (ASTRONAUT_BOX[:2] + ASTRONAUT_BOX[2:]) / 2
    offset = np.array([x, y]) - linear @ middle
    if scale < 1:  # warpAffine does not average; sigma of a box filter of 1 / scale pixels
        sigma = math.sqrt(max(1 / scale**2 - 1, 0) / 12)
        source = cv2.GaussianBlur(source, (0, 0), max(sigma, 0.01))
    rows, columns = source.shape[:2]
    soft = np.zeros((rows, columns), np.float32)
    cv2.ellipse(
        soft, (columns // 2, rows // 2), (columns // 2 - 14, rows // 2 - 14), 0, 0, 360, 1, -1
    )
    soft = cv2.GaussianBlur(soft, (0, 0), 5)
    # from pixel centres of `source` to pixel centres of the scene
    crop_offset = linear @ (np.array(_HEAD[:2]) + 0.5) + offset - 0.5
    matrix = np.concatenate([linear, crop_offset[:, None]], axis=1)
    size = (scene.shape[1], scene.shape[0])
    face = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(soft, matrix, size, flags=cv2.INTER_LINEAR)[..., None]
    scene[:] = np.round(scene * (1 - mask) + face * mask).astype(np.uint8)
    landmarks = (ASTRONAUT_LANDMARKS + 0.5) @ linear.T + offset - 0.5
    half = (ASTRONAUT_BOX[2:] - ASTRONAUT_BOX[:2]) / 2 * scale
    turn = math.radians(degrees)
    reach = np.hypot(half * math.cos(turn), half[::-1] * math.sin(turn))
    centre = np.array([x, y])
    return Truth(np.concatenate([centre - reach, centre + reach]), landmarks)


def as_depth(scene: Pixels, dtype: Any) -> NDArray[Any]:
    """The same picture as uint8, uint16 or float32 in [0, 1]."""
    if dtype == np.uint16:
        return scene.astype(np.uint16) * 257
    if dtype == np.float32:
        return scene.astype(np.float32) / 255
    return scene
