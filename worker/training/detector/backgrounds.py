"""Backgrounds without faces: dead leaves, gradients, textures, letters, stripes, scraps."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from degrade import Image, Rng, _u8


def dead_leaves(size: int, rng: Rng) -> Image:
    """Overlapping discs and polygons with radii after a power law (as in natural images)."""
    out = np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
    base, spread = rng.uniform(30, 225, 3), rng.uniform(10, 90)
    for _ in range(int(rng.integers(60, 350))):
        radius = int(min(4 / np.sqrt(rng.uniform(1e-4, 1)), size / 3))
        x, y = (int(v) for v in rng.integers(0, size, 2))
        colour = tuple(float(c) for c in np.clip(rng.normal(base, spread), 0, 255))
        if rng.random() < 0.5:
            axes = (radius, max(1, int(radius * rng.uniform(0.4, 1))))
            cv2.ellipse(out, (x, y), axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            corners = np.array([x, y]) + rng.normal(0, radius, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(out, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    return out


def gradient(size: int, rng: Rng) -> Image:
    """A smooth field between random corner colours, as of a studio backdrop."""
    knots = int(rng.integers(2, 5))
    field = rng.uniform(0, 255, (knots, knots, 3)).astype(np.float32)
    return _u8(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))


def clouds(size: int, rng: Rng) -> Image:
    """Noise of several octaves with a random spectrum slope."""
    total = np.zeros((size, size, 3), np.float32)
    slope = rng.uniform(0.4, 1.1)
    for octave in range(1, 8):
        knots = min(2**octave + 1, size)
        grain = rng.standard_normal((knots, knots, 3)).astype(np.float32)
        if rng.random() < 0.5:
            grain = grain.mean(-1, keepdims=True).repeat(3, -1)
        total += cv2.resize(grain, (size, size), interpolation=cv2.INTER_CUBIC) * slope**octave
    total *= rng.uniform(15, 70) / (total.std() + 1e-6)
    return _u8(total + rng.uniform(40, 215, 3).astype(np.float32))


def letters(size: int, rng: Rng) -> Image:
    """Rows of random letters and digits, as of a page, a sign or a caption."""
    paper = rng.integers(0, 256, 3)
    out = np.full((size, size, 3), paper, np.uint8)
    scale = float(np.exp(rng.uniform(np.log(0.3), np.log(3))))
    ink = tuple(int(c) for c in 255 - paper)
    alphabet = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;()OoQ0@&% ")
    for y in range(int(20 * scale), size + 20, max(6, int(rng.uniform(26, 40) * scale))):
        line = "".join(rng.choice(alphabet, 70))
        font = int(rng.integers(0, 8))
        cv2.putText(out, line, (-5, y), font, scale, ink, int(rng.integers(1, 4)), cv2.LINE_AA)
    return out


def stripes(size: int, rng: Rng) -> Image:
    """Stripes, checks, dots or bricks of two colours with some shading."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), float(np.exp(rng.uniform(np.log(4), np.log(120))))
    u = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    v = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    kind = rng.integers(0, 4)
    wave = (np.sin(u), np.sin(u) * np.sin(v), np.sin(u) + np.sin(v), np.sin(u + np.sin(v)))[kind]
    if rng.random() < 0.6:
        wave = np.tanh(wave * rng.uniform(1, 8))
    low, high = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    mix = (wave[..., None] - wave.min()) / (np.ptp(wave) + 1e-6)
    return _u8(
        low
        + (high - low) * mix
        + cv2.resize(rng.normal(0, 15, (6, 6, 3)).astype(np.float32), (size, size))
    )


def blobs(size: int, rng: Rng) -> Image:
    """Roundish shapes with dark spots or bars: face-like to a careless detector, but no face."""
    out = clouds(size, rng) if rng.random() < 0.5 else gradient(size, rng)
    for _ in range(int(rng.integers(3, 20))):
        radius = int(np.exp(rng.uniform(np.log(8), np.log(size / 5))))
        x, y = (int(c) for c in rng.integers(0, size, 2))
        skin = tuple(float(c) for c in rng.uniform(40, 240, 3))
        axes = (radius, int(radius * rng.uniform(0.8, 1.4)))
        cv2.ellipse(out, (x, y), axes, rng.uniform(-30, 30), 0, 360, skin, -1, cv2.LINE_AA)
        for _ in range(int(rng.integers(0, 5))):
            dx, dy = (int(d) for d in rng.normal(0, radius / 2.5, 2))
            dark = tuple(float(c) for c in rng.uniform(0, 120, 3))
            part = (max(1, int(radius * rng.uniform(0.05, 0.4))), max(1, radius // 8))
            cv2.ellipse(out, (x + dx, y + dy), part, rng.uniform(0, 180), 0, 360, dark, -1)
    return cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 2))


def scraps(size: int, rng: Rng, parts: Sequence[Image]) -> Image:
    """A patchwork of portrait parts without the face, some turned, mirrored, blurred, scrambled."""
    out = gradient(size, rng)
    cell = int(np.exp(rng.uniform(np.log(size / 8), np.log(size))))
    for top in range(0, size, cell):
        for left in range(0, size, cell):
            part = parts[int(rng.integers(0, len(parts)))]
            part = cv2.resize(part, (cell, cell), interpolation=cv2.INTER_AREA)
            if rng.random() < 0.3:
                part = np.rot90(part, int(rng.integers(1, 4)))
            if rng.random() < 0.5:
                part = part[:, ::-1]
            part = np.ascontiguousarray(part)
            if rng.random() < 0.15:
                part = cv2.GaussianBlur(part, (0, 0), cell / rng.uniform(8, 40))
            half = cell // 2
            if rng.random() < 0.15 and half > 4:
                quarters = [
                    part[i : i + half, j : j + half].copy() for i in (0, half) for j in (0, half)
                ]
                order = rng.permutation(4)
                for k, (i, j) in enumerate(((0, 0), (0, half), (half, 0), (half, half))):
                    part[i : i + half, j : j + half] = quarters[order[k]]
            target = out[top : top + cell, left : left + cell]
            target[:] = part[: target.shape[0], : target.shape[1]]
    return out


_KINDS = (dead_leaves, gradient, clouds, letters, stripes, blobs)


def background(size: int, rng: Rng, parts: Sequence[Image]) -> Image:
    """One random face-free background, uint8 BGR [size, size, 3]; ``parts``: face-free scraps."""
    if len(parts) and rng.random() < 0.45:
        return scraps(size, rng, parts)
    return _KINDS[int(rng.integers(0, len(_KINDS)))](size, rng)
