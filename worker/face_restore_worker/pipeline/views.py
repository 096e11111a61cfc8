"""What the network looks at: pieces of the photograph, and the way back from its coordinates.

A view is a piece of pixels and the affine map from its coordinates to the photograph's, both
pixel-edge: a (2, 3) matrix. Boxes are mapped exactly for turns of 90 degrees and any scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.anchors import STRIDE, anchor_grid, decode
from face_restore_worker.pipeline.pyramid import Pixels

if TYPE_CHECKING:
    import torch
    from torch import nn

    from face_restore_worker.network.retinaface_cpu import Passed

Floats = NDArray[np.float64]
Matrix = NDArray[np.float64]

MEAN_BGR = (104.0, 117.0, 123.0)
"""facexlib's RetinaFace takes BGR, 0 to 255, less this."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """N faces: boxes (N, 4), landmarks (N, 5, 2), both pixel-edge; scores (N,); scales (N,).

    scales: pixels of the photograph per pixel of the view the face was found in.
    """

    boxes: Floats
    landmarks: Floats
    scores: Floats
    scales: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Candidates:
        """Those at `index`, in that order."""
        return Candidates(
            self.boxes[index], self.landmarks[index], self.scores[index], self.scales[index]
        )

    @property
    def sides(self) -> Floats:
        """Geometric mean of the boxes' width and height, (N,)."""
        size = np.clip(self.boxes[:, 2:] - self.boxes[:, :2], 0, None)
        return np.sqrt(size[:, 0] * size[:, 1])

    @staticmethod
    def join(parts: list[Candidates]) -> Candidates:
        """All of `parts`, in order."""
        if not parts:
            empty = np.empty(0)
            return Candidates(np.empty((0, 4)), np.empty((0, 5, 2)), empty, empty)
        return Candidates(
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.landmarks for p in parts]),
            np.concatenate([p.scores for p in parts]),
            np.concatenate([p.scales for p in parts]),
        )

    def mapped(self, matrix: Matrix) -> Candidates:
        """In the coordinates `matrix` (2, 3) leads to; boxes stay parallel to the axes."""
        corners = map_points(self.boxes.reshape(-1, 2, 2), matrix)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        (a, b), (c, d) = matrix[:, :2].tolist()
        scale = math.sqrt(abs(a * d - b * c))
        return Candidates(
            boxes, map_points(self.landmarks, matrix), self.scores, self.scales * scale
        )

    def scaled(self, factor: float) -> Candidates:
        """In coordinates of `factor` times as many units."""
        scales = self.scales * factor
        return Candidates(self.boxes * factor, self.landmarks * factor, self.scores, scales)


def map_points(points: Floats, matrix: Matrix) -> Floats:
    """Apply a (2, 3) affine map to points (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The (2, 3) map that does `inner` first, then `outer`."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.concatenate([linear, (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)


def inverse(matrix: Matrix) -> Matrix:
    """The inverse of a (2, 3) affine map."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, (-linear @ matrix[:, 2])[:, None]], axis=1)


def edge_to_centre(matrix: Matrix) -> Matrix:
    """The same map between pixel-centre coordinates instead of pixel-edge ones.

    With e = c + 1/2 on both sides: A (c + 1/2) + b - 1/2.
    """
    result = matrix.copy()
    result[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return result


def placed(factor: float, x: float, y: float) -> Matrix:
    """From a tile whose first pixel is (x, y) of a level of `factor` to the photograph."""
    return np.array([[factor, 0.0, factor * x], [0.0, factor, factor * y]])


def turned(quarter: int, width: int, height: int) -> Matrix:
    """From np.rot90(piece, quarter) back to the piece of width x height pixels."""
    maps = {
        0: [[1, 0, 0], [0, 1, 0]],
        1: [[0, -1, width], [1, 0, 0]],
        2: [[-1, 0, width], [0, -1, height]],
        3: [[0, 1, 0], [-1, 0, height]],
    }
    return np.array(maps[quarter % 4], dtype=np.float64)


class Scanner(Protocol):
    """A RetinaFace that takes pixels as they are; see ``network.retinaface_cpu``."""

    def __call__(self, pixels: torch.Tensor, threshold: float, /) -> Sequence[Passed]:
        """The anchors scoring at least `threshold`, for each picture of a batch.

        pixels: (N, H + 1, W + 1, 3) uint8 RGB; the first row and column, and whatever else is no
        picture, are the mean colour. H and W are multiples of STRIDE.
        """
        ...


class Network:
    """A RetinaFace called on uint8 pieces.

    network: maps (N, 3, H, W) to (offsets (N, A, 4), probabilities (N, A, 2), points (N, A, 10)),
    as facexlib's RetinaFace does in its test phase. Floating type and memory format of the input
    follow its parameters.
    scanner: the same network in a quicker form, used instead; None is the network itself.
    watch: called before each batch of pieces; it may raise, to end a search nobody waits for.
    """

    watch: Callable[[], None] | None = None

    def __init__(
        self, network: nn.Module, device: torch.device | str, scanner: Scanner | None = None
    ) -> None:
        import torch

        self.module = network
        self.scanner = scanner
        self.device = torch.device(device)
        parameter = next(network.parameters(), None)
        self.dtype = torch.float32 if parameter is None else parameter.dtype
        self._mean = torch.tensor(MEAN_BGR, device=self.device)

    def find(self, pieces: list[Pixels], threshold: float) -> list[Candidates]:
        """Every anchor scoring at least `threshold` on each piece (all of one size, RGB).

        Coordinates are the piece's own, pixel-edge; nothing is suppressed yet.
        """
        import torch

        if self.watch is not None:
            self.watch()
        height, width = pieces[0].shape[:2]
        if self.scanner is not None:
            return self._scanned(self.scanner, pieces, threshold)
        with torch.inference_mode():
            offsets, probabilities, points = self.module(self._input(pieces))
            scores = probabilities[..., 1].float()
            found = []
            for i in range(len(pieces)):
                index = torch.nonzero(scores[i] >= threshold)[:, 0]
                found.append(
                    (
                        index.cpu().numpy(),
                        offsets[i, index].double().cpu().numpy(),
                        points[i, index].double().cpu().numpy(),
                        scores[i, index].double().cpu().numpy(),
                    )
                )
        anchors = anchor_grid(_padded(height), _padded(width))
        return [decoded(*parts, anchors) for parts in found]

    @staticmethod
    def _scanned(scanner: Scanner, pieces: list[Pixels], threshold: float) -> list[Candidates]:
        import torch

        height, width = (_padded(length) for length in pieces[0].shape[:2])
        batch = np.empty((len(pieces), height + 1, width + 1, 3), np.uint8)
        batch[:] = [round(value) for value in reversed(MEAN_BGR)]
        for slot, piece in zip(batch, pieces, strict=True):
            slot[1 : piece.shape[0] + 1, 1 : piece.shape[1] + 1] = piece
        anchors = anchor_grid(height, width)
        found = []
        for passed in scanner(torch.from_numpy(batch), threshold):
            offsets, points, scores = (
                value.cpu().numpy().astype(np.float64)
                for value in (passed.offsets, passed.points, passed.scores)
            )
            found.append(decoded(passed.index.cpu().numpy(), offsets, points, scores, anchors))
        return found

    def _input(self, pieces: list[Pixels]) -> torch.Tensor:
        """(N, 3, H, W) BGR less the mean, zero-padded to multiples of STRIDE, channels last."""
        import cv2
        import torch

        height, width = pieces[0].shape[:2]
        size = (len(pieces), _padded(height), _padded(width), 3)
        batch = torch.zeros(size, dtype=torch.float32, device=self.device)
        for slot, piece in zip(batch, pieces, strict=True):
            bgr = torch.from_numpy(cv2.cvtColor(piece, cv2.COLOR_RGB2BGR))
            slot[:height, :width] = bgr.to(self.device).float() - self._mean
        return batch.to(self.dtype).permute(0, 3, 1, 2)


def decoded(
    index: NDArray[np.intp], offsets: Floats, points: Floats, scores: Floats, anchors: Floats
) -> Candidates:
    """Faces of K anchors of `anchor_grid`, in the input's coordinates; those of finite values.

    index: (K,) anchors' numbers. offsets: (K, 4), points: (K, 10), scores: (K,), as the network
    gives them.
    """
    boxes, landmarks = decode(offsets, points, anchors[index])
    values = np.concatenate([boxes, landmarks.reshape(-1, 10)], axis=1)
    fine: NDArray[np.bool_] = np.all(np.isfinite(values), axis=1)
    return Candidates(boxes, landmarks, scores, np.ones(len(scores))).take(fine)


def _padded(length: int) -> int:
    return -(-length // STRIDE) * STRIDE
