"""A fine level of the processor's GPEN with the compiled kernels (`native/`).

The same function as `cpu_levels.FineLevel`, with fewer products and fewer passes over the planes:
up-convolution, blur, bias and leaky ReLU are one kernel (`upsample.c`), the convolution with its
encoder part another (`winograd.c`), the encoder part for the next level and RGB a third
(`finish.c`). All three take and give fp32 or bf16 and compute in fp32, but for the up-convolution's
products in bf16. Styles and demodulation scale what goes in and comes out, so the weights are
transformed once at load.
"""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from face_restore_worker.network.cpu_levels import (
    Layers,
    LevelPlanes,
    Modulation,
    image_bias,
)
from face_restore_worker.network.cpu_native_weights import (
    POINTS,
    paired,
    panels,
    phase_weights,
    winograd_int16,
)
from face_restore_worker.network.cpu_strips import Rows, StripPool, bands, cut, strip_rows
from face_restore_worker.network.cpu_winograd import Winograd
from face_restore_worker.network.gpen import StyledConv
from face_restore_worker.network.native.library import Library
from face_restore_worker.network.primitives import SQRT2

PHASE_PLANES = 81  # products of an up-convolution's tile
TILE_ROW = 8  # rows of the result by a row of the up-convolution's tiles
_LEAD = 2  # the first of them lies so many rows above the tiles
_KEPT = 3  # rows of the transposed convolution that the next tile row needs


def usable(layers: Layers, size: int) -> bool:
    """Whether the kernels take a level of these layers and this side."""
    inputs, outputs = layers[0].conv.weight.shape[2], layers[1].conv.weight.shape[1]
    return size % 32 == 0 and inputs % 16 == 0 and (outputs == 16 or outputs % 32 == 0)


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
    """One resolution of the synthesis; arguments as for `cpu_levels.CoarseLevel`."""

    def __init__(self, kernels: Library, layers: Layers, dtype: torch.dtype, size: int) -> None:
        up, conv, to_rgb = layers
        self.kernels, self.dtype, self.size = kernels, dtype, size
        self.up, self.conv = Modulation(up.conv), Modulation(conv.conv)
        self.to_rgb, self.rgb_bias = Modulation(to_rgb.conv), to_rgb.bias.flatten()
        self.parts = Part(up), Part(conv)
        self.biases = image_bias(up), image_bias(conv)
        self.channels = len(self.biases[0])
        self.inputs = up.conv.weight.shape[2]
        self.up_weight = panels(phase_weights(up.conv.weight[0]))
        if dtype == torch.bfloat16:
            self.up_weight = paired(self.up_weight)
        self.unit: Tensor | None = None
        if dtype == torch.bfloat16:
            self.weight, self.unit = winograd_int16(conv.conv.weight[0])
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
            style=conv_style.contiguous(),
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

    def run(self, pool: StripPool, planes: LevelPlanes) -> None:
        """Compute the level, in bands of strips; `planes` has RGB in three planes."""
        layer = self.layer
        row_bytes = layer.size * layer.channels * layer.dtype.itemsize
        step = strip_rows(layer.size, row_bytes, pool.threads)
        free: SimpleQueue[_Band] = SimpleQueue()
        for thread in range(pool.threads):
            free.put(_Band(self, planes, step, f"strip {thread}"))

        def band(rows: Rows) -> None:
            mine = free.get()
            try:
                mine.run(rows)
            finally:
                free.put(mine)

        pool.each(band, bands(layer.size, step, pool.threads))


def _pixel(plane: Tensor) -> int:
    """Elements from pixel to pixel of a channels_last (1, C, h, w)."""
    return plane.stride(3)


class _Band:
    """Some strips of a level, one after the other from the top."""

    def __init__(self, level: StyledNative, planes: LevelPlanes, step: int, name: str) -> None:
        self.level, self.planes, self.step = level, planes, step
        layer = level.layer
        size, channels, dtype = layer.size, layer.channels, layer.dtype
        shapes = [(channels, step + TILE_ROW, size)]
        if planes.out is None:
            shapes.append((channels, step, size))
        taken = planes.memory.take(name, shapes, dtype)
        # Row k of `blurred` is row (start of the strip - _LEAD + k).
        self.blurred, self.image = taken[0], taken[1] if planes.out is None else None
        up_block, block = block_tiles(layer.inputs), block_tiles(2 * channels)
        across = size // TILE_ROW + 1
        near = (_KEPT + TILE_ROW * max(1, up_block // across)) * (
            _KEPT + TILE_ROW * min(up_block, across)
        )
        kept = _KEPT * (size + TILE_ROW)
        scratch = max(
            PHASE_PLANES * (up_block * (layer.inputs + channels) + 32),
            POINTS * (block * 3 * channels + 32),
        )
        buffers = planes.memory.take(
            f"{name} fp32", [(1, 1, (kept + near) * channels), (1, 1, scratch)], torch.float32
        )
        self.raised, self.scratch = (buffer.flatten() for buffer in buffers)

    def run(self, band: Rows) -> None:
        self.raised.zero_()
        for rows in cut(band, self.step):
            if rows.start == band.start:
                # The tile row before leaves what the first one needs.
                self._upsample(max(rows.start // TILE_ROW - 1, 0), rows)
            else:  # the strip before had `step` rows, and has computed so many more
                self.blurred[:, :, :TILE_ROW] = self.blurred[:, :, self.step :]
                self._upsample(rows.start // TILE_ROW + 1, rows)
            self._strip(rows)

    def _upsample(self, first: int, rows: Rows) -> None:
        """Fill `blurred` from tile row `first` on with what `rows` needs."""
        level, source, out = self.level, self.planes.source, self.blurred
        layer = level.layer
        origin = rows.start - _LEAD
        start = max(first * TILE_ROW - _LEAD, origin, 0)
        last = rows.stop // TILE_ROW + 1
        layer.kernels.call(
            "upsample", layer.dtype, source=source, out=out[:, :, start - origin :],
            weight=layer.up_weight, style=level.up_style, scale=level.up_scale,
            bias=layer.biases[0], raised=self.raised, scratch=self.scratch, pixel=_pixel(source),
            inputs=layer.inputs, outputs=layer.channels, rows=source.shape[2],
            columns=source.shape[3], raised_width=layer.size + TILE_ROW, first=first, last=last,
            to=min(last * TILE_ROW - _LEAD, layer.size), block=block_tiles(layer.inputs),
            **{"from": start},
        )  # fmt: skip

    def _strip(self, rows: Rows) -> None:
        """Convolve and finish rows whose `blurred` is there."""
        level, planes = self.level, self.planes
        layer, channels = level.layer, level.layer.channels
        around = Rows(max(rows.start - 1, 0), min(rows.stop + 1, layer.size))
        above = rows.start - around.start  # rows of `around` above the strip
        feature = planes.feature(around)
        image, part = self.image, None
        if image is None:
            assert planes.out is not None
            here = planes.out[:, :, rows.slice]
            image, part = here[:, :channels], here[:, channels:]
        before, after = layer.parts
        layer.kernels.call(
            "winograd", layer.dtype, image=self.blurred[:, :, _LEAD - above :], encoder=feature,
            out=image, weight=layer.weight, unit=layer.unit, style=level.style,
            shift=before.shift,
            scale=level.scale, bias=layer.biases[1], scratch=self.scratch, image_pixel=channels,
            encoder_pixel=_pixel(feature), out_pixel=_pixel(image), image_channels=channels,
            encoder_channels=channels, outputs=channels, rows_in=around.stop - around.start,
            rows_out=rows.stop - rows.start, columns=layer.size, top=1 - above,
            block=block_tiles(2 * channels) // 16 * 16, gain=before.gain,
        )  # fmt: skip
        layer.kernels.call(
            "finish", layer.dtype, image=image, encoder=feature[:, :, above:], part=part,
            weight=level.rgb, shift=after.shift, bias=layer.rgb_bias, below=planes.rgb,
            out=planes.out_rgb, image_pixel=_pixel(image), encoder_pixel=_pixel(feature),
            part_pixel=0 if part is None else _pixel(part), below_plane=planes.rgb.stride(1),
            out_plane=planes.out_rgb.stride(1), channels=channels, first=rows.start,
            rows=rows.stop - rows.start, columns=layer.size, gain=after.gain,
        )  # fmt: skip
