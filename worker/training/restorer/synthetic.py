"""Synthetic clean pictures for training a restorer without photographs.

Dead leaves (occluding shapes whose radii follow a power law; Lee, Mumford and Huang, "Occlusion
models for natural images", 2001) have edge and scale statistics like photographs and no content;
smooth gradients teach the network to leave skies and skin alone; textures (power-law noise,
stripes, hatching, halftone dots) teach it what fine structure looks like.

Every function takes a ``numpy.random.Generator`` and is deterministic given its state. Pictures
are (size, size, 3) uint8, RGB.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float32]

#: Drawn this many times larger and averaged down, which gives anti-aliased edges.
_OVERSAMPLING = 2


def power_law_noise(rng: np.random.Generator, size: int, exponent: float) -> Float:
    """Random field with amplitude spectrum 1 / f**exponent, (size, size), in [0, 1]."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency**exponent
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(size, size))
    low, high = np.percentile(field, (1, 99))
    return np.clip((field - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)


def gradient(rng: np.random.Generator, size: int) -> Float:
    """Smooth two-colour ramp, linear or radial, (size, size, 3) in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = x * np.cos(angle) + y * np.sin(angle)
    else:
        ramp = np.hypot(x - rng.uniform(-0.2, 1.2), y - rng.uniform(-0.2, 1.2))
    ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
    ramp = ramp ** rng.uniform(0.5, 2.0)
    first, second = _colour(rng), _colour(rng)
    mixed: Float = (first + ramp[..., None] * (second - first)).astype(np.float32)
    return mixed


def texture(rng: np.random.Generator, size: int) -> Float:
    """One of power-law noise, stripes, crossed hatching or halftone dots, coloured."""
    kind = rng.integers(4)
    if kind == 0:
        pattern = power_law_noise(rng, size, rng.uniform(0.8, 2.0))
    else:
        pattern = _waves(rng, size)
        if kind == 2:
            pattern = np.maximum(pattern, _waves(rng, size))
        elif kind == 3:
            pattern = pattern * _waves(rng, size)
    first, second = _colour(rng), _colour(rng)
    mixed: Float = (first + pattern[..., None] * (second - first)).astype(np.float32)
    return mixed


def dead_leaves(rng: np.random.Generator, size: int, shapes: int = 350) -> Image:
    """Overlapping discs, ellipses, rectangles, triangles and strokes, each filled its own way."""
    large = size * _OVERSAMPLING
    canvas = (gradient(rng, large) * 255).astype(np.float32)
    palette = [_colour(rng) * 255 for _ in range(int(rng.integers(4, 14)))]
    fills = [(texture(rng, large) if rng.random() < 0.5 else gradient(rng, large)) * 255
             for _ in range(3)]  # fmt: skip
    # Radius density ~ r**-3 between the two limits, by inversion of the distribution function.
    # A lower limit of a few pixels keeps small leaves from crowding out the large.
    smallest = np.exp(rng.uniform(np.log(1.5), np.log(10))) * _OVERSAMPLING
    largest = large / rng.uniform(2.5, 6)
    uniform = np.sort(rng.random(shapes))
    radii = (uniform * largest**-2.0 + (1 - uniform) * smallest**-2.0) ** -0.5
    for radius in rng.permutation(radii):
        colour = palette[rng.integers(len(palette))] + rng.normal(0, 8, 3)
        _draw_leaf(rng, canvas, float(radius), np.clip(colour, 0, 255), fills)
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return np.clip(small + 0.5, 0, 255).astype(np.uint8)


def synthetic_picture(rng: np.random.Generator, size: int) -> Image:
    """A dead-leaves picture (mostly), a plain texture or a plain gradient, some of them gray."""
    choice = rng.random()
    if choice < 0.8:
        picture = dead_leaves(rng, size)
    else:
        large = size * _OVERSAMPLING
        plain = texture(rng, large) if choice < 0.93 else gradient(rng, large)
        small = cv2.resize(plain, (size, size), interpolation=cv2.INTER_AREA)
        picture = np.clip(small * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return picture


def _colour(rng: np.random.Generator) -> Float:
    """A muted random colour in [0, 1]: gray plus a limited deviation."""
    spread = 0.12 if rng.random() < 0.7 else 0.35
    return np.clip(rng.uniform(0, 1) + rng.normal(0, spread, 3), 0, 1).astype(np.float32)


def _waves(rng: np.random.Generator, size: int) -> Float:
    """Sinusoidal or hard-edged stripes, slightly bent, (size, size) in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(6), np.log(50)))
    bend = rng.uniform(0, period) * np.sin(y / rng.uniform(20, 120) + rng.uniform(0, 6))
    phase = (x * np.cos(angle) + y * np.sin(angle) + bend) * (2 * np.pi / period)
    wave = np.sin(phase) * rng.choice([1.0, 2.0, 6.0])
    stripes: Float = (np.clip(wave, -1, 1) * 0.5 + 0.5).astype(np.float32)
    return stripes


def _draw_leaf(
    rng: np.random.Generator, canvas: Float, radius: float, colour: Float, fills: list[Float]
) -> None:
    """Paint one shape over the canvas in place."""
    size = canvas.shape[0]
    cx, cy = (float(v) for v in rng.uniform(-0.05 * size, 1.05 * size, 2))
    kind = rng.integers(5)
    reach = int(radius * 2.2) + 2
    x0, y0 = max(int(cx) - reach, 0), max(int(cy) - reach, 0)
    x1, y1 = min(int(cx) + reach, size), min(int(cy) + reach, size)
    if x1 <= x0 or y1 <= y0:
        return
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    centre = (int(cx) - x0, int(cy) - y0)
    angle = float(rng.uniform(0, 360))
    if kind == 0:
        cv2.circle(mask, centre, max(int(radius), 1), 255, -1)
    elif kind == 1:
        axes = (max(int(radius * rng.uniform(1, 2)), 1), max(int(radius * rng.uniform(0.3, 1)), 1))
        cv2.ellipse(mask, centre, axes, angle, 0, 360, 255, -1)
    elif kind == 4:
        end = np.array(centre) + 2 * radius * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(mask, centre, (int(end[0]), int(end[1])), 255, int(rng.integers(1, 6)))
    else:
        corners = 4 if kind == 2 else 3
        turns = np.deg2rad(angle) + np.arange(corners) * 2 * np.pi / corners
        points = np.array(centre) + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
        cv2.fillPoly(mask, [points.astype(np.int32)], 255)
    inside = mask > 0
    if radius > 12 and rng.random() < 0.4:
        patch = fills[rng.integers(len(fills))][y0:y1, x0:x1]
        blend = rng.uniform(0.3, 1.0)
        canvas[y0:y1, x0:x1][inside] = (blend * patch + (1 - blend) * colour)[inside]
    else:
        canvas[y0:y1, x0:x1][inside] = colour
