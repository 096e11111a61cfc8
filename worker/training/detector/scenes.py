"""Scenes made of portraits: seeded, of many scales and layouts, with and without faces.

A scene is uint8 BGR [size, size, 3]. No labels come with it: the teacher gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from backgrounds import background
from degrade import Image, Rng, degrade
from portraits import Portrait, face_free_parts


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A draw whose logarithm is uniform between ``low`` and ``high``."""
    return float(np.exp(rng.uniform(np.log(low), np.log(max(high, low * 1.01)))))


def draw_angle(rng: Rng) -> float:
    """Degrees: mostly within some 8, in one case of six up to 45 either way."""
    return float(rng.uniform(-45, 45) if rng.random() < 0.17 else rng.normal(0, 6))


class SceneMaker:
    """Composes scenes of ``portraits``; keeps a pool of backgrounds, as these are slow to draw."""

    def __init__(self, portraits: Sequence[Portrait], rng: Rng, pool: int = 160) -> None:
        """Raise ValueError if no portrait has a face."""
        self.portraits = list(portraits)
        self.faces = [p for p in portraits if p.box is not None]
        if not self.faces:
            raise ValueError("no portrait with a face: scenes need at least one")
        self.parts = face_free_parts(self.faces)
        self.pool = [background(640, rng, self.parts) for _ in range(pool)]

    def backdrop(self, size: int, rng: Rng) -> Image:
        """A background from the pool (now and then replaced): cropped, mirrored, scaled."""
        slot = int(rng.integers(0, len(self.pool)))
        if rng.random() < 0.05:
            self.pool[slot] = background(640, rng, self.parts)
        source = self.pool[slot]
        edge = int(rng.integers(200, 641))
        x, y = (int(v) for v in rng.integers(0, 641 - edge, 2))
        cut = source[y : y + edge, x : x + edge]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        way = cv2.INTER_AREA if edge > size else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=way)

    def scrap(self, size: int, rng: Rng) -> Image:
        """A patchwork without faces."""
        return self.backdrop(size, rng)

    def paste(
        self,
        canvas: Image,
        portrait: Portrait,
        rng: Rng,
        centre: tuple[float, float],
        face: float,
        cut: str,
    ) -> None:
        """Warp a portrait onto the canvas, its face ``face`` px at ``centre``.

        ``cut``: "whole" portrait, "head" (a box about it) or "oval" (a soft ellipse about it).
        """
        image, box = portrait.image, portrait.face_box
        scale = face / portrait.face_size
        if cut != "whole":
            width, height = box[2] - box[0], box[3] - box[1]
            left, right, up, down = rng.uniform(0.25, 0.9, 4)
            x0, y0 = max(0, int(box[0] - left * width)), max(0, int(box[1] - up * height))
            image = image[y0 : int(box[3] + down * height), x0 : int(box[2] + right * width)]
            middle = np.array([(box[0] + box[2]) / 2 - x0, (box[1] + box[3]) / 2 - y0])
        else:
            middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        if scale < 0.7:
            shape = (max(2, round(image.shape[1] * scale)), max(2, round(image.shape[0] * scale)))
            middle = middle * (shape[0] / image.shape[1], shape[1] / image.shape[0])
            image, scale = cv2.resize(image, shape, interpolation=cv2.INTER_AREA), 1.0
        _warp(canvas, image, rng, centre, middle, scale, cut == "oval")

    def random_face(self, rng: Rng) -> Portrait:
        """A portrait with a face."""
        return self.faces[int(rng.integers(0, len(self.faces)))]

    def grid(self, size: int, rng: Rng) -> Image:
        """A mosaic: portraits fill the cells; some cells are empty or hold scraps."""
        canvas = self.backdrop(size, rng)
        face = log_uniform(rng, 12, size * 0.4)
        cell = int(face * rng.uniform(1.4, 3.2)) + 2
        shift = int(rng.integers(0, cell))
        filled = rng.uniform(0.5, 1)
        for top in range(-shift, size, cell):
            for left in range(-shift, size, cell):
                if rng.random() > filled:
                    continue
                portrait = self.portraits[int(rng.integers(0, len(self.portraits)))]
                tile = _cover(portrait, cell, face, rng)
                if rng.random() < 0.5:
                    tile = tile[:, ::-1]
                y0, x0 = max(top, 0), max(left, 0)
                target = canvas[y0 : top + cell, x0 : left + cell]
                target[:] = tile[y0 - top :, x0 - left :][: target.shape[0], : target.shape[1]]
        return canvas

    def scatter(self, size: int, rng: Rng) -> Image:
        """Portraits and heads of many sizes strewn over a background, some over others."""
        canvas = self.backdrop(size, rng)
        for _ in range(int(rng.integers(1, 9))):
            face = log_uniform(rng, 12, size * 0.5)
            cut = ("whole", "head", "oval")[int(rng.integers(0, 3))]
            centre = rng.uniform(0, size, 2)
            self.paste(canvas, self.random_face(rng), rng, (centre[0], centre[1]), face, cut)
        return canvas

    def crowd(self, size: int, rng: Rng) -> Image:
        """Rows of heads of similar size, as in a group photograph, torsos below them."""
        canvas = self.backdrop(size, rng)
        face = log_uniform(rng, 12, size / 4)
        y = face * rng.uniform(0.3, 1.2)
        while y < size + face / 2:
            x = face * rng.uniform(0, 1.5)
            while x < size + face / 2:
                centre = (x, y + rng.normal(0, face * 0.15))
                cut = ("whole", "oval", "oval")[int(rng.integers(0, 3))]
                this = face * float(np.exp(rng.normal(0, 0.12)))
                self.paste(canvas, self.random_face(rng), rng, centre, this, cut)
                x += face * rng.uniform(1.2, 2.6)
            y += face * rng.uniform(1.5, 3)
        return canvas

    def close_up(self, size: int, rng: Rng) -> Image:
        """One large face, up to 600 px, perhaps partly outside."""
        canvas = self.backdrop(size, rng)
        face = log_uniform(rng, size * 0.25, min(600, size * 1.6))
        centre = rng.uniform(0.3, 0.7, 2) * size
        self.paste(canvas, self.random_face(rng), rng, (centre[0], centre[1]), face, "whole")
        return canvas

    def plain(self, size: int, rng: Rng) -> Image:
        """A portrait as it is: fitted into the scene, the rest background."""
        portrait = self.portraits[int(rng.integers(0, len(self.portraits)))]
        canvas = self.backdrop(size, rng)
        height, width = portrait.image.shape[:2]
        scale = size / max(height, width) * rng.uniform(0.5, 1.3)
        shape = (max(8, int(width * scale)), max(8, int(height * scale)))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        tile = cv2.resize(portrait.image, shape, interpolation=way)[:size, :size]
        if rng.random() < 0.5:
            tile = tile[:, ::-1]
        y, x = (int(rng.integers(0, size - side + 1)) for side in tile.shape[:2])
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        return canvas

    def scene(self, size: int, rng: Rng, strength: float = 1.0) -> Image:
        """One scene of a random layout, degraded."""
        makers = (self.grid, self.scatter, self.crowd, self.close_up, self.plain, self.scrap)
        maker = makers[int(rng.choice(6, p=(0.2, 0.26, 0.16, 0.14, 0.1, 0.14)))]
        return degrade(maker(size, rng), rng, strength)


def _cover(portrait: Portrait, cell: int, face: float, rng: Rng) -> Image:
    """Scale a portrait so that it fills a ``cell`` px wide cell; cut that out near the face."""
    image = portrait.image
    height, width = image.shape[:2]
    least = cell / min(height, width)
    scale = least if portrait.box is None else max(least, face / portrait.face_size)
    shape = (max(cell, round(width * scale)), max(cell, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, shape, interpolation=way)
    if portrait.box is None:
        middle = rng.uniform(0.3, 0.7, 2) * shape
    else:
        middle = (portrait.box[:2] + portrait.box[2:]) / 2 * scale
    middle = middle + rng.normal(0, 0.1 * cell, 2)
    x = int(np.clip(middle[0] - cell / 2, 0, shape[0] - cell))
    y = int(np.clip(middle[1] - cell / 2, 0, shape[1] - cell))
    return image[y : y + cell, x : x + cell]


def _warp(
    canvas: Image,
    image: Image,
    rng: Rng,
    centre: tuple[float, float],
    middle: np.ndarray,
    scale: float,
    oval: bool,
) -> None:
    """Turn, mirror, colour and lay ``image`` on ``canvas``, its ``middle`` at ``centre``."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image, middle = (
            np.ascontiguousarray(image[:, ::-1]),
            np.array([width - middle[0], middle[1]]),
        )
    if rng.random() < 0.3:
        image = degrade(image, rng, 0.5) if min(height, width) > 12 else image
    angle = np.deg2rad(draw_angle(rng))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    if rng.random() < 0.3:
        turn = turn @ np.diag(np.exp(rng.normal(0, 0.06, 2)))
    shift = np.array(centre) - turn @ middle
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn.T + shift
    low = np.clip(np.floor(corners.min(0)), 0, canvas.shape[1]).astype(int)
    high = np.clip(np.ceil(corners.max(0)), 0, canvas.shape[0]).astype(int)
    if (high - low).min() < 2:
        return
    matrix = np.column_stack([turn, shift - low])
    window = (int(high[0] - low[0]), int(high[1] - low[1]))
    mask = np.full((height, width), 255, np.uint8)
    if oval:
        mask[:] = 0
        half = (int(width * 0.48), int(height * 0.48))
        cv2.ellipse(mask, (width // 2, height // 2), half, 0, 0, 360, 255, -1)
        mask = cv2.blur(mask, (max(1, width // 12), max(1, height // 12)))
    laid = cv2.warpAffine(
        image, matrix, window, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    alpha = cv2.warpAffine(mask, matrix, window)[..., None].astype(np.uint16)
    target = canvas[low[1] : high[1], low[0] : high[0]]
    target[:] = ((laid * alpha + target * (255 - alpha)) // 255).astype(np.uint8)
