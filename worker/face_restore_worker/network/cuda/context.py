"""The state of PyTorch in which a network computes the same every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact(device: torch.device, timed: bool = False) -> Iterator[None]:
    """On a CUDA device: it is the current one, no algorithm adds up in varying order, no TF32, and
    none is chosen by timing unless ``timed``. Elsewhere nothing is changed."""
    if device.type != "cuda":
        yield
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.cuda.device(device),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=timed, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
