"""The second look's crops made and looked at on a torch device; see `refine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from face_restore_worker.pipeline.gpu_pyramid import DeviceLevel, to_uint8
from face_restore_worker.pipeline.gpu_resample import shrink
from face_restore_worker.pipeline.refine import CROP_SIDE, LOWEST_SCORE, from_source, source_of
from face_restore_worker.pipeline.views import (
    Candidates,
    Matrix,
    compose,
    edge_to_centre,
    inverse,
)

if TYPE_CHECKING:
    from torch import Tensor

    from face_restore_worker.pipeline.gpu_search import DeviceNetwork


class DeviceCrops:
    """A ``refine.Looker`` on a device.

    network: looks at squares of CROP_SIDE pixels. levels: of the photograph, finest first.
    """

    def __init__(self, network: DeviceNetwork, levels: Sequence[DeviceLevel]) -> None:
        self._network, self._levels = network, levels
        self.batch = max(count for count, _ in network.shapes) // 2

    def look(self, matrices: Sequence[Matrix], mirror: bool) -> list[Candidates]:
        """See Looker."""
        import torch

        crops = read_crops(self._levels, matrices)
        if mirror:
            crops = torch.cat((crops, crops.flip(2)))
        return self._network.find(crops, LOWEST_SCORE)


def read_crops(levels: Sequence[DeviceLevel], matrices: Sequence[Matrix]) -> Tensor:
    """``refine.read_crop`` of several faces: (N, S, S, 3) uint8 RGB."""
    import torch
    import torch.nn.functional as F

    pieces, grids = [], []
    for matrix in matrices:
        level, rect, size = source_of(levels, matrix)
        piece = level.read(rect).permute(2, 0, 1).float()
        if size is not None:
            piece = shrink(piece, size[1], size[0]).round_()
        pieces.append(piece)
        grids.append(edge_to_centre(inverse(from_source(matrix, level, rect, size))))
    height, width = (max(piece.shape[axis] for piece in pieces) for axis in (1, 2))
    # Filled up with their last row and column, which is what lies beyond a piece's border anyway.
    even = [
        F.pad(p[None], (0, width - p.shape[2], 0, height - p.shape[1]), mode="replicate")
        for p in pieces
    ]
    theta = torch.from_numpy(np.stack([_normalised(grid, width, height) for grid in grids]))
    theta = theta.float().to(even[0].device)
    grid = F.affine_grid(theta, [len(pieces), 3, CROP_SIDE, CROP_SIDE], align_corners=False)
    crops = F.grid_sample(
        torch.cat(even), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return to_uint8(crops).permute(0, 2, 3, 1)


def _normalised(to_piece: Matrix, width: int, height: int) -> Matrix:
    """A map between pixel-centre coordinates, as between coordinates of -1 to 1 over the whole."""
    crop = np.array(
        [[CROP_SIDE / 2, 0, (CROP_SIDE - 1) / 2], [0, CROP_SIDE / 2, (CROP_SIDE - 1) / 2]]
    )
    unit = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1]])
    return compose(unit, compose(to_piece, crop))
