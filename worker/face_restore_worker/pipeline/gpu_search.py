"""`search` on a torch device: pieces of all levels on sheets of one size, without waiting.

The photograph's pixels are put on the sheets on the device. Of what the network says about all of
a sheet's anchors, only those that pass the threshold come back, many sheets' in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from face_restore_worker.pipeline import packing
from face_restore_worker.pipeline.anchors import anchor_grid
from face_restore_worker.pipeline.search import GAP, Piece
from face_restore_worker.pipeline.views import Candidates, decoded

if TYPE_CHECKING:
    from torch import Tensor

    from face_restore_worker.network.retinaface_cuda import RetinaFaceCuda, Shape
    from face_restore_worker.pipeline.gpu_pyramid import DeviceLevel

PENDING = 16
"""Sheets whose answers are kept on the device, 2.6 MB each, before they are fetched."""


class NotFinite(Exception):
    """A network gave values that are not numbers."""


class DeviceNetwork:
    """A RetinaFace on a device, called on squares of one side.

    network: its shapes are all of that side.
    strict: whether values that are not finite raise NotFinite; else those anchors are left out.
    """

    watch: Callable[[], None] | None = None

    def __init__(self, network: RetinaFaceCuda, *, strict: bool) -> None:
        self.network, self.strict = network, strict
        self.shapes: Sequence[Shape] = sorted(network.shapes)
        self.side = self.shapes[0][1]

    def find(self, squares: Tensor, threshold: float) -> list[Candidates]:
        """Every anchor scoring at least `threshold` on each of (N, S, S, 3) uint8 RGB."""

        def fill(target: Tensor, number: int) -> None:
            target.copy_(squares[number])

        return list(self._results(len(squares), fill, threshold))

    def search(
        self, pieces: Sequence[Piece[DeviceLevel]], threshold: float
    ) -> Iterator[tuple[Piece[DeviceLevel], Candidates]]:
        """The faces of pieces, in photograph coordinates.

        No piece is wider or higher than the network's squares. Raises NotFinite.
        """
        sheets = self._sheets([piece.size for piece in pieces])

        def fill(target: Tensor, number: int) -> None:
            for index, x, y in sheets[number]:
                piece = pieces[index]
                width, height = piece.size
                slot = target[y : y + height, x : x + width]
                piece.level.draw(piece.rect, piece.quarter, slot)

        found = self._results(len(sheets), fill, threshold)
        for items, on_sheet in zip(sheets, found, strict=True):
            for index, x, y in items:
                faces = pieces[index].faces(on_sheet, x, y)
                if faces is not None:
                    yield pieces[index], faces

    def _sheets(self, sizes: Sequence[packing.Size]) -> list[list[packing.Placement]]:
        """What lies where on each sheet: alone what no other such piece would fit beside."""
        side = self.side
        large = [min(size) > side / 2 for size in sizes]
        alone = [[(number, 0, 0)] for number, is_large in enumerate(large) if is_large]
        others = [number for number, is_large in enumerate(large) if not is_large]
        packed = packing.pack([sizes[number] for number in others], [(side, side)], GAP)
        return [*alone, *([(others[i], x, y) for i, x, y in items] for _, items in packed)]

    def _results(
        self, count: int, fill: Callable[[Tensor, int], None], threshold: float
    ) -> Iterator[Candidates]:
        """What passes on each of `count` squares, which `fill` makes; PENDING at a time."""
        for start in range(0, count, PENDING):
            if self.watch is not None:
                self.watch()
            numbers = range(start, min(start + PENDING, count))
            yield from self._fetched(self._answers(numbers, fill), threshold)

    def _answers(self, numbers: range, fill: Callable[[Tensor, int], None]) -> Tensor:
        """(N, A, VALUES) of squares, on the device."""
        import torch

        answers = []
        left = list(numbers)
        while left:
            # The smallest batch that holds all that are left, else the largest.
            shape = next((s for s in self.shapes if s[0] >= len(left)), self.shapes[-1])
            now, left = left[: shape[0]], left[shape[0] :]
            target = self.network.input(shape)
            target.copy_(self.network.mean)
            for slot, number in zip(target, now, strict=False):
                fill(slot, number)
            answers.append(self.network.run(shape)[: len(now)].clone())
        return torch.cat(answers)

    def _fetched(self, answers: Tensor, threshold: float) -> list[Candidates]:
        """What passes on each square; the device is waited for twice, whatever their number is."""
        import torch

        # Told beside the values, so that nothing waits for it.
        finite = torch.isfinite(answers).all()
        at = torch.nonzero(answers[..., 0] >= threshold)
        values = answers[at[:, 0], at[:, 1]]
        parts = [at.double().flatten(), values.double().flatten(), finite.double().view(1)]
        array = torch.cat(parts).cpu().numpy()
        if self.strict and not array[-1]:
            raise NotFinite
        squares, index = array[: at.numel()].astype(np.intp).reshape(-1, 2).T
        kept = array[at.numel() : -1].reshape(values.shape)
        fine = np.isfinite(kept).all(axis=1)
        squares, index, kept = squares[fine], index[fine], kept[fine]
        anchors = anchor_grid(self.side, self.side)
        found = decoded(index, kept[:, 1:5], kept[:, 5:], kept[:, 0], anchors)
        ends = np.searchsorted(squares, np.arange(len(answers) + 1))  # they come in order
        return [found.take(np.arange(a, b)) for a, b in pairwise(ends)]
