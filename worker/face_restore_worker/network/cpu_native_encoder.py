"""A level of the processor's GPEN encoder with the compiled kernels (`native/downsample.c`)."""

from __future__ import annotations

from queue import SimpleQueue

import torch
from torch import Tensor

from face_restore_worker.network.cpu_levels import Feature
from face_restore_worker.network.cpu_memory import Planes
from face_restore_worker.network.cpu_native import panels, tap_transform
from face_restore_worker.network.cpu_strips import Rows, StripPool, cut, strip_rows
from face_restore_worker.network.native.library import Library

_POINTS = 25
_BLOCK = 32  # tiles that go through transforms and products together
_TILE = 4
# It computes in fp32: with more inputs oneDNN's bf16 is as fast.
MOST_INPUTS = {torch.float32: 128, torch.bfloat16: 32}


def usable(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel takes a convolution (O, I, 3, 3) and is faster than torch."""
    outputs, inputs = weight.shape[:2]
    fits = inputs % 16 == 0 and (outputs == 16 or outputs % 32 == 0)
    return fits and inputs <= MOST_INPUTS[dtype]


class NativeDown:
    """FIR blur, 3x3 convolution of stride 2, bias and leaky ReLU in one pass.

    Args:
        weight: fp32 (O, I, 3, 3), what the activation multiplies by in it.
        bias: fp32 (O,), likewise.
        dtype: of the planes, torch.float32 or torch.bfloat16.
    """

    def __init__(self, kernels: Library, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.kernels, self.bias, self.dtype = kernels, bias, dtype
        self.outputs, self.inputs = weight.shape[:2]
        self.weight = _transformed(weight)

    def run(self, pool: StripPool, above: Feature, out: Tensor, memory: Planes) -> None:
        """Write the whole plane (1, O, S, S), channels_last, S a multiple of 8, in strips.

        above: rows of the plane of twice the side, (1, I, rows, 2 S).
        """
        size = out.shape[2]
        count = _POINTS * (_BLOCK * (4 * self.inputs + self.outputs) + 32)
        free: SimpleQueue[Tensor] = SimpleQueue()
        for thread in range(pool.threads):
            free.put(memory.take(f"strip {thread} fp32", [(1, 1, count)], torch.float32)[0])

        def strip(rows: Rows) -> None:
            need = Rows(max(2 * rows.start - 2, 0), min(2 * rows.stop + 2, 2 * size))
            scratch = free.get()
            try:
                self._rows(above(need), need.start, rows, out[:, :, rows.slice], scratch)
            finally:
                free.put(scratch)

        row_bytes = 4 * size * self.inputs * self.dtype.itemsize
        pool.each(strip, cut(Rows(0, size), strip_rows(size, row_bytes, pool.threads)))

    def _rows(self, source: Tensor, first: int, rows: Rows, out: Tensor, scratch: Tensor) -> None:
        """Write `rows` of the result to `out`; source has rows `first` on of the plane above."""
        self.kernels.call(
            "downsample", self.dtype, source=source, out=out, weight=self.weight, bias=self.bias,
            scratch=scratch, pixel=source.stride(3), inputs=self.inputs, outputs=self.outputs,
            first=first, rows=source.shape[2], columns=source.shape[3], to=rows.stop // _TILE,
            block=_BLOCK, **{"from": rows.start // _TILE},
        )  # fmt: skip


def _transformed(weight: Tensor) -> Tensor:
    """The 25 matrices of (O, I, 3, 3), one behind the other, fp32, computed in fp64."""
    both = tap_transform()  # rows: points; the taps they are for are put in their places below
    even = torch.stack((both[:, 0], torch.zeros(5), both[:, 1]), dim=1)
    odd = torch.stack((torch.zeros(4), both[:4, 0], torch.zeros(4)), dim=1)
    taps = weight.flatten(2).double() / 64  # the blur's weights are 64ths
    matrices = []
    for row in range(5):
        for column in range(5):
            phases = [(even[row], even[column])]
            if column < 4:
                phases.append((even[row], odd[column]))
            if row < 4:
                phases.append((odd[row], even[column]))
            if row < 4 and column < 4:
                phases.append((odd[row], odd[column]))
            parts = [(taps @ torch.kron(a, b)).t() for a, b in phases]
            matrices.append(panels(torch.cat(parts).float()[None]).flatten())
    return torch.cat(matrices)
