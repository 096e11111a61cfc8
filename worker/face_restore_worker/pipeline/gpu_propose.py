"""`propose` on a torch device: the same places, of which only whether cells pass comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline import pyramid
from face_restore_worker.pipeline.gpu_pyramid import DeviceLevel
from face_restore_worker.pipeline.propose import OVERLAP, Floats, Places, kept_cells, logit
from face_restore_worker.pipeline.pyramid import Rect

if TYPE_CHECKING:
    from torch import Tensor

    from face_restore_worker.network.proposer_cuda import ProposerCuda

SIDE = 1024
"""Of the squares a level is looked at in: always the same, so that nothing is set up for a picture
of another size. They overlap more than strips do, which costs a GPU less than its launches."""
BATCHES = (1, 4)


class DeviceProposer:
    """Where a level of a photograph on a device may show faces; see ``propose.Proposer``.

    network: on that device. threshold: as for Proposer.
    """

    def __init__(self, network: ProposerCuda, threshold: float) -> None:
        self.network = network
        self._logit = logit(threshold)

    def places(self, level: DeviceLevel, area: Rect, quarters: Sequence[int] = (0,)) -> Places:
        """See ``Proposer.places``; the device is waited for once."""
        from face_restore_worker.network.proposer import STRIDE

        side = self.network.side
        tiles = pyramid.tiles(area, side, OVERLAP, multiple=side)
        cells = self._passes(level, [(tile, quarter) for tile in tiles for quarter in quarters])
        found: list[list[Floats]] = [[], []]
        looked_at = 0
        for number, tile in enumerate(tiles):
            rows, columns = -(-(tile[3] - tile[1]) // STRIDE), -(-(tile[2] - tile[0]) // STRIDE)
            looked_at += rows * columns
            views = cells[number * len(quarters) : (number + 1) * len(quarters)]
            passes = np.logical_or.reduce(
                [np.rot90(v, -q, (1, 2)) for v, q in zip(views, quarters, strict=True)]
            )
            for maps, one in zip(found, passes[:, :rows, :columns], strict=True):
                maps.append(kept_cells(one, tile, area))
        small, large = (np.concatenate(parts) for parts in found)
        return Places(small, large, looked_at)

    def _passes(self, level: DeviceLevel, views: Sequence[tuple[Rect, int]]) -> NDArray[np.bool_]:
        """Which cells of turned tiles pass, each as it was turned: (N, 2, rows, columns)."""
        import torch

        answers = []
        left = list(views)
        while left:
            batches = self.network.batches
            batch = next((n for n in batches if n >= len(left)), batches[-1])
            now, left = left[:batch], left[batch:]
            for number, (tile, quarter) in enumerate(now):
                self._put(batch, number, level.read(tile), quarter)
            # A cell whose value is no number passes: the detector looks there.
            answers.append(~(self.network.run(batch)[: len(now)] < self._logit))
        passes: NDArray[np.bool_] = torch.cat(answers).cpu().numpy()
        return passes

    def _put(self, batch: int, number: int, pixels: Tensor, quarter: int) -> None:
        """Put a tile on a square; what is filled up lies right and below once turned back."""
        import torch

        view = torch.rot90(pixels, quarter) if quarter else pixels
        height, width = view.shape[:2]
        top = self.network.side - height if quarter in (1, 2) else 0
        left = self.network.side - width if quarter in (2, 3) else 0
        self.network.put(batch, number, view, top, left)
