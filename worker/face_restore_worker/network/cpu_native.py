"""A fine level of the processor's GPEN with the compiled kernels (`native/`).

The same function as `cpu_levels.FineLevel`, with fewer products and fewer passes over the planes:
up-convolution, blur, bias and leaky ReLU are one kernel (`upsample.c`), the convolution with its
encoder part another (`winograd.c`), the encoder part for the next level and RGB a third
(`finish.c`). All three take and give fp32 or bf16 and compute in fp32, but for the up-convolution's
products in bf16. Styles and demodulation scale what goes in and comes out, so the weights are
transformed once at load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

from face_restore_worker.network.cpu_levels import (
    Layers,
    LevelPlanes,
    Modulation,
    image_bias,
)
from face_restore_worker.network.cpu_memory import Planes
from face_restore_worker.network.cpu_native_encoder import Finest
from face_restore_worker.network.cpu_native_weights import (
    PANEL,
    POINTS,
    panels,
    strength_of,
    up_bf16,
    up_fp32,
    up_shared,
    winograd_int16,
)
from face_restore_worker.network.cpu_strips import (
    SMALLEST_STRIP,
    Rows,
    StripPool,
    bands,
    cut,
    strip_rows,
)
from face_restore_worker.network.cpu_winograd import Winograd
from face_restore_worker.network.gpen import StyledConv
from face_restore_worker.network.native.library import Argument, Library, structure
from face_restore_worker.network.primitives import SQRT2

PHASE_PLANES = 81  # products of an up-convolution's tile
SHARED_PLANES = 25  # of its shared transform
TILE_ROW = 8  # rows of the result by a row of the up-convolution's tiles
# Planes of up to this side have fewer pixels than weights: there threads share out the outputs of
# an up-convolution, instead of rows whose borders are computed twice.
WHOLE = 128
# Above this side the up-convolution's phases share one transform (`upsample.c`): its weights are
# 81 matrices instead of 36, but small there.
SHARED = 256
_W = TypeVar("_W")
_KEPT = 3  # rows of the transposed convolution that the next tile row needs


def usable(layers: Layers, size: int) -> bool:
    """Whether the kernels take a level of these layers and this side."""
    inputs, outputs = layers[0].conv.weight.shape[2], layers[1].conv.weight.shape[1]
    return size % 32 == 0 and inputs % 32 == 0 and (outputs == 16 or outputs % 32 == 0)


def block_tiles(inputs: int) -> int:
    """Tiles that go through transforms and products together, for the cache's sake.

    Many where the weights are large and come from far, few where what is transformed should stay.
    """
    return 32 if inputs < 512 else 72


class Part:
    """leaky(gain * feature + shift), what a styled convolution concatenates; shift is (C,)."""

    def __init__(self, styled: StyledConv) -> None:
        bias = styled.activate.bias
        self.gain = float(styled.noise.weight) * SQRT2
        self.shift = bias[bias.numel() // 2 :] * SQRT2


class NativeLevel:
    """One resolution of the synthesis; arguments as for `cpu_levels.CoarseLevel`.

    shared: instead of whether it is larger than SHARED.
    """

    def __init__(self, kernels: Library, layers: Layers, dtype: torch.dtype, size: int,
                 shared: bool | None = None) -> None:  # fmt: skip
        up, conv, to_rgb = layers
        self.kernels, self.dtype, self.size = kernels, dtype, size
        self.up, self.conv = Modulation(up.conv), Modulation(conv.conv)
        self.to_rgb, self.rgb_bias = Modulation(to_rgb.conv), to_rgb.bias.flatten()
        self.parts = Part(up), Part(conv)
        self.biases = image_bias(up), image_bias(conv)
        self.channels = len(self.biases[0])
        self.inputs = up.conv.weight.shape[2]
        self.shared = size > SHARED if shared is None else shared
        if self.shared:
            self.up_weight = up_shared(up.conv.weight[0], dtype)
        elif dtype == torch.bfloat16:
            self.up_weight = up_bf16(kernels, up.conv.weight[0])
        else:
            self.up_weight = up_fp32(up.conv.weight[0])
        self.unit: Tensor | None = None
        self.strength: Tensor | None = None
        if dtype == torch.bfloat16:
            weight = conv.conv.weight[0]
            self.strength = strength_of(weight)
            weight = weight / self.strength[:, None, None]
            self.weight, self.unit = winograd_int16(kernels, weight)
        else:
            self.weight = panels(Winograd(conv.conv.weight[0]).weight)

    def styled(self, style: Tensor) -> StyledNative:
        """The level's convolutions for one face."""
        (up_style, up_scale), (conv_style, scale) = self.up(style), self.conv(style)
        assert up_scale is not None and scale is not None  # styled convolutions always demodulate
        return StyledNative(
            layer=self,
            up_style=up_style.contiguous(),
            up_scale=up_scale * (SQRT2 / 16),  # the blur's weights are sixteenths
            style=conv_style if self.strength is None else conv_style * self.strength,
            scale=scale * SQRT2,
            rgb=self.to_rgb.weight(style, 1.0).flatten(1).contiguous(),
        )


@dataclass(frozen=True)
class StyledNative:
    """A fine level for one face: what its styles and demodulation scale."""

    layer: NativeLevel
    up_style: Tensor
    up_scale: Tensor
    style: Tensor
    scale: Tensor
    rgb: Tensor

    def run(self, pool: StripPool, planes: LevelPlanes, finest: Finest | None = None,
            whole: int | None = None) -> None:  # fmt: skip
        """Compute the level; `planes` has RGB in three planes.

        finest: what to compute the encoder's feature from, instead of `planes.feature`.
        whole: instead of WHOLE.
        """
        layer = self.layer
        if layer.shared or layer.size > (WHOLE if whole is None else whole):
            row_bytes = layer.size * layer.channels * layer.dtype.itemsize
            step = strip_rows(layer.size, row_bytes, pool.threads)
            workers = [_Band(self, planes, thread, finest) for thread in range(pool.threads)]
            _share(pool, workers, _Band.run, bands(layer.size, step, pool.threads))
            return
        shape = (layer.channels, layer.size, layer.size)
        (blurred,) = planes.memory.take("blurred", [shape], layer.dtype)
        parts = [_Part(self, planes, thread, blurred) for thread in range(pool.threads)]
        panels = -(-layer.channels // PANEL)
        some = PANEL * -(-panels // pool.threads)
        _share(pool, parts, _Part.raise_outputs, cut(Rows(0, layer.channels), some))
        step = max(SMALLEST_STRIP, layer.size // pool.threads // TILE_ROW * TILE_ROW)
        _share(pool, parts, _Part.convolve, cut(Rows(0, layer.size), step))


def _share(
    pool: StripPool, workers: list[_W], do: Callable[[_W, Rows], None], pieces: list[Rows]
) -> None:
    """Let each piece be done by a worker that is free."""
    free: SimpleQueue[_W] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def piece(rows: Rows) -> None:
        mine = free.get()
        try:
            do(mine, rows)
        finally:
            free.put(mine)

    pool.each(piece, pieces)


def _pixel(plane: Tensor) -> int:
    """Elements from pixel to pixel of a channels_last (1, C, h, w)."""
    return plane.stride(3)


@dataclass(frozen=True)
class Room:
    """What a thread's buffers hold for a level, in values: fp32, and planes' where it has bands.

    Attributes:
        raised, scratch: as the kernels have them.
        kept: the part of `raised` that is zeros at first.
        tile_rows: that are up-convolved together.
        band: (C, rows, columns) of each of a band's three planes.
    """

    raised: int
    scratch: int
    kept: int
    tile_rows: int
    band: tuple[int, int, int]

    @classmethod
    def of(cls, inputs: int, channels: int, size: int) -> Room:
        """For a level of this side, `channels` for each of its parts and `inputs` from below."""
        up_block, block = block_tiles(inputs), block_tiles(2 * channels)
        across = size // TILE_ROW + 1
        tile_rows = max(1, up_block // across)
        near = (_KEPT + TILE_ROW * tile_rows) * (_KEPT + TILE_ROW * min(up_block, across))
        kept = _KEPT * (size + TILE_ROW)
        scratch = max(
            PHASE_PLANES * (up_block * (inputs + channels) + 32),
            SHARED_PLANES * (up_block * (inputs + 4 * channels) + 32),
            POINTS * (block * 3 * channels + 32),
        )
        band = (channels, TILE_ROW * (tile_rows + 1), size)
        return cls((kept + near) * channels, scratch, kept * channels, tile_rows, band)


def allot(memory: Planes, levels: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> None:
    """Take the buffers of levels, (inputs, channels, size) each, as large as the largest needs.

    Growing from level to level they would be fetched from the system several times.
    """
    rooms = [Room.of(*level) for level in levels]
    planes = [3 * math.prod(room.band) for room in rooms if room.band[2] > WHOLE]
    blurred = [channels * size**2 for _, channels, size in levels if size <= WHOLE]
    for thread in range(torch.get_num_threads() if rooms else 0):
        values = max(room.raised + room.scratch for room in rooms)
        memory.take(f"strip {thread} fp32", [(1, 1, values)], torch.float32)
        if planes:
            memory.take(f"strip {thread}", [(1, 1, max(planes))], dtype)
    if blurred:
        memory.take("blurred", [(1, 1, max(blurred))], dtype)


class _Worker:
    """A thread's buffers for a level, and what the kernels are given for all of the plane."""

    def __init__(self, level: StyledNative, planes: LevelPlanes, thread: int) -> None:
        self.level, self.planes = level, planes
        layer, self.name = level.layer, f"strip {thread}"
        self.room = room = Room.of(layer.inputs, layer.channels, layer.size)
        shapes = [(1, 1, room.raised), (1, 1, room.scratch)]
        buffers = planes.memory.take(f"{self.name} fp32", shapes, torch.float32)
        self.raised, self.scratch = (buffer.flatten() for buffer in buffers)

    def upsample(self, outputs: Rows, out: Tensor) -> dict[str, Argument]:
        """Arguments to up-convolve to some outputs; `out` has the pixels of what is written to."""
        level, source = self.level, self.planes.source
        layer, some, matrix = level.layer, outputs.slice, level.layer.up_weight[0]
        weight = layer.up_weight if layer.shared else matrix[outputs.start // PANEL :]
        return {
            "source": source, "out": out, "weight": weight, "matrix": matrix.numel(),
            "shared": int(layer.shared), "style": level.up_style, "scale": level.up_scale[some],
            "bias": layer.biases[0][some], "raised": self.raised, "scratch": self.scratch,
            "pixel": _pixel(source), "out_pixel": _pixel(out), "inputs": layer.inputs,
            "outputs": outputs.stop - outputs.start, "rows": source.shape[2],
            "columns": source.shape[3], "raised_width": layer.size + TILE_ROW,
            "block": block_tiles(layer.inputs),
        }  # fmt: skip

    def winograd(self, encoder: Tensor, out: Tensor) -> dict[str, Argument]:
        """Arguments to convolve; encoder and out have the pixels of what is read and written."""
        level, layer = self.level, self.level.layer
        part, channels = layer.parts[0], layer.channels
        return {
            "encoder": encoder, "out": out, "weight": layer.weight, "unit": layer.unit,
            "style": level.style, "shift": part.shift, "scale": level.scale,
            "bias": layer.biases[1], "scratch": self.scratch, "image_pixel": channels,
            "encoder_pixel": _pixel(encoder), "out_pixel": _pixel(out), "image_channels": channels,
            "encoder_channels": channels, "outputs": channels, "columns": layer.size,
            "block": block_tiles(2 * channels) // 16 * 16, "gain": part.gain,
        }  # fmt: skip

    def finish(self, image: Tensor, encoder: Tensor, part: Tensor | None) -> dict[str, Argument]:
        """Arguments for the encoder part and RGB; all have pixels of what is read or written."""
        layer, planes, after = self.level.layer, self.planes, self.level.layer.parts[1]
        return {
            "image": image, "encoder": encoder, "part": part, "weight": self.level.rgb,
            "shift": after.shift, "bias": layer.rgb_bias, "below": planes.rgb,
            "out": planes.out_rgb, "image_pixel": _pixel(image), "encoder_pixel": _pixel(encoder),
            "part_pixel": 0 if part is None else _pixel(part),
            "below_plane": planes.rgb.stride(1), "out_plane": planes.out_rgb.stride(1),
            "out_line": planes.out_rgb.stride(2),
            "channels": layer.channels, "columns": layer.size, "gain": after.gain,
        }  # fmt: skip


class _Part(_Worker):
    """For a small plane: `raise_outputs` fills some channels of `blurred`, all of the plane;
    `convolve` does the rest for some rows."""

    def __init__(
        self, level: StyledNative, planes: LevelPlanes, thread: int, blurred: Tensor
    ) -> None:
        super().__init__(level, planes, thread)
        self.blurred = blurred

    def raise_outputs(self, outputs: Rows) -> None:
        layer = self.level.layer
        self.raised[: self.room.kept].zero_()
        layer.kernels.call(
            "upsample", layer.dtype, **self.upsample(outputs, self.blurred[:, outputs.slice]),
            first=0, last=layer.size // TILE_ROW + 1, to=layer.size,
        )  # fmt: skip

    def convolve(self, rows: Rows) -> None:
        layer, planes = self.level.layer, self.planes
        above, below = int(rows.start > 0), int(rows.stop < layer.size)
        around = Rows(rows.start - above, rows.stop + below)
        feature = planes.feature(around)
        if planes.out is None:
            shape = (layer.channels, rows.stop - rows.start, layer.size)
            (image,), part = planes.memory.take(self.name, [shape], layer.dtype), None
        else:
            here = planes.out[:, :, rows.slice]
            image, part = here[:, : layer.channels], here[:, layer.channels :]
        layer.kernels.call(
            "winograd", layer.dtype, **self.winograd(feature, image),
            image=self.blurred[:, :, around.start :], rows_in=around.stop - around.start,
            rows_out=rows.stop - rows.start, top=1 - above,
        )  # fmt: skip
        layer.kernels.call(
            "finish", layer.dtype, **self.finish(image, feature[:, :, above:], part),
            first=rows.start, rows=rows.stop - rows.start,
        )  # fmt: skip


class _Band(_Worker):
    """For a large plane: `run` computes some rows, a few at a time (`native/band.c`)."""

    def __init__(
        self, level: StyledNative, planes: LevelPlanes, thread: int, finest: Finest | None
    ) -> None:
        super().__init__(level, planes, thread)
        layer, channels = level.layer, level.layer.channels
        shapes = [self.room.band] * 3
        blurred, feature, image = planes.memory.take(self.name, shapes, layer.dtype)
        encoder, part = feature, None
        if finest is None:
            encoder = planes.feature(Rows(0, layer.size))
        if planes.out is not None:
            image, part = planes.out[:, :channels], planes.out[:, channels:]
        self.arguments: dict[str, Argument] = {
            "up": structure("upsample", **self.upsample(Rows(0, channels), blurred)),
            "conv": structure("winograd", **self.winograd(encoder, image)),
            "finish": structure("finish", **self.finish(image, encoder, part)),
            "first": structure("first", **({} if finest is None else finest.arguments())),
            "blurred": blurred,
            "feature": feature,
            "step": self.room.tile_rows,
        }

    def run(self, band: Rows) -> None:
        layer = self.level.layer
        self.raised[: self.room.kept].zero_()
        bounds = {"from": band.start, "to": band.stop}
        layer.kernels.call("band", layer.dtype, **self.arguments, **bounds)
