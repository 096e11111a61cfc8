"""Drawn faces that can be measured exactly, and a network that finds them.

A marker is a gray disc with a red left eye, a green right eye and a blue spot in the middle of the
mouth. Averaging and interpolation keep the spots' centres of gravity, so a network that takes those
tells to a fraction of a pixel where a marker is: what the detector then reports shows whether its
coordinates are right.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
from face_restore_worker.pipeline.anchors import CENTRE_VARIANCE, SIZE_VARIANCE, anchor_grid
from face_restore_worker.pipeline.views import MEAN_BGR
from numpy.typing import NDArray
from scene_factory import Floats, Pixels, Truth
from torch import nn

TEMPLATE = np.array([(-0.4, -0.3), (0.4, -0.3), (0.0, 0.1), (-0.3, 0.5), (0.3, 0.5)])
"""Landmarks of a marker of radius 1 about its centre."""
_MOUTH = np.array([0.0, 0.5])
_SPOT = 0.17
_GRAY = 60
SCORE = 0.97


def draw_marker(scene: Pixels, x: float, y: float, size: float, degrees: float = 0.0) -> Truth:
    """Draw a marker of diameter `size` about (x, y), pixel-edge, turned from the x axis to y."""
    radius, turn = size / 2, math.radians(degrees)
    linear = radius * np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    centre = np.array([x, y])
    _disc(scene, centre, radius, (_GRAY, _GRAY, _GRAY))
    for point, colour in zip(
        (TEMPLATE[0], TEMPLATE[1], _MOUTH), np.eye(3, dtype=int) * 255, strict=True
    ):
        _disc(scene, centre + linear @ point, radius * _SPOT, tuple(colour))
    landmarks = TEMPLATE @ linear.T + centre - 0.5
    return Truth(np.array([x - radius, y - radius, x + radius, y + radius]), landmarks)


def _disc(scene: Pixels, centre: Floats, radius: float, colour: tuple[int, ...]) -> None:
    low = np.maximum(np.floor(centre - radius - 2).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius + 2).astype(int), scene.shape[1::-1])
    ys, xs = np.mgrid[low[1] : high[1], low[0] : high[0]]
    cover = np.zeros(xs.shape)
    steps = (np.arange(4) + 0.5) / 4
    for dy in steps:  # sampled: exact to a sixteenth at the rim
        for dx in steps:
            cover += np.hypot(xs + dx - centre[0], ys + dy - centre[1]) <= radius
    cover = (cover / 16)[..., None]
    piece = scene[low[1] : high[1], low[0] : high[0]]
    piece[:] = np.round(piece * (1 - cover) + np.array(colour) * cover).astype(np.uint8)


class MarkerNetwork(nn.Module):
    """Finds markers on black, in RetinaFace's form of input and output.

    smallest, largest: diameters it sees, in its own pixels, like a trained network's reach.
    upright: whether it misses markers tilted by more than 50 degrees, like a trained network.
    """

    def __init__(self, smallest: float = 24, largest: float = 470, upright: bool = False) -> None:
        super().__init__()
        self.smallest, self.largest, self.upright = smallest, largest, upright
        self.seen = 0.0
        """Megapixels looked at so far."""
        self.largest_input = 0

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        height, width = batch.shape[2:]
        self.seen += len(batch) * height * width / 1e6
        self.largest_input = max(self.largest_input, height * width)
        anchors = anchor_grid(height, width)
        offsets = torch.zeros(len(batch), len(anchors), 4)
        scores = torch.zeros(len(batch), len(anchors), 2)
        points = torch.zeros(len(batch), len(anchors), 10)
        for i, image in enumerate(batch):
            pixels = image.permute(1, 2, 0).numpy() + np.array(MEAN_BGR)
            for box, landmarks in self._markers(pixels[..., ::-1]):
                size = box[2] - box[0]
                middle = (box[:2] + box[2:]) / 2
                distance = np.hypot(*(anchors[:, :2] - middle).T)
                a = int(np.argmin(distance + 40 * abs(np.log(anchors[:, 2] / size))))
                side = anchors[a, 2]
                offsets[i, a, :2] = torch.tensor((middle - anchors[a, :2]) / CENTRE_VARIANCE / side)
                offsets[i, a, 2:] = math.log(size / side) / SIZE_VARIANCE
                relative = (landmarks - anchors[a, :2]) / CENTRE_VARIANCE / side
                points[i, a] = torch.tensor(relative.reshape(10))
                scores[i, a, 1] = SCORE
        scores[..., 0] = 1 - scores[..., 1]
        return offsets, scores, points

    def _markers(self, rgb: NDArray[Any]) -> list[tuple[Floats, Floats]]:
        """Box and landmarks, pixel-edge, of each marker that lies whole inside."""
        height, width = rgb.shape[:2]
        bright = (rgb.max(axis=2) > 12).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
        found = []
        for label in range(1, count):
            x, y, w, h = stats[label, :4]
            if x == 0 or y == 0 or x + w >= width or y + h >= height:
                continue  # cut off, or the padding
            if not self.smallest <= (w + h) / 2 <= self.largest:
                continue
            piece = rgb[y : y + h, x : x + w] * (labels[y : y + h, x : x + w] == label)[..., None]
            face = self._measure(piece)
            if face is not None:
                found.append((face[0] + np.array([x, y, x, y]), face[1] + np.array([x, y])))
        return found

    def _measure(self, piece: NDArray[Any]) -> tuple[Floats, Floats] | None:
        weights = piece - piece.min(axis=2, keepdims=True)  # gray weighs nothing
        weights = np.where(weights > 40, weights, 0)  # nor does ringing about the spots
        total = weights.sum(axis=(0, 1))
        if total.min() < 1:
            return None
        ys, xs = np.mgrid[0 : piece.shape[0], 0 : piece.shape[1]] + 0.5
        spots = (
            np.stack(
                [(weights * xs[..., None]).sum((0, 1)), (weights * ys[..., None]).sum((0, 1))], 1
            )
            / total[:, None]
        )
        local = np.stack([TEMPLATE[0], TEMPLATE[1], _MOUTH])
        affine = np.linalg.solve(np.column_stack([local, np.ones(3)]), spots)  # (3, 2)
        template = TEMPLATE
        if np.linalg.det(affine[:2]) < 0:  # a mirrored face: its left eye is the viewer's right
            template = TEMPLATE[[1, 0, 2, 4, 3]]
        landmarks = template @ affine[:2] + affine[2]
        down = landmarks[3:].mean(axis=0) - landmarks[:2].mean(axis=0)
        if self.upright and abs(math.degrees(math.atan2(-down[0], down[1]))) > 50:
            return None
        radius = math.sqrt(abs(np.linalg.det(affine[:2])))
        return np.concatenate([affine[2] - radius, affine[2] + radius]), landmarks
