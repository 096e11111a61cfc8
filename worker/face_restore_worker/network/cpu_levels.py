"""The resolutions of the synthesis on the processor, coarse ones and fine ones.

Both compute an up-convolution, a convolution and the step to RGB of one face (`gpen.Generator`).
Where there are few pixels the weights are the larger part: they are packed at load, and styles
and demodulation scale the activations. Where there are many pixels styles and demodulation scale
the weights, once for a face, and the plane is worked through in strips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from face_restore_worker.network.cpu_ops import Conv, TransposedConv, channels_last, pad_rows
from face_restore_worker.network.cpu_strips import Rows, StripPool, bands, cut, strip_rows
from face_restore_worker.network.gpen import StyledConv, ToRgb
from face_restore_worker.network.primitives import (
    SLOPE,
    SQRT2,
    ModulatedConv2d,
    fir_kernel,
    upsample_rgb,
)

_EPSILON = 1e-8
Feature = Callable[[Rows], Tensor]  # rows of an encoder feature, (1, C, rows, w), channels_last
Layers = tuple[StyledConv, StyledConv, ToRgb]  # of one resolution: up-convolution, convolution


class Modulation:
    """A modulated convolution's scales for one style: of its inputs and of its outputs.

    modulated weight = weight * inputs[None, :] * outputs[:, None]: the equalised scale and the
    style are in `inputs`; `outputs` demodulates, rsqrt(sum over I, k, k of (W * inputs)^2 + 1e-8),
    from the squares summed over k, k once at load.
    """

    def __init__(self, conv: ModulatedConv2d) -> None:
        self.conv = conv
        self.energy = conv.weight[0].square().sum(dim=(2, 3)) if conv.demodulate else None

    def __call__(self, style: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map the style (1, style_dim) to fp32 inputs (I,) and outputs (O,) or None."""
        inputs = self.conv.modulation(style)[0] * self.conv.scale
        if self.energy is None:
            return inputs, None
        return inputs, torch.rsqrt(torch.mv(self.energy, inputs.square()) + _EPSILON)

    def weight(self, style: Tensor, gain: float) -> Tensor:
        """The (O, I, k, k) fp32 weights for one style, times gain."""
        inputs, outputs = self(style)
        weight = self.conv.weight[0] * (inputs * gain)[None, :, None, None]
        return weight if outputs is None else weight.mul_(outputs[:, None, None, None])


def encoder_part(styled: StyledConv, dtype: torch.dtype) -> Conv:
    """leaky(sqrt 2 * gain * feature + sqrt 2 * bias): what a styled convolution concatenates."""
    channels = styled.activate.bias.numel() // 2
    gain = (styled.noise.weight * SQRT2).view(1, 1, 1, 1).expand(channels, 1, 1, 1)
    bias = styled.activate.bias[channels:] * SQRT2
    return Conv(gain.contiguous(), bias, dtype, groups=channels, leaky=True)


def image_bias(styled: StyledConv) -> Tensor:
    """sqrt 2 * bias of the image part, fp32 (C,)."""
    bias = styled.activate.bias
    return bias[: bias.numel() // 2] * SQRT2


class CoarseConv:
    """A styled convolution of a small plane: packed weights, scaled activations."""

    def __init__(self, styled: StyledConv, dtype: torch.dtype, size: int) -> None:
        self.dtype, self.upsample = dtype, styled.conv.upsample
        self.modulation = Modulation(styled.conv)
        self.part = encoder_part(styled, dtype)
        self.bias = image_bias(styled)
        weight = styled.conv.weight[0]
        like = [1, weight.shape[1], size, size]
        self.conv: Conv | TransposedConv
        if self.upsample:
            self.conv = TransposedConv(weight.transpose(0, 1), dtype, like)
        else:
            self.conv = Conv(weight, None, dtype, like=like)

    def __call__(self, x: Tensor, feature: Tensor, style: Tensor) -> Tensor:
        """Map (1, I, h, w) and the feature (1, O, H, W) to image and encoder part, (1, 2 O, H, W).

        (H, W) is (h, w), or twice that where this is an up-convolution.
        """
        inputs, outputs = self.modulation(style)
        assert outputs is not None  # styled convolutions always demodulate
        x = x * inputs.to(self.dtype).view(1, -1, 1, 1)
        gain = (outputs * SQRT2).view(-1, 1, 1, 1)
        channels = len(outputs)
        if isinstance(self.conv, TransposedConv):
            fir = fir_kernel(channels, 4.0, gain) * gain
            blur = Conv(fir, self.bias, self.dtype, groups=channels, leaky=True)
            y = blur(self.conv(x), (1, 1))
        else:
            scale = Conv(gain, self.bias, self.dtype, groups=channels, leaky=True)
            y = scale(self.conv(x, (1, 1)))
        return torch.cat((y, self.part(feature)), dim=1)


class CoarseLevel:
    """One resolution of the synthesis, the whole plane at once.

    Args:
        layers: of the reference network.
        dtype: of convolutions and activations.
        size: side of the result, pixels.
    """

    def __init__(self, layers: Layers, dtype: torch.dtype, size: int) -> None:
        up, conv, to_rgb = layers
        self.up = CoarseConv(up, dtype, size // 2)
        self.conv = CoarseConv(conv, dtype, size)
        self.to_rgb = CoarseRgb(to_rgb, dtype)

    def __call__(self, x: Tensor, feature: Tensor, rgb: Tensor, style: Tensor
                 ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Map the level below, (1, 2 C', h, h) and RGB (1, 3, h, h), to this one's."""
        x = self.up(x, feature, style)
        x = self.conv(x, feature, style)
        return x, upsample_rgb(rgb) + self.to_rgb(x, style)


class CoarseRgb:
    """The step to RGB of a small plane; RGB is fp32."""

    def __init__(self, layer: ToRgb, dtype: torch.dtype) -> None:
        self.modulation, self.bias, self.dtype = Modulation(layer.conv), layer.bias, dtype

    def __call__(self, x: Tensor, style: Tensor) -> Tensor:
        """Map image and encoder part, (1, 2 C, h, w), to fp32 (1, 3, h, w)."""
        weight = channels_last(self.modulation.weight(style, 1.0), self.dtype)
        return F.conv2d(x, weight).float() + self.bias


class FineLevel:
    """One resolution of the synthesis in strips of rows; arguments as for `CoarseLevel`."""

    def __init__(self, layers: Layers, dtype: torch.dtype, size: int) -> None:
        up, conv, to_rgb = layers
        self.dtype, self.size = dtype, size
        self.up, self.conv = Modulation(up.conv), Modulation(conv.conv)
        self.to_rgb, self.rgb_bias = Modulation(to_rgb.conv), to_rgb.bias.flatten()
        self.parts = encoder_part(up, dtype), encoder_part(conv, dtype)
        self.biases = image_bias(up), image_bias(conv)
        self.channels = len(self.biases[0])

    def styled(self, style: Tensor) -> StyledLevel:
        """The level's convolutions for one face."""
        dtype, channels = self.dtype, self.channels
        size, half = self.size, self.size // 2
        up = self.up.weight(style, SQRT2).transpose(0, 1)
        fir = fir_kernel(channels, 4.0, style)
        image, encoder = self.conv.weight(style, SQRT2).chunk(2, dim=1)
        rows = [1, channels, 32, size]
        colours = self.to_rgb.weight(style, 1.0)
        colour_image, colour_encoder = colours.chunk(2, dim=1)
        return StyledLevel(
            size=size,
            channels=channels,
            dtype=dtype,
            up=TransposedConv(up, dtype, [1, up.shape[0], 16, half]),
            blur=Conv(fir, self.biases[0], dtype, groups=channels, leaky=True),
            parts=self.parts,
            image=Conv(image, None, dtype, like=rows),
            encoder=Conv(encoder, self.biases[1], dtype, like=rows),
            rgb=Conv(colours, self.rgb_bias, dtype),
            rgb_image=Conv(colour_image, self.rgb_bias, dtype),
            rgb_encoder=Conv(colour_encoder, None, dtype),
        )


@dataclass(frozen=True)
class LevelPlanes:
    """What a level reads and writes: whole planes, channels_last.

    Attributes:
        source: image and encoder part of the level below, (1, 2 C', S / 2, S / 2).
        feature: rows of the encoder's feature, (1, C, rows, S).
        rgb: fp32 RGB of the level below inside a border of one zero, (1, 3, S / 2 + 2, S / 2 + 2).
        out: image and encoder part of this level, (1, 2 C, S, S), written; None at the finest.
        out_rgb: fp32 RGB of this level, (1, 3, S, S), written.
    """

    source: Tensor
    feature: Feature
    rgb: Tensor
    out: Tensor | None
    out_rgb: Tensor


@dataclass(frozen=True)
class StyledLevel:
    """A fine level for one face: the convolutions with styles and demodulation in the weights."""

    size: int
    channels: int
    dtype: torch.dtype
    up: TransposedConv
    blur: Conv
    parts: tuple[Conv, Conv]
    image: Conv
    encoder: Conv
    rgb: Conv
    rgb_image: Conv
    rgb_encoder: Conv

    def run(self, pool: StripPool, planes: LevelPlanes) -> None:
        """Compute the level, in bands of strips."""
        row_bytes = self.size * self.channels * self.dtype.itemsize
        step = strip_rows(self.size, row_bytes, pool.threads)

        def band(rows: Rows) -> None:
            _Band(self, planes, step).run(rows)

        pool.each(band, bands(self.size, step, pool.threads))


_LEAD = 5  # rows of the transposed convolution that a strip shares with the strip before it


class _Band:
    """Some strips of a level, one after the other from the top."""

    def __init__(self, level: StyledLevel, planes: LevelPlanes, step: int) -> None:
        self.level, self.planes = level, planes
        shape = (1, level.channels, step + _LEAD, level.size + 1)
        # Row k holds row (start of the strip - 2 + k) of the transposed convolution.
        self.raised = torch.empty(shape, dtype=level.dtype, memory_format=torch.channels_last)
        self.step = step

    def run(self, band: Rows) -> None:
        for rows in cut(band, self.step):
            if rows.start > band.start:  # the strip before had `step` rows
                self.raised[:, :, :_LEAD] = self.raised[:, :, self.step :]
            self._raise(rows, first=rows.start == band.start)
            self._strip(rows)

    def _raise(self, rows: Rows, first: bool) -> None:
        """Fill `raised` with the rows of the transposed convolution that `rows` needs."""
        size, origin = self.level.size, rows.start - 2
        new = Rows(max(origin, 0) if first else rows.start + 3, min(rows.stop + 3, size + 1))
        # Row j takes rows (j - 2) / 2 .. j / 2 of the level below.
        source = Rows(max((new.start - 1) // 2, 0), min((new.stop - 1) // 2 + 1, size // 2))
        y = self.level.up(self.planes.source[:, :, source.slice])
        here = slice(new.start - 2 * source.start, new.stop - 2 * source.start)
        self.raised[:, :, new.start - origin : new.stop - origin] = y[:, :, here]
        if origin < 0:
            self.raised[:, :, :-origin] = 0
        if rows.stop == size:
            self.raised[:, :, size + 1 - origin] = 0

    def _strip(self, rows: Rows) -> None:
        level, planes = self.level, self.planes
        around = Rows(max(rows.start - 1, 0), min(rows.stop + 1, level.size))
        top, bottom = 1 - (rows.start - around.start), 1 - (around.stop - rows.stop)
        # Blurred row i takes rows i - 1 .. i + 2, so row `around.start` begins at k = top.
        raised = self.raised[:, :, top : top + around.stop - around.start + 3]
        y = level.blur(raised, (0, 1))
        feature = planes.feature(around)
        part, padding = pad_rows(level.parts[0](feature), top, bottom)
        total = level.encoder(part, (padding, 1))
        y, padding = pad_rows(y, top, bottom)
        total = F.leaky_relu_(level.image.add_(total, y, (padding, 1)), SLOPE)
        inner = feature[:, :, rows.start - around.start : rows.stop - around.start]
        self._finish(rows, total, level.parts[1](inner))

    def _finish(self, rows: Rows, image: Tensor, part: Tensor) -> None:
        """Store the strip's image and encoder part and add what they are in RGB."""
        level, planes = self.level, self.planes
        if planes.out is None:
            colour = level.rgb_encoder.add_(level.rgb_image(image), part)
        else:
            here = planes.out[:, :, rows.slice]
            here[:, : level.channels] = image
            here[:, level.channels :] = part
            colour = level.rgb(here)
        below = planes.rgb[:, :, rows.start // 2 : rows.stop // 2 + 2]
        below = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        torch.add(below[:, :, 2:-2, 2:-2], colour, out=planes.out_rgb[:, :, rows.slice])
