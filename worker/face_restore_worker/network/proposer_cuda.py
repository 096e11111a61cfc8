"""The proposer for a GPU: squares of one size in, answers out, each size of batch a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from face_restore_worker.network.cuda.context import exact
from face_restore_worker.network.cuda.recorded import Recorded
from face_restore_worker.network.fused import fold_batch_norms
from face_restore_worker.network.proposer import BORDER, GRAY


class Answering(Protocol):
    """``proposer.FaceProposer``, or what stands for it."""

    def answers(self, x: Tensor) -> Tensor:
        """See there."""


class ProposerCuda:
    """A prepared FaceProposer on a device.

    Args:
        network: with its weights, in fp32 on the CPU; it is copied.
        dtype: of convolutions and features.
        device: a CUDA (or ROCm) device. Any other one computes the same without graphs.
        side: of the squares looked at, a multiple of ``proposer.GRAIN``.
        batches: how many of them at once, one or another.
        graph: whether to record CUDA graphs.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        device: torch.device | str,
        side: int,
        batches: Sequence[int],
        graph: bool = True,
    ) -> None:
        self.side, self.batches = side, sorted(batches)
        self.device = torch.device(device)
        with torch.inference_mode(), exact(self.device):
            module = copy.deepcopy(network).eval()
            fold_batch_norms(module)
            module = module.to(device=self.device, dtype=dtype)
            self._network: Answering = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._offset = torch.tensor(-GRAY / 64, device=self.device)
            self._sizes = {}
            for count in self.batches:
                whole = side + 2 * BORDER
                frames = torch.zeros((count, whole, whole, 3), dtype=dtype, device=self.device)
                self._sizes[count] = Recorded(self._forward, frames, "proposer")
        if graph and self.device.type == "cuda":
            for size in self._sizes.values():
                generator = torch.Generator().manual_seed(1)
                size.record(torch.rand(size.given.shape, generator=generator) * 4 - 2)
                with torch.inference_mode():
                    size.given.zero_()

    @property
    def recorded(self) -> bool:
        """Whether every size of batch runs as one CUDA graph."""
        return all(size.recorded for size in self._sizes.values())

    def put(self, batch: int, number: int, view: Tensor, top: int, left: int) -> None:
        """Put a picture (h, w, 3) uint8 RGB on a square of the next `run` of a batch, at a place.

        What it does not cover of the square is GRAY.
        """
        square = self._sizes[batch].given[number]
        height, width = view.shape[:2]
        if (height, width) != (self.side, self.side):
            square.zero_()
        top, left = top + BORDER, left + BORDER
        # (pixels - GRAY) / 64 in one pass; exact in all types.
        inner = square[top : top + height, left : left + width]
        torch.add(self._offset, view, alpha=1 / 64, out=inner)

    def run(self, batch: int) -> Tensor:
        """(N, 2, side / STRIDE, side / STRIDE) fp32 logits, without waiting for the device.

        The next run of the batch overwrites it.
        """
        return self._sizes[batch].run()

    def _forward(self, frames: Tensor) -> Tensor:
        return self._network.answers(frames.permute(0, 3, 1, 2)).float()
