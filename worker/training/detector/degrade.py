"""Seeded degradations of a scene: colour, blur, noise, compression and occlusion.

Every function takes and gives uint8 BGR [H, W, 3] and a ``numpy.random.Generator``.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Rng = np.random.Generator
#: B, G, R weights of luma, ITU-R BT.601.
_LUMA = np.array([0.114, 0.587, 0.299], np.float32)


def _u8(image: NDArray[np.float32]) -> Image:
    return np.clip(image, 0, 255).astype(np.uint8)


def gray(image: Image, rng: Rng) -> Image:
    """Black and white."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def sepia(image: Image, rng: Rng) -> Image:
    """A brown, faded or bluish toned black-and-white print."""
    tone = np.array(
        [rng.uniform(0.55, 1.1), rng.uniform(0.8, 1.05), rng.uniform(0.9, 1.15)], np.float32
    )
    floor = np.float32(rng.uniform(0, 50))
    luma = image.astype(np.float32) @ _LUMA
    return _u8(((floor + luma[..., None] * (255 - floor) / 255) * tone).astype(np.float32))


def tint(image: Image, rng: Rng) -> Image:
    """Gains per channel, as under another light."""
    table = np.arange(256, dtype=np.float32)[:, None] * rng.uniform(0.6, 1.4, 3).astype(np.float32)
    return cv2.LUT(image, _u8(table).reshape(1, 256, 3))


def contrast(image: Image, rng: Rng) -> Image:
    """Contrast about a random grey, brightness and gamma."""
    levels = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.7, 0.7))
    levels = (levels - 0.5) * np.exp(rng.uniform(-1.1, 0.5)) + 0.5 + rng.uniform(-0.2, 0.2)
    return cv2.LUT(image, _u8((levels * 255).astype(np.float32)))


def hue(image: Image, rng: Rng) -> Image:
    """Turn the hue a little and scale the saturation."""
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    shift, gain = int(rng.integers(-15, 16)), rng.uniform(0.3, 1.8)
    index = np.arange(256)
    table = np.stack([(index + shift) % 180, np.clip(index * gain, 0, 255), index], -1)
    return cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8).reshape(1, 256, 3)), cv2.COLOR_HSV2BGR)


def blur(image: Image, rng: Rng) -> Image:
    """A Gaussian blur, sigma 0.4..2.5 px."""
    return cv2.GaussianBlur(image, (0, 0), float(np.exp(rng.uniform(np.log(0.4), np.log(2.5)))))


def motion(image: Image, rng: Rng) -> Image:
    """A straight motion blur of 3..9 px."""
    size = int(rng.integers(1, 5)) * 2 + 1
    kernel = np.zeros((size, size), np.float32)
    angle, half = rng.uniform(0, np.pi), size // 2
    dx, dy = round(np.cos(angle) * half), round(np.sin(angle) * half)
    cv2.line(kernel, (half - dx, half - dy), (half + dx, half + dy), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def rescale(image: Image, rng: Rng) -> Image:
    """Lose detail: down by 1.3..3.5 and up again."""
    height, width = image.shape[:2]
    factor = rng.uniform(1.3, 3.5)
    small = (max(8, int(width / factor)), max(8, int(height / factor)))
    down = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    way = cv2.INTER_LINEAR if rng.random() < 0.6 else cv2.INTER_CUBIC
    return cv2.resize(down, (width, height), interpolation=way)


def sharpen(image: Image, rng: Rng) -> Image:
    """An unsharp mask."""
    amount = rng.uniform(0.3, 1.5)
    return cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.5), -amount, 0)


def noise(image: Image, rng: Rng) -> Image:
    """Gaussian noise, grey or per channel, coarse (film grain) in one case of three."""
    height, width = image.shape[:2]
    channels = 1 if rng.random() < 0.5 else 3
    step = 2 if rng.random() < 0.33 else 1
    shape = ((height + step - 1) // step, (width + step - 1) // step, channels)
    grain = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.exp(rng.uniform(0.7, 3.4)))
    if step > 1:
        grain = cv2.resize(grain, (width, height)).reshape(height, width, channels)
    return _u8(image + grain)


def jpeg(image: Image, rng: Rng) -> Image:
    """JPEG at quality 15..90."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 91))])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG: its build lacks the codec")
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("OpenCV could not decode its own JPEG")
    return decoded


def scratches(image: Image, rng: Rng) -> Image:
    """Light or dark scratches and spots, as on an old print."""
    out = image.copy()
    height, width = out.shape[:2]
    shade = (int(rng.integers(0, 256)),) * 3
    for _ in range(int(rng.integers(2, 9))):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        if rng.random() < 0.5:
            end = (x + int(rng.integers(-60, 61)), y + int(rng.integers(-200, 201)))
            cv2.line(out, (x, y), end, shade, 1, cv2.LINE_AA)
        else:
            cv2.circle(out, (x, y), int(rng.integers(1, 5)), shade, -1, cv2.LINE_AA)
    return out


def occlude(image: Image, rng: Rng) -> Image:
    """One to three opaque bars, discs or boxes of one colour or of noise."""
    out = image.copy()
    height, width = out.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        w, h = (int(rng.uniform(0.03, 0.25) * side) + 1 for side in (width, height))
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        kind = rng.integers(0, 3)
        if kind == 0:
            cv2.rectangle(out, (x, y), (x + w, y + h), colour, -1)
        elif kind == 1:
            cv2.ellipse(out, (x, y), (w // 2 + 1, h // 2 + 1), 0, 0, 360, colour, -1, cv2.LINE_AA)
        else:
            part = out[y : y + h, x : x + w]
            part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    return out


#: One step of each group at most, in this order: (chance, the steps to choose from).
_CHAIN: tuple[tuple[float, tuple[Callable[[Image, Rng], Image], ...]], ...] = (
    (0.10, (occlude,)),
    (0.45, (gray, gray, sepia, tint, hue)),
    (0.40, (contrast,)),
    (0.35, (blur, motion, rescale, sharpen)),
    (0.08, (scratches,)),
    (0.35, (noise,)),
    (0.40, (jpeg,)),
)


def degrade(image: Image, rng: Rng, strength: float = 1.0) -> Image:
    """Draw one chain of degradations; ``strength`` scales every step's chance."""
    for chance, steps in _CHAIN:
        if rng.random() < chance * strength:
            image = steps[int(rng.integers(0, len(steps)))](image, rng)
    return image
