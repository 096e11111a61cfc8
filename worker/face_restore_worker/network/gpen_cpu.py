"""GPEN for the processor: the function of `gpen.Gpen`, in row strips and without concatenations.

What differs from the reference, and why it is still the same function:

* sqrt(2) * leaky(y + b) == leaky(sqrt(2) * y + sqrt(2) * b), so the activation's gain is folded
  into weights and biases, and oneDNN applies bias and leaky ReLU while it writes the result.
* A convolution of concat(p, e) is conv(p, W[:, :P]) + conv(e, W[:, P:]): the image part `p` and
  the encoder part `e` are never copied into one tensor.
* The encoder part sqrt(2) * leaky(gain * feature + b) is rebuilt from the feature wherever it is
  needed, and the finest feature (a 1x1 convolution of the picture) from the picture.
* Large levels are worked through in strips of rows whose buffers stay in the cache and are
  handed out again by the allocator; halo rows are computed twice.

Mapping, modulation, demodulation and the RGB sum are fp32 whatever the convolutions are in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from face_restore_worker.network.gpen import Gpen, StyledConv, ToRgb
from face_restore_worker.network.primitives import (
    SLOPE,
    SQRT2,
    BiasedLeaky,
    EqualConv2d,
    fir_kernel,
    upsample_rgb,
)

# Bytes of one strip of one feature: small enough for the cache, large enough for two threads.
STRIP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a tensor that begins at row `start` of its whole plane."""

    start: int
    stop: int


def strips(height: int, row_bytes: int) -> list[Rows]:
    """Cut `height` rows into strips of an even number of rows of about STRIP_BYTES each."""
    count = max(1, round(height * row_bytes / STRIP_BYTES))
    rows = max(2, -(-height // count) // 2 * 2)
    return [Rows(start, min(start + rows, height)) for start in range(0, height, rows)]


def _channels_last(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)


class ConvLeaky:
    """Convolution, bias and leaky ReLU in one pass where oneDNN can, else one after the other."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, stride: int = 1,
                 groups: int = 1) -> None:  # fmt: skip
        self.weight, self.bias = _channels_last(weight, dtype), bias.to(dtype)
        self.stride, self.groups = stride, groups
        self.fused = fused_available(dtype)

    def __call__(self, x: Tensor, padding: tuple[int, int] = (0, 0)) -> Tensor:
        """Map (1, I, h, w) to leaky(conv(x) + bias), (1, O, h', w')."""
        stride = [self.stride, self.stride]
        if self.fused:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, list(padding), stride, [1, 1], self.groups,
                "leaky_relu", [SLOPE], "",
            )  # fmt: skip
        y = F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)
        return F.leaky_relu_(y, SLOPE)


def fused_available(dtype: torch.dtype) -> bool:
    """True where PyTorch offers oneDNN's fused convolutions for `dtype`."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def conv_add_(total: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Add conv(x, weight) to `total` in place where oneDNN can; returns the sum."""
    if fused_available(x.dtype):
        return torch.ops.mkldnn._convolution_pointwise_(
            total, x, weight, None, list(padding), [1, 1], [1, 1], 1, "add", 1.0, None, [], None
        )
    return total.add_(F.conv2d(x, weight, padding=padding))


def pad_rows(x: Tensor, top: int, bottom: int) -> tuple[Tensor, int]:
    """Return x and the symmetric row padding left to the convolution.

    The zeros outside of the plane are added by the convolution where both sides need the same
    number, and as rows of their own where only one side of a strip lies at the border.
    """
    if top == bottom:
        return x, top
    padded = F.pad(x, (0, 0, top, bottom))
    return padded.contiguous(memory_format=torch.channels_last), 0


class EncoderPart:
    """leaky(sqrt(2) * gain * feature + sqrt(2) * bias): what a styled convolution concatenates."""

    def __init__(self, styled: StyledConv, dtype: torch.dtype) -> None:
        channels = styled.activate.bias.numel() // 2
        gain = (styled.noise.weight * SQRT2).view(1, 1, 1, 1).expand(channels, 1, 1, 1)
        bias = styled.activate.bias[channels:] * SQRT2
        self.apply = ConvLeaky(gain.contiguous(), bias, dtype, groups=channels)

    def __call__(self, feature: Tensor) -> Tensor:
        """Map the encoder's feature (1, C, h, w) to the same shape."""
        return self.apply(feature)


class SplitWeight:
    """A modulated convolution's weight for one face, cut into image part and encoder part."""

    def __init__(self, layer: StyledConv | ToRgb, style: Tensor, parts: int, gain: float,
                 dtype: torch.dtype) -> None:  # fmt: skip
        weight = layer.conv.modulated_weight(style) * gain
        self.parts = [_channels_last(part, dtype) for part in weight.chunk(parts, dim=1)]


Layers = tuple[StyledConv, StyledConv, ToRgb]  # of one resolution: up-convolution, convolution


class GpenCpu:
    """A prepared GPEN; call it with fp32 RGB (N, 3, S, S) in [-1, 1], get the same shape in fp32.

    Args:
        network: the reference network with fp32 parameters on the CPU; its weights are shared.
        dtype: of convolutions and activations, torch.float32 or torch.bfloat16.
    """

    def __init__(self, network: Gpen, dtype: torch.dtype = torch.float32) -> None:
        self.network, self.dtype = network, dtype
        self.levels = network.architecture.levels
        self.channels = network.architecture.channels
        self.encoder = []
        for index in range(self.levels + 1):
            conv, activation = list(network.get_submodule(f"ecd{index}.0").children())[-2:]
            assert isinstance(conv, EqualConv2d) and isinstance(activation, BiasedLeaky)
            weight = conv.weight * (conv.scale * SQRT2)
            self.encoder.append(ConvLeaky(weight, activation.bias * SQRT2, dtype, conv.stride))
        generator = network.generator
        self.layers = cast(
            list[Layers],
            list(zip(generator.convs[::2], generator.convs[1::2], generator.to_rgbs, strict=True)),
        )
        like = torch.empty(0, dtype=torch.float32)
        self.firs = {c: _channels_last(fir_kernel(c, 1.0, like), dtype) for c in set(self.channels)}

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Restore each face of the batch by itself; the result is not clamped."""
        return torch.cat([self._one(face) for face in x.split(1)])

    def _one(self, x: Tensor) -> Tensor:
        picture = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        features = self._encode(picture)
        assert features[-1] is not None
        code = self.network.final_linear(features[-1].float().contiguous().flatten(1))
        style = self.network.generator.style(code)
        return self._synthesise(picture, features, style)

    # --- encoder -----------------------------------------------------------------------

    def _finest(self, picture: Tensor, rows: Rows) -> Tensor:
        """The encoder's first feature, of some rows, from the picture."""
        return self.encoder[0](picture[:, :, rows.start : rows.stop])

    def _encode(self, picture: Tensor) -> list[Tensor | None]:
        """Features from S/2 down to 4; the first entry is None, as it is never kept."""
        features: list[Tensor | None] = [None]
        size = picture.shape[-1]
        for index in range(1, self.levels + 1):
            size //= 2
            features.append(self._encode_level(picture, features[-1], index, size))
        return features

    def _encode_level(self, picture: Tensor, above: Tensor | None, index: int, size: int) -> Tensor:
        c_in, c_out = self.channels[self.levels - index + 1], self.channels[self.levels - index]
        fir = self.firs[c_in]
        out = self._plane(c_out, size)
        for rows in strips(size, 4 * size * c_in * out.element_size()):
            # Blurred row i takes rows i-2 .. i+1; row a of the result takes blurred 2a .. 2a+2.
            first, last = 2 * rows.start - 2, 2 * rows.stop + 2
            need = Rows(max(first, 0), min(last, 2 * size))
            part = (
                self._finest(picture, need)
                if above is None
                else above[:, :, need.start : need.stop]
            )
            part, padding = pad_rows(part, need.start - first, last - need.stop)
            part = F.conv2d(part, fir, padding=(padding, 2), groups=c_in)
            result = self.encoder[index](part)
            out[:, :, rows.start : rows.stop] = result
        return out

    def _plane(self, channels: int, size: int) -> Tensor:
        return torch.empty(
            (1, channels, size, size), dtype=self.dtype, memory_format=torch.channels_last
        )

    # --- synthesis ---------------------------------------------------------------------

    def _synthesise(self, picture: Tensor, features: list[Tensor | None], style: Tensor) -> Tensor:
        generator = self.network.generator
        feature = features.pop()
        assert feature is not None
        weight = SplitWeight(generator.conv1, style, 1, SQRT2, self.dtype).parts[0]
        channels = self.channels[0]
        bias = (generator.conv1.activate.bias[:channels] * SQRT2).to(self.dtype)
        constant = generator.input.input.to(self.dtype)
        image = F.leaky_relu_(F.conv2d(constant, weight, bias, padding=1), SLOPE)
        part = EncoderPart(generator.conv1, self.dtype)
        rgb = self._to_rgb(generator.to_rgb1, style, image, part(feature))
        rgb += generator.to_rgb1.bias
        for level, layers in enumerate(self.layers, start=1):
            below, feature = feature, features.pop()
            step = _Level(self, level, style, layers, part)
            assert below is not None  # only the finest level has no stored feature
            image, rgb = step.run(picture, image, below, feature, rgb)
            part = step.part_after
        return rgb

    def _to_rgb(self, layer: ToRgb, style: Tensor, image: Tensor, part: Tensor) -> Tensor:
        weights = SplitWeight(layer, style, 2, 1.0, self.dtype).parts
        return F.conv2d(image, weights[0]).float() + F.conv2d(part, weights[1]).float()


class _Level:
    """One resolution of the synthesis: up-convolution, convolution, RGB, strip by strip."""

    def __init__(self, owner: GpenCpu, level: int, style: Tensor, layers: Layers,
                 part_below: EncoderPart) -> None:  # fmt: skip
        up, conv, to_rgb = layers
        dtype = owner.dtype
        self.owner = owner
        self.channels = owner.channels[level]
        self.part_below = part_below
        self.part_between = EncoderPart(up, dtype)
        self.part_after = EncoderPart(conv, dtype)
        up_weights = SplitWeight(up, style, 2, SQRT2, torch.float32).parts
        self.up_weights = [_channels_last(w.transpose(0, 1), dtype) for w in up_weights]
        fir = fir_kernel(self.channels, 4.0, style)
        self.blur = ConvLeaky(
            fir, up.activate.bias[: self.channels] * SQRT2, dtype, groups=self.channels
        )
        self.weights = SplitWeight(conv, style, 2, SQRT2, dtype).parts
        self.bias = (conv.activate.bias[: self.channels] * SQRT2).to(dtype)
        self.rgb_weights = SplitWeight(to_rgb, style, 2, 1.0, dtype).parts
        self.rgb_bias = to_rgb.bias

    def run(self, picture: Tensor, image: Tensor, below: Tensor, feature: Tensor | None,
            rgb: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return this level's image part and RGB from those of the level below.

        The finest level's image part is only needed for the RGB and comes back empty.
        """
        size = 2 * image.shape[-1]
        rgb = upsample_rgb(rgb).add_(self.rgb_bias)
        keep = feature is not None
        out = self.owner._plane(self.channels, size if keep else 0)
        for rows in strips(size, size * self.channels * image.element_size()):
            around = Rows(max(rows.start - 1, 0), min(rows.stop + 1, size))
            if feature is None:
                encoder = self.owner._finest(picture, around)
            else:
                encoder = feature[:, :, around.start : around.stop]
            y = self._upsample(image, below, around, size)
            y = self._convolve(y, self.part_between(encoder), rows, around, size)
            inner = encoder[:, :, rows.start - around.start : rows.stop - around.start]
            colour = F.conv2d(y, self.rgb_weights[0]).float()
            colour += F.conv2d(self.part_after(inner), self.rgb_weights[1])
            rgb[:, :, rows.start : rows.stop] += colour
            if keep:
                out[:, :, rows.start : rows.stop] = y
        return out, rgb

    def _upsample(self, image: Tensor, below: Tensor, rows: Rows, size: int) -> Tensor:
        """Rows of leaky(blur(transposed convolution) + bias)."""
        # Blurred row i takes rows i-1 .. i+2 of the transposed convolution's size + 1 rows, and
        # row j of those takes rows (j-2)/2 .. j/2 of the level below.
        first, last = rows.start - 1, rows.stop + 2
        need = Rows(max(first, 0), min(last, size + 1))
        source = Rows(max((need.start - 1) // 2, 0), min((need.stop - 1) // 2 + 1, size // 2))
        here = slice(source.start, source.stop)
        y = F.conv_transpose2d(image[:, :, here], self.up_weights[0], stride=2)
        y += F.conv_transpose2d(self.part_below(below[:, :, here]), self.up_weights[1], stride=2)
        y = y[:, :, need.start - 2 * source.start : need.stop - 2 * source.start]
        y, padding = pad_rows(y, need.start - first, last - need.stop)
        return self.blur(y, (padding, 1))

    def _convolve(self, y: Tensor, part: Tensor, rows: Rows, around: Rows, size: int) -> Tensor:
        """Rows of leaky(3x3 convolution of image and encoder part + bias)."""
        top, bottom = 1 - (rows.start - around.start), 1 - (around.stop - rows.stop)
        part, padding = pad_rows(part, top, bottom)
        total = F.conv2d(part, self.weights[1], self.bias, padding=(padding, 1))
        y, padding = pad_rows(y, top, bottom)
        return F.leaky_relu_(conv_add_(total, y, self.weights[0], (padding, 1)), SLOPE)
