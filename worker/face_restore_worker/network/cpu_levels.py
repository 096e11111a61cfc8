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

from face_restore_worker.network.cpu_memory import Planes
from face_restore_worker.network.cpu_ops import (
    Conv,
    TransposedConv,
    channels_last,
    empty_plane,
    pad_rows,
)
from face_restore_worker.network.cpu_strips import Rows, StripPool, bands, cut, strip_rows
from face_restore_worker.network.cpu_winograd import Winograd
from face_restore_worker.network.gpen import StyledConv, ToRgb
from face_restore_worker.network.primitives import (
    SLOPE,
    SQRT2,
    ModulatedConv2d,
    fir_kernel,
    upsample_rgb,
)

_EPSILON = 1e-8
# Winograd's convolution is faster with at least so many input channels than a direct one in fp32,
# and than one in bf16.
WINOGRAD_INPUTS = {torch.float32: 128, torch.bfloat16: 1024}
WINOGRAD_SIDE = 64  # smaller planes have fewer pixels than the transformed weights are worth
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
        dense = self.conv.modulation
        # The style is smaller than the weights to be scaled.
        inputs = F.linear(style * dense.scale, dense.weight, dense.bias * dense.lr_mul)[0]
        inputs = inputs * self.conv.scale
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


def winograd_pays(weight: Tensor, dtype: torch.dtype, size: int) -> bool:
    """Whether a (O, I, 3, 3) convolution of a plane of this side is faster by Winograd's way."""
    return size >= WINOGRAD_SIDE and weight.shape[1] >= WINOGRAD_INPUTS[dtype]


class WinogradConv:
    """A modulated convolution, bias and leaky ReLU by Winograd's way: scaled activations, fp32.

    Args:
        winograd: the convolution without its scales.
        scales: of inputs (I,) and outputs (O,), fp32; the equalised scale is among them.
        bias: fp32 (O,).
    """

    def __init__(self, winograd: Winograd, scales: tuple[Tensor, Tensor], bias: Tensor) -> None:
        self.winograd, self.scales, self.bias = winograd, scales, bias

    def padded(self, rows: int, columns: int) -> Tensor:
        """Zeros for the inputs of a plane of rows x columns, with its border of one zero."""
        return torch.zeros(rows + 2, columns + 2, len(self.scales[0]))

    def fill(self, padded: Tensor, x: Tensor, top: int, channel: int) -> None:
        """Put x, channels_last (1, I', h, w), scaled, at a row and a channel of `padded`."""
        lines = x[0].permute(1, 2, 0).float()
        channels = slice(channel, channel + lines.shape[2])
        here = padded[top : top + lines.shape[0], 1:-1, channels]
        torch.mul(lines, self.scales[0][channels], out=here)

    def __call__(self, padded: Tensor) -> Tensor:
        """Map what was filled in, (h + 2, w + 2, I), to channels_last fp32 (1, O, h, w)."""
        y = empty_plane(len(self.bias), padded.shape[0] - 2, padded.shape[1] - 2)
        lines = y[0].permute(1, 2, 0)
        self.winograd(padded, lines)
        torch.addcmul(self.bias, lines, self.scales[1], out=lines)
        return F.leaky_relu_(y, SLOPE)


class CoarseConv:
    """A styled convolution of a small plane: packed weights, scaled activations."""

    def __init__(self, styled: StyledConv, dtype: torch.dtype, size: int) -> None:
        self.dtype, self.upsample = dtype, styled.conv.upsample
        self.modulation = Modulation(styled.conv)
        self.part = encoder_part(styled, dtype)
        self.bias = image_bias(styled)
        weight = styled.conv.weight[0]
        like = [1, weight.shape[1], size, size]
        self.conv: Conv | TransposedConv | Winograd
        if self.upsample:
            self.conv = TransposedConv(weight.transpose(0, 1), dtype, like)
        elif winograd_pays(weight, dtype, size):
            self.conv = Winograd(weight)
        else:
            # oneDNN packs shared weights anew for every face: 1 % of its time for 0.1 GB.
            self.conv = Conv(weight, None, dtype, like=like, shared=dtype == weight.dtype)

    def __call__(self, x: Tensor, feature: Tensor, style: Tensor) -> Tensor:
        """Map (1, I, h, w) and the feature (1, O, H, W) to image and encoder part, (1, 2 O, H, W).

        (H, W) is (h, w), or twice that where this is an up-convolution.
        """
        inputs, outputs = self.modulation(style)
        assert outputs is not None  # styled convolutions always demodulate
        y = self._image(x, inputs, outputs * SQRT2)
        return torch.cat((y, self.part(feature)), dim=1)

    def _image(self, x: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        conv, dtype, channels = self.conv, self.dtype, len(outputs)
        if isinstance(conv, Winograd):
            scaled = WinogradConv(conv, (inputs, outputs), self.bias)
            padded = scaled.padded(*x.shape[2:])
            scaled.fill(padded, x, 1, 0)
            return channels_last(scaled(padded), dtype)
        x = x * inputs.to(dtype).view(1, -1, 1, 1)
        gain = outputs.view(-1, 1, 1, 1)
        if isinstance(conv, TransposedConv):
            fir = fir_kernel(channels, 4.0, gain) * gain
            return Conv(fir, self.bias, dtype, groups=channels, leaky=True)(conv(x), (1, 1))
        return Conv(gain, self.bias, dtype, groups=channels, leaky=True)(conv(x, (1, 1)))


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
        weight = conv.conv.weight[0]
        self.winograd = Winograd(weight) if winograd_pays(weight, dtype, size) else None

    def styled(self, style: Tensor) -> StyledLevel:
        """The level's convolutions for one face."""
        dtype, channels = self.dtype, self.channels
        size, half = self.size, self.size // 2
        up = self.up.weight(style, SQRT2).transpose(0, 1)
        fir = fir_kernel(channels, 4.0, style)
        conv: WinogradConv | SplitConv
        if self.winograd is not None:
            inputs, outputs = self.conv(style)
            assert outputs is not None  # styled convolutions always demodulate
            conv = WinogradConv(self.winograd, (inputs, outputs * SQRT2), self.biases[1])
        else:
            conv = SplitConv(self.conv.weight(style, SQRT2), self.biases[1], dtype, size)
        colours = self.to_rgb.weight(style, 1.0)
        colour_image, colour_encoder = colours.chunk(2, dim=1)
        return StyledLevel(
            size=size,
            channels=channels,
            dtype=dtype,
            up=TransposedConv(up, dtype, [1, up.shape[0], 16, half]),
            blur=Conv(fir, self.biases[0], dtype, groups=channels, leaky=True),
            parts=self.parts,
            conv=conv,
            rgb=Conv(colours, self.rgb_bias, dtype),
            rgb_image=Conv(colour_image, self.rgb_bias, dtype),
            rgb_encoder=Conv(colour_encoder, None, dtype),
        )


class SplitConv:
    """A convolution of image part and encoder part beside each other, bias and leaky ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, size: int) -> None:
        image, encoder = weight.chunk(2, dim=1)
        like = [1, image.shape[1], 32, size]
        self.image = Conv(image, None, dtype, like=like)
        self.encoder = Conv(encoder, bias, dtype, like=like)

    def __call__(self, image: Tensor, encoder: Tensor, top: int, bottom: int) -> Tensor:
        """Map two (1, C, h, w), zero rows to be added above and below, to (1, C, h', w)."""
        encoder, padding = pad_rows(encoder, top, bottom)
        total = self.encoder(encoder, (padding, 1))
        image, padding = pad_rows(image, top, bottom)
        return F.leaky_relu_(self.image.add_(total, image, (padding, 1)), SLOPE)


@dataclass(frozen=True)
class LevelPlanes:
    """What a level reads and writes: whole planes, channels_last.

    Attributes:
        source: image and encoder part of the level below, (1, 2 C', S / 2, S / 2).
        feature: rows of the encoder's feature, (1, C, rows, S).
        rgb: fp32 RGB of the level below inside a border of one zero, (1, 3, S / 2 + 2, S / 2 + 2).
        out: image and encoder part of this level, (1, 2 C, S, S), written; None at the finest.
        out_rgb: fp32 RGB of this level, (1, 3, S, S), written.
        memory: gives buffers that outlast the level, by name.
    """

    source: Tensor
    feature: Feature
    rgb: Tensor
    out: Tensor | None
    out_rgb: Tensor
    memory: Planes


@dataclass(frozen=True)
class StyledLevel:
    """A fine level for one face: the convolutions with styles and demodulation in the weights."""

    size: int
    channels: int
    dtype: torch.dtype
    up: TransposedConv
    blur: Conv
    parts: tuple[Conv, Conv]
    conv: WinogradConv | SplitConv
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
        self.padded: Tensor | None = None

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
        part = level.parts[0](feature)
        if isinstance(level.conv, WinogradConv):
            total = self._winograd(level.conv, y, part, top, bottom)
        else:
            total = level.conv(y, part, top, bottom)
        del y, part
        inner = feature[:, :, rows.start - around.start : rows.stop - around.start]
        self._finish(rows, total, level.parts[1](inner))

    def _winograd(self, conv: WinogradConv, y: Tensor, part: Tensor, top: int, bottom: int
                  ) -> Tensor:  # fmt: skip
        if self.padded is None:
            self.padded = conv.padded(self.step, self.level.size)
        rows = top + y.shape[2] + bottom
        if top:
            self.padded[0] = 0
        if bottom:
            self.padded[rows - 1] = 0
        conv.fill(self.padded, y, top, 0)
        conv.fill(self.padded, part, top, y.shape[1])
        return channels_last(conv(self.padded[:rows]), self.level.dtype)

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
