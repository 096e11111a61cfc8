"""The few operations that GPEN is made of; conventions are StyleGAN2's (arXiv 1912.04958).

Weights are stored unscaled ("equalised learning rate"): convolutions are multiplied by
1/sqrt(fan-in) at run time, dense layers by lr_mul/sqrt(fan-in) and their biases by lr_mul.
Every parameter is kept in fp32 (fp64 for fp64 runs); weights are prepared in that precision and
cast to the input's type last, so that bf16 and fp16 lose nothing before the convolution.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = math.sqrt(2.0)
SLOPE = 0.2
_EPSILON = 1e-8


def conv2d(
    x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """Convolve (N, in, H, W) with (out, in / groups, k, k) of the same or a wider type."""
    if _emulated(x):
        y = F.conv2d(x.float(), weight.float(), stride=stride, padding=padding, groups=groups)
        return y.to(x.dtype)
    return F.conv2d(x, weight.to(x.dtype), stride=stride, padding=padding, groups=groups)


def conv_transpose2d(x: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution, stride 2, of (N, in, H, W) with (in, out, k, k)."""
    if _emulated(x):
        return F.conv_transpose2d(x.float(), weight.float(), stride=2).to(x.dtype)
    return F.conv_transpose2d(x, weight.to(x.dtype), stride=2)


def _emulated(x: Tensor) -> bool:
    """Whether to convolve in fp32 and round the result: fp16 on most CPUs is 50 times slower."""
    return x.dtype == torch.float16 and x.device.type == "cpu"


def leaky(x: Tensor, bias: Tensor) -> Tensor:
    """Return sqrt(2) * leaky_relu(x + bias), slope 0.2, computed in place.

    ``x`` is (N, C, ...) in any floating type and must not be needed afterwards; bias is (C,).
    """
    shape = (1, -1) + (1,) * (x.ndim - 2)
    x = x.add_(bias.to(x.dtype).view(shape))
    return F.leaky_relu_(x, SLOPE).mul_(SQRT2)


def fir_kernel(channels: int, gain: float, like: Tensor) -> Tensor:
    """Return gain * outer([1,3,3,1], [1,3,3,1]) / 64 as depthwise weights (channels, 1, 4, 4)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=like.dtype, device=like.device)
    kernel = torch.outer(taps, taps) * (gain / 64.0)
    return kernel.expand(channels, 1, 4, 4).contiguous()


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """FIR-filter (N, C, H, W) with ``padding`` zeros on every side.

    The filter is symmetric, so correlation and convolution are the same.
    """
    channels = x.shape[1]
    return conv2d(x, fir_kernel(channels, gain, x), padding=padding, groups=channels)


def upsample_rgb(x: Tensor) -> Tensor:
    """Double the resolution of (N, C, H, W): zero insertion, FIR 4f, padding (2, 1).

    With these taps that is bilinear interpolation of an image surrounded by zeros.
    """
    x = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return x[..., 2:-2, 2:-2]


class EqualLinear(nn.Module):
    """Dense layer with equalised learning rate; weight (out, in), bias (out,)."""

    def __init__(self, inputs: int, outputs: int, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.scale = lr_mul / math.sqrt(inputs)
        self.lr_mul = lr_mul

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in) to (N, out)."""
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class ActivatedLinear(EqualLinear):
    """:class:`EqualLinear` followed by the scaled leaky ReLU, the bias inside it."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in) to (N, out)."""
        return leaky(F.linear(x, self.weight * self.scale), self.bias * self.lr_mul)


class PixelNorm(nn.Module):
    """x * rsqrt(mean(x^2) + 1e-8) over the features of (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor, same shape."""
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + _EPSILON)


class Blur(nn.Module):
    """The encoder's FIR blur: two zeros on every side."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H + 1, W + 1)."""
        return blur(x, padding=2)


class EqualConv2d(nn.Module):
    """Convolution without padding or bias, equalised learning rate; weight (out, in, k, k)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.scale = 1.0 / math.sqrt(inputs * kernel**2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W'), in the type of ``x``."""
        return conv2d(x, self.weight * self.scale, stride=self.stride)


class BiasedLeaky(nn.Module):
    """Per-channel bias and scaled leaky ReLU, in place; bias (C,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return sqrt(2) * leaky_relu(x + bias); ``x`` is overwritten."""
        return leaky(x, self.bias)


class ModulatedConv2d(nn.Module):
    """Convolution whose weights are scaled by a style, per input channel (arXiv 1912.04958, 2.2).

    Weight (1, out, in, k, k). ``upsample`` doubles the resolution: transposed convolution of
    stride 2, then the FIR 4f with one zero on every side.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs)
        self.scale = 1.0 / math.sqrt(inputs * kernel**2)
        self.padding = kernel // 2
        self.demodulate = demodulate
        self.upsample = upsample

    def modulated_weight(self, style: Tensor) -> Tensor:
        """Return the (out, in, k, k) weights for one style vector (1, style_dim)."""
        scales = self.modulation(style)[0]
        weight = self.weight[0] * (self.scale * scales)[None, :, None, None]
        if self.demodulate:
            norm = weight.square().sum(dim=(1, 2, 3), keepdim=True)
            weight *= torch.rsqrt(norm + _EPSILON)
        return weight

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (1, in, H, W) and the style (1, style_dim) to (1, out, H, W) or twice that size."""
        weight = self.modulated_weight(style)
        if not self.upsample:
            return conv2d(x, weight, padding=self.padding)
        x = conv_transpose2d(x, weight.transpose(0, 1))
        return blur(x, padding=1, gain=4.0)


class FeatureGain(nn.Module):
    """One learned factor for an encoder feature; weight (1,) (the name is StyleGAN2's)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))

    def forward(self, feature: Tensor) -> Tensor:
        """Return weight * feature."""
        return feature * self.weight.to(feature.dtype)
