"""RetinaFace for a GPU: pixels in, what every anchor says out, each size of input a CUDA graph.

The network itself is `retinaface.RetinaFace` in channels_last order and fp16, its norms folded. Its
inputs are of a few fixed sizes: cuDNN's algorithms are chosen for each at load (by its heuristics,
never by timing them) and its two hundred launches are recorded; no photograph waits for that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from face_restore_worker.network.cuda.context import exact
from face_restore_worker.network.cuda.recorded import Recorded
from face_restore_worker.network.retinaface_cpu import MEAN_RGB

VALUES = 15
"""Of each anchor: its score, four offsets, ten of landmarks."""
Shape = tuple[int, int]
"""Pictures of a batch, and their side in pixels, a multiple of 32."""


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
                self._sizes[count, side] = Recorded(self._forward, pixels, "detector")
        if graph and self.device.type == "cuda":
            generator = torch.Generator().manual_seed(1)
            for size in self._sizes.values():
                shape = size.given.shape
                size.record(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))

    @property
    def recorded(self) -> bool:
        """Whether every shape runs as one CUDA graph."""
        return all(size.recorded for size in self._sizes.values())

    def input(self, shape: Shape) -> Tensor:
        """(N, S, S, 3) uint8 RGB on the device, to be filled before `run`.

        What is no picture is to be `mean`.
        """
        return self._sizes[shape].given

    def run(self, shape: Shape) -> Tensor:
        """What each anchor of the `input` says, without waiting for the device.

        Returns (N, A, VALUES) fp32: the score, 0 to 1, four offsets, ten of landmarks, the anchors
        in the network's order. The next run of the shape overwrites it.
        """
        return self._sizes[shape].run()

    def _forward(self, pixels: Tensor) -> Tensor:
        # Whole numbers below 256: exact in all of the types.
        x = pixels.flip(3).to(self.dtype) - self._bgr
        offsets, probabilities, points = self._network(x.permute(0, 3, 1, 2))
        return torch.cat((probabilities[..., 1:], offsets, points), dim=2).float()
