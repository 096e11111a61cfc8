"""RetinaFace for a GPU: pixels in, what every anchor says out, each size of input a CUDA graph.

The network itself is `retinaface.RetinaFace` in channels_last order and fp16, its norms folded. Its
inputs are of a few fixed sizes: cuDNN's algorithms are chosen for each at load (by its heuristics,
never by timing them) and its two hundred launches are recorded; no photograph waits for that.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from face_restore_worker.network.cuda.context import exact
from face_restore_worker.network.cuda.graph import capture
from face_restore_worker.network.cuda.operations import relative_error
from face_restore_worker.network.retinaface_cpu import MEAN_RGB

log = logging.getLogger(__name__)

VALUES = 15
"""Of each anchor: its score, four offsets, ten of landmarks."""
Shape = tuple[int, int]
"""Pictures of a batch, and their side in pixels, a multiple of 32."""

_AGREE = 1e-3  # of a graph and what it was recorded from: the same kernels


@dataclass
class _Size:
    """A batch of one shape: where its pixels go, where its result comes, what computes it."""

    pixels: Tensor
    result: Tensor
    replay: Callable[[], None] | None = None


class RetinaFaceCuda:
    """A prepared RetinaFace on a device.

    Args:
        network: as ``retinaface.RetinaFace``, norms folded, fp32 on the CPU; it is copied.
        dtype: of convolutions and features: torch.float16, bfloat16 or float32.
        device: a CUDA (or ROCm) device. Any other one computes the same without graphs.
        shapes: of the inputs there will be.
        graph: whether to record CUDA graphs.

    Raises:
        torch.OutOfMemoryError.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        device: torch.device | str,
        shapes: Sequence[Shape],
        graph: bool = True,
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.shapes = tuple(shapes)
        with torch.inference_mode(), exact(self.device):
            module = copy.deepcopy(network).to(device=self.device, dtype=dtype)
            self._network = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.mean = torch.tensor(MEAN_RGB, dtype=torch.uint8, device=self.device)
            self._bgr = self.mean.flip(0).to(dtype)
            self._sizes = {}
            for count, side in self.shapes:
                pixels = self.mean.expand(count, side, side, 3).contiguous()
                self._sizes[count, side] = _Size(pixels, torch.empty(0))
            if self.device.type == "cuda":
                for size in self._sizes.values():
                    self._warm_up(size, graph)

    @property
    def recorded(self) -> bool:
        """Whether every shape runs as one CUDA graph."""
        return all(size.replay is not None for size in self._sizes.values())

    def input(self, shape: Shape) -> Tensor:
        """(N, S, S, 3) uint8 RGB on the device, to be filled before `run`.

        What is no picture is to be `mean`.
        """
        return self._sizes[shape].pixels

    @torch.inference_mode()
    def run(self, shape: Shape) -> Tensor:
        """What each anchor of the `input` says, without waiting for the device.

        Returns (N, A, VALUES) fp32: the score, 0 to 1, four offsets, ten of landmarks, the anchors
        in the network's order. The next run of the shape overwrites it.
        """
        size = self._sizes[shape]
        with exact(self.device):
            if size.replay is not None:
                size.replay()
            else:
                self._forward(size)
        return size.result

    def _forward(self, size: _Size) -> None:
        # Whole numbers below 256: exact in all of the types.
        x = size.pixels.flip(3).to(self.dtype) - self._bgr
        offsets, probabilities, points = self._network(x.permute(0, 3, 1, 2))
        size.result = torch.cat((probabilities[..., 1:], offsets, points), dim=2).float()

    def _warm_up(self, size: _Size, graph: bool) -> None:
        """Let cuDNN choose its algorithms, record, and see that the graph gives the same."""
        generator = torch.Generator().manual_seed(1)
        shape = size.pixels.shape
        size.pixels.copy_(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        self._forward(size)
        if not graph:
            return
        eager = torch.nan_to_num(size.result)
        forward = lambda: self._forward(size)  # noqa: E731
        replay = capture(forward, self.device)
        if replay is forward:
            return
        replay()
        error = relative_error(torch.nan_to_num(size.result), eager)
        if not error <= _AGREE:
            log.warning("The detector's CUDA graph is not used: its result is off by %.2g.", error)
            return
        size.replay = replay
