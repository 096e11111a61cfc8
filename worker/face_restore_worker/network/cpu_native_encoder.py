"""A level of the processor's GPEN encoder with the compiled kernels (`native/downsample.c`)."""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from face_restore_worker.network.cpu_levels import Feature
from face_restore_worker.network.cpu_memory import Planes
from face_restore_worker.network.cpu_native_weights import down_fp32, down_int16, strength_of
from face_restore_worker.network.cpu_strips import Rows, StripPool, cut, strip_rows
from face_restore_worker.network.native.library import Argument, Library, structure

_POINTS = 25
# Tiles that go through transforms and products together: many where the weights come from far.
_BLOCK, _LARGE_BLOCK = 32, 64
_TILE = 4
_ROWS_ABOVE = 12  # that a tile row takes
MOST_INPUTS = {torch.float32: 256, torch.bfloat16: 256}


def usable(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel takes a convolution (O, I, 3, 3) and is faster than torch."""
    outputs, inputs = weight.shape[:2]
    fits = inputs % 16 == 0 and (outputs == 16 or outputs % 32 == 0)
    return fits and inputs <= MOST_INPUTS[dtype]


class NativeFirst:
    """The encoder's first feature: 1x1 convolution of the picture, bias and leaky ReLU.

    Args:
        weight: fp32 (O, 3, 1, 1), what the activation multiplies by in it; O a multiple of 16.
        bias: fp32 (O,), likewise.
        dtype: of the feature, torch.float32 or torch.bfloat16.
    """

    def __init__(self, kernels: Library, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.kernels, self.bias, self.dtype = kernels, bias.contiguous(), dtype
        self.weight = weight.flatten(1).t().contiguous()

    def __call__(self, picture: Tensor) -> Tensor:
        """Map fp32 (1, 3, rows, S), each colour contiguous, to channels_last (1, O, rows, S)."""
        rows, columns = picture.shape[2:]
        shape = (1, len(self.bias), rows, columns)
        out = torch.empty(shape, dtype=self.dtype, memory_format=torch.channels_last)
        arguments = Finest(self, picture).arguments()
        self.kernels.call("first", self.dtype, **arguments, out=out, rows=rows)
        return out


@dataclass(frozen=True)
class Finest:
    """What the first feature is computed from: fp32 (1, 3, S, S), each colour contiguous."""

    layer: NativeFirst
    picture: Tensor

    def arguments(self) -> dict[str, Argument]:
        """All of the kernel's arguments that do not tell rows or where they go."""
        return {
            "picture": self.picture,
            "weight": self.layer.weight,
            "bias": self.layer.bias,
            "plane": self.picture.stride(1),
            "outputs": len(self.layer.bias),
            "columns": self.picture.shape[3],
        }


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
        self.block = _BLOCK if self.inputs < 256 else _LARGE_BLOCK
        self.unit: Tensor | None = None
        self.strength: Tensor | None = None
        if dtype == torch.bfloat16:
            self.strength = strength_of(weight)
            weight = weight / self.strength[:, None, None]
            self.weight, self.unit = down_int16(kernels, weight)
        else:
            self.weight = down_fp32(weight)

    def run(self, pool: StripPool, above: Feature | Finest, out: Tensor, memory: Planes) -> None:
        """Write the whole plane (1, O, S, S), channels_last, S a multiple of 8, in strips.

        above: rows of the plane of twice the side, (1, I, rows, 2 S), or what they are made from.
        """
        size = out.shape[2]
        count = _POINTS * (self.block * (4 * self.inputs + self.outputs) + 32)
        free: SimpleQueue[tuple[Tensor, Tensor]] = SimpleQueue()
        rows_above = _ROWS_ABOVE if isinstance(above, Finest) else 0
        shape = (self.inputs, rows_above, 2 * size)
        for thread in range(pool.threads):
            (scratch,) = memory.take(f"strip {thread} fp32", [(1, 1, count)], torch.float32)
            (feature,) = memory.take(f"strip {thread}", [shape], self.dtype)
            free.put((scratch, feature))

        def strip(rows: Rows) -> None:
            scratch, feature = mine = free.get()
            try:
                if isinstance(above, Finest):
                    self._encode(above, rows, out[:, :, rows.slice], scratch, feature)
                else:
                    need = Rows(max(2 * rows.start - 2, 0), min(2 * rows.stop + 2, 2 * size))
                    source = above(need)
                    self.kernels.call(
                        "downsample", self.dtype, source=source, first=need.start,
                        rows=source.shape[2], pixel=source.stride(3),
                        **self._arguments(rows, out[:, :, rows.slice], scratch),
                    )  # fmt: skip
            finally:
                free.put(mine)

        row_bytes = 4 * size * self.inputs * self.dtype.itemsize
        pool.each(strip, cut(Rows(0, size), strip_rows(size, row_bytes, pool.threads)))

    def _encode(
        self, finest: Finest, rows: Rows, out: Tensor, scratch: Tensor, feature: Tensor
    ) -> None:
        down = structure("downsample", pixel=self.inputs, **self._arguments(rows, out, scratch))
        first = structure("first", **finest.arguments())
        self.kernels.call("encode", self.dtype, down=down, first=first, feature=feature)

    def _arguments(self, rows: Rows, out: Tensor, scratch: Tensor) -> dict[str, Argument]:
        """To write `rows` of the result to `out`; what tells the plane above is not among them."""
        return {
            "out": out, "weight": self.weight, "unit": self.unit, "strength": self.strength,
            "bias": self.bias, "scratch": scratch, "inputs": self.inputs,
            "outputs": self.outputs, "columns": 2 * out.shape[3],
            "from": rows.start // _TILE, "to": rows.stop // _TILE, "block": self.block,
        }  # fmt: skip
