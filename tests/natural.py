"""Photographs made by arithmetic, faces placed in them, and networks that are easy to check."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from face_restore_worker.pipeline.align import TEMPLATES, apply
from face_restore_worker.pipeline.types import Face

TILE = 1024
FACE_HEIGHT = 290.0
"""Height of a face's box in the 512 units of the FFHQ template, forehead to chin."""


@lru_cache(maxsize=1)
def natural_tile() -> np.ndarray:
    """(1024, 1024, 3) float32 in [0, 1]: amplitude 1/f as in photographs; it repeats seamlessly.

    D. J. Field, "Relations between the statistics of natural images and the response properties
    of cortical cells" (1987). The pixels' square aperture is included, as in a camera.
    """
    rng = np.random.default_rng(1927)
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    f = np.hypot(fy, fx)
    f[0, 0] = 1.0
    amplitude = np.sinc(fy) * np.sinc(fx) / f
    amplitude[0, 0] = 0
    planes = []
    for _ in range(3):
        phases = rng.normal(size=f.shape) + 1j * rng.normal(size=f.shape)
        plane = np.fft.irfft2(amplitude * phases, s=(TILE, TILE))
        planes.append(plane / plane.std())
    light, red, blue = planes
    rgb = np.stack([light + 0.3 * red, light, light + 0.3 * blue], axis=-1)
    return np.clip(0.5 + 0.16 * rgb, 0, 1).astype(np.float32)


def natural_photo(height: int, width: int, dtype: str = "uint8", shift: int = 0) -> np.ndarray:
    """(height, width, 3) of the dtype, cut from the repeated tile."""
    rows = (np.arange(height) + shift) % TILE
    columns = (np.arange(width) + 3 * shift) % TILE
    pixels = natural_tile()
    if dtype != "float32":
        full = np.iinfo(dtype).max
        pixels = np.rint(pixels * np.float32(full)).astype(dtype)
    return np.ascontiguousarray(pixels[rows][:, columns])


def place_face(size: float, angle: float, x: float, y: float, template: str = "ffhq") -> Face:
    """An upright face of the template's proportions, `size` pixels high, turned, centred at x, y.

    angle: radians, clockwise as seen. x, y: pixel-centre.
    """
    scale = size / FACE_HEIGHT
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    matrix = np.column_stack([linear, np.array([x, y]) - linear @ np.array([255.5, 285.5])])
    half = size / 2
    box = np.array([x - 0.8 * half, y - half, x + 0.8 * half, y + half]) + 0.5
    return Face(box=box, score=0.99, landmarks=apply(matrix, TEMPLATES[template] - 0.5))


def crop_scale(size: float, crop: int) -> float:
    """Crop pixels for each pixel of the photograph, for a face `size` pixels high."""
    return crop / 512 * FACE_HEIGHT / size


class Identity:
    """Gives back what it gets."""

    def __init__(self, size: int = 512) -> None:
        self.size = size
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


class Apply(Identity):
    """Applies a function to (N, 3, S, S) in [-1, 1]."""

    def __init__(self, function, size: int = 512) -> None:
        super().__init__(size)
        self.function = function

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.function(x)


def psnr(a: np.ndarray, b: np.ndarray, full: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays."""
    error = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(full**2 / error)
