"""Faces on their way to a torch device and back: pinned memory, streams of their own.

On a device that is not CUDA's the same functions copy and wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Bus:
    """Copies beside the current stream's work.

    Args:
        device: any torch device.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device = device
        self._streams = device.type == "cuda"
        if self._streams:
            self._up = torch.cuda.Stream(device)
            self._down = torch.cuda.Stream(device)

    def send(self, pixels: NDArray[Any]) -> Tensor:
        """An array as a tensor on the device, ready for the current stream; uint16 as int32."""
        import torch

        wide = pixels.dtype == np.uint16  # torch computes little with it
        if wide:
            pixels = pixels.view(np.int16)
        # Torch has no read-only tensors, nor some strides: what it cannot take numpy copies.
        easy = pixels.flags.c_contiguous and pixels.flags.writeable
        if not self._streams:
            sent = torch.from_numpy(pixels if easy else pixels.copy()).to(self.device, copy=easy)
        else:
            current = torch.cuda.current_stream(self.device)
            dtype = torch.from_numpy(np.empty(0, pixels.dtype)).dtype
            pinned = torch.empty(pixels.shape, dtype=dtype, pin_memory=True)
            if easy:
                pinned.copy_(torch.from_numpy(pixels))  # on several cores
            else:
                np.copyto(pinned.numpy(), pixels)
            with torch.cuda.stream(self._up):
                sent = pinned.to(self.device, non_blocking=True)
            current.wait_stream(self._up)
            sent.record_stream(current)
        return sent.int().bitwise_and_(0xFFFF) if wide else sent

    def fetch(self, values: Tensor) -> Callable[[], NDArray[Any]]:
        """Begin to copy a tensor of the current stream; the result waits for it and returns it."""
        import torch

        if not self._streams:
            copied = values.cpu().numpy()
            return lambda: copied
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            host.copy_(values, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        values.record_stream(self._down)

        def wait() -> NDArray[Any]:
            done.synchronize()
            array: NDArray[Any] = host.numpy()
            return array

        return wait
