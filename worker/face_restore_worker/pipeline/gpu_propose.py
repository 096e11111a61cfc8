"""`propose` on a torch device: the same places, of which only whether cells pass comes back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.propose import Frames, Proposer, framed, load_network, logit

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DeviceProposer(Proposer):
    """The proposer's network on a device; its levels are ``gpu_pyramid.DeviceLevel``.

    path, threshold: as for Proposer. dtype: of convolutions and features.
    Raises CheckpointError where the file is not that network.
    """

    def __init__(
        self, path: str | Path, threshold: float, device: torch.device, dtype: torch.dtype
    ) -> None:
        import torch

        from face_restore_worker.network.fused import fold_batch_norms
        from face_restore_worker.network.proposer import GRAY

        network = copy.deepcopy(load_network(path)).eval().requires_grad_(False)
        fold_batch_norms(network)
        module: Any = network.to(device=device, dtype=dtype)
        self._module = module.to(memory_format=torch.channels_last)
        self._dtype = dtype
        self._offset = torch.tensor(-GRAY / 64, device=device)
        self._logit = logit(threshold)

    def _passes(self, pixels: Tensor, quarters: Sequence[int], frames: Frames) -> Tensor:  # type: ignore[override]
        """Which cells of a piece pass in any turn of it: (2, rows, columns), on the device."""
        import torch

        from face_restore_worker.network.proposer import STRIDE

        height, width = pixels.shape[:2]
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        passes = pixels.new_zeros((2, rows, columns), dtype=torch.bool)
        for quarter in quarters:
            view = torch.rot90(pixels, quarter) if quarter else pixels
            logits = self._answers(view, quarter)
            # A cell whose value is no number passes: the detector looks there.
            passes |= ~(logits[:, :rows, :columns] < self._logit)
        return passes

    def _answers(self, view: Tensor, quarter: int) -> Tensor:
        """The network's answers on a turned piece, turned back; see ``Proposer._logits``."""
        import torch

        height, width = view.shape[:2]
        size, (top, left) = framed(height, width, quarter)
        frame = torch.zeros(size, dtype=self._dtype, device=view.device)
        inner = frame[top : top + height, left : left + width]
        # (pixels - GRAY) / 64 in one pass; exact in all types.
        torch.add(self._offset, view, alpha=1 / 64, out=inner)
        logits = self._module.answers(frame.permute(2, 0, 1)[None])[0].float()
        return torch.rot90(logits, -quarter, (1, 2))

    def _fetched(self, passes: list[Tensor]) -> list[NDArray[np.bool_]]:
        """All of a level's answers, waited for once."""
        import torch

        cells = torch.cat([one.flatten() for one in passes]).cpu()
        parts = cells.split([one.numel() for one in passes])
        return [part.view(one.shape).numpy() for part, one in zip(parts, passes, strict=True)]
