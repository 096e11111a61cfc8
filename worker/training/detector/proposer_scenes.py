"""Scenes of small faces whose places are known, for the proposer: seeded, face or no face.

A scene is uint8 BGR [size, size, 3]; its truths are rows of centre x, centre y, side (px, the
geometric mean of the face's box) and whether the face is whole (1) or may be covered (0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from degrade import Image, Rng, degrade
from numpy.typing import NDArray
from portraits import Portrait
from scenes import SceneMaker, log_uniform

Truths = NDArray[np.float32]

#: scikit-image's bundled pictures without a person: to learn from, and kept for judging.
NATURAL = (
    *("brick", "cell", "chelsea", "chessboard_RGB", "clock_motion", "color", "coins", "grass"),
    *("hubble_deep_field", "ihc", "moon", "motorcycle_left", "page", "rocket", "text"),
)
NATURAL_HELD_OUT = ("coffee", "gravel", "retina", "microaneurysms", "chessboard_GRAY")


def natural_pictures(names: Sequence[str]) -> list[Image]:
    """scikit-image's bundled pictures of these names, uint8 BGR."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    files = [str(sorted(folder.glob(f"{name}.*"))[0]) for name in names]
    return [cv2.imread(file, cv2.IMREAD_COLOR) for file in files]


class SmallFaces(SceneMaker):
    """Composes scenes of faces from 8 to 130 px and keeps where each was put."""

    def __init__(
        self, portraits: Sequence[Portrait], natural: Sequence[Image], rng: Rng, pool: int = 160
    ) -> None:
        super().__init__(portraits, rng, pool)
        self.natural = list(natural)
        self.truths: list[list[float]] = []

    def backdrop(self, size: int, rng: Rng) -> Image:
        """A made-up background, or a piece of a photograph at any scale."""
        if rng.random() < 0.5:
            return super().backdrop(size, rng)
        source = self.natural[int(rng.integers(0, len(self.natural)))]
        shortest = min(source.shape[:2])
        edge = int(min(log_uniform(rng, size / 4, size * 3), shortest))
        y, x = (int(rng.integers(0, length - edge + 1)) for length in source.shape[:2])
        cut = source[y : y + edge, x : x + edge]
        way = cv2.INTER_AREA if edge > size else cv2.INTER_CUBIC
        cut = np.rot90(cut, int(rng.integers(0, 4))) if rng.random() < 0.3 else cut
        return cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=way)

    def paste(
        self,
        canvas: Image,
        portrait: Portrait,
        rng: Rng,
        centre: tuple[float, float],
        face: float,
        cut: str,
    ) -> None:
        """As SceneMaker.paste; the faces this may cover count as unknown from then on."""
        reach = face * (2.5 if cut == "whole" else 1.2)
        for truth in self.truths:
            if max(abs(truth[0] - centre[0]), abs(truth[1] - centre[1])) < reach + truth[2] / 2:
                truth[3] = 0.0
        super().paste(canvas, portrait, rng, centre, face, cut)
        self.truths.append([centre[0], centre[1], face, 1.0])

    def small(self, size: int, rng: Rng) -> Image:
        """A few faces, mostly small, on a background."""
        canvas = self.backdrop(size, rng)
        for _ in range(int(rng.integers(1, 7))):
            face = log_uniform(rng, 9, 130 if rng.random() < 0.35 else 50)
            cut = ("whole", "head", "oval", "oval")[int(rng.integers(0, 4))]
            x, y = rng.uniform(0, size, 2)
            self.paste(canvas, self.random_face(rng), rng, (float(x), float(y)), face, cut)
        return canvas

    def group(self, size: int, rng: Rng) -> Image:
        """Rows of small heads, as in a group photograph."""
        canvas = self.backdrop(size, rng)
        face = log_uniform(rng, 10, 45)
        y = face * rng.uniform(0.3, 1.2)
        while y < size:
            x = face * rng.uniform(0, 1.5)
            while x < size:
                this = face * float(np.exp(rng.normal(0, 0.12)))
                centre = (float(x), float(y + rng.normal(0, face * 0.15)))
                self.paste(canvas, self.random_face(rng), rng, centre, this, "oval")
                x += face * rng.uniform(1.4, 4)
            y += face * rng.uniform(1.6, 4)
        return canvas

    def labelled(self, size: int, rng: Rng) -> tuple[Image, Truths]:
        """One scene, degraded, and its truths [n, 4]; every third shows no face."""
        self.truths = []
        kind = rng.random()
        if kind < 0.35:
            canvas = self.backdrop(size, rng)
        else:
            canvas = self.small(size, rng) if kind < 0.8 else self.group(size, rng)
        canvas = degrade(canvas, rng, 0.7)
        return canvas, np.array(self.truths, np.float32).reshape(-1, 4)
