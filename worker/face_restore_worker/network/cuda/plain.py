"""The fused operations in plain PyTorch: what the Triton kernels must equal, and their substitute.

Used on every device without Triton. Bias, activation and styles are applied in fp32 in strips of
rows, so that no fp32 copy of a whole level ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from face_restore_worker.network.cuda.layers import Feature, Rgb, Styled, empty_nhwc, nhwc
from face_restore_worker.network.primitives import (
    SLOPE,
    SQRT2,
    conv2d,
    fir_kernel,
    upsample_rgb,
)

_STRIP_VALUES = 1 << 22


def normalise(pixels: Tensor, out: Tensor) -> None:
    """Write pixels as the network's input.

    Args:
        pixels: (S, S, 3), uint8, or floating in [0, 1].
        out: (1, 3, S, S), channels_last; gets 2 x - 1 in its own type.
    """
    scale = 2.0 / 255.0 if pixels.dtype == torch.uint8 else 2.0
    for rows in _strips(pixels.shape[0], pixels.shape[1] * 3):
        part = pixels[rows].float() * scale - 1.0
        out[0, :, rows] = part.permute(2, 0, 1)


def to_pixels(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    """The network's (1, 3, S, S) fp32 result, finite, as (S, S, 3) pixels.

    y / 2 + 1 / 2, clamped to [0, 1]; fp32, or rounded to uint8.
    """
    unit = rgb[0].permute(1, 2, 0).mul(0.5).add_(0.5).clamp_(0, 1)
    if dtype == torch.uint8:
        return unit.mul_(255).add_(0.5).to(torch.uint8)
    return unit.contiguous()


def blur_feature(feature: Feature, dtype: torch.dtype) -> Tensor:
    """The activated feature, FIR-filtered with two zeros on every side.

    Returns (1, C, H + 1, W + 1) of ``dtype``, channels_last.
    """
    height, width = feature.size
    like = feature.raw.new_empty(0, dtype=dtype)
    activated = empty_nhwc(like, feature.channels, height, width)
    for rows in _strips(height, width * feature.channels):
        activated[:, :, rows] = activate_feature(feature, rows)
    return nhwc(_blur(activated, 2, 1.0))


def finish_up(t: Tensor, feature: Feature, styled: Styled) -> Tensor:
    """What follows an up-sampling convolution: FIR, demodulation, bias, leaky ReLU; the encoder
    feature beside it; all times the next layer's styles.

    Args:
        t: (1, C, H + 1, W + 1), the transposed convolution's result.
        feature: the encoder's, of C channels, H x W.

    Returns:
        (1, 2 C, H, W) in the type of ``t``, channels_last.
    """
    return _side_by_side(_blur(t, 1, 4.0), feature, styled, None)[0]


def finish_conv(
    u: Tensor, feature: Feature, styled: Styled, rgb: Rgb
) -> tuple[Tensor | None, Tensor]:
    """What follows a styled convolution that does not up-sample, and the level's ToRGB.

    Args:
        u: (1, C, H, W), the convolution's result.

    Returns:
        (1, 2 C, H, W) in the type of ``u``, times the next layer's styles, or None where nothing
        reads it (``styled.style`` is None); and the picture so far, (1, 3, H, W) fp32.
    """
    out, colour = _side_by_side(u, feature, styled, rgb.weight)
    assert colour is not None
    colour += rgb.bias.view(1, 3, 1, 1)
    return (None if styled.style is None else out), (
        colour if rgb.below is None else colour.add_(upsample_rgb(rgb.below))
    )


def activate_feature(feature: Feature, rows: slice) -> Tensor:
    """Rows of sqrt(2) * leaky(raw + bias), (1, C, rows, W) fp32."""
    raw = feature.raw[:, :, rows]
    # The sqrt(2) goes inside: leaky ReLU is homogeneous.
    if feature.weight is not None:
        weight = feature.weight[:, :, None, None] * SQRT2
        x = nhwc(F.conv2d(raw.float(), weight, feature.bias * SQRT2))
    else:
        x = torch.add((feature.bias * SQRT2).view(1, -1, 1, 1), raw, alpha=SQRT2)
    return F.leaky_relu_(x, SLOPE)


def _side_by_side(
    y: Tensor, feature: Feature, styled: Styled, rgb_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Image part and encoder part, activated and styled; and their product with ToRGB's weights."""
    _, channels, height, width = y.shape
    keep = styled.style is not None
    out = empty_nhwc(y, 2 * channels, height if keep else 0, width)
    colour = None
    if rgb_weight is not None:
        colour = torch.empty((1, 3, height, width), dtype=torch.float32, device=y.device)
    scale, gain = ((v * SQRT2).view(1, -1, 1, 1) for v in (styled.demodulation, styled.gain))
    biases = (styled.bias * SQRT2).view(1, -1, 1, 1).split(channels, dim=1)
    halves = slice(channels), slice(channels, None)
    for rows in _strips(height, 2 * width * channels):
        # Each a pass that reads sixteen bits and writes fp32, and one in place.
        image = F.leaky_relu_(torch.addcmul(biases[0], y[:, :, rows], scale), SLOPE)
        part = torch.addcmul(biases[1], activate_feature(feature, rows), gain)
        part = F.leaky_relu_(part, SLOPE)
        for half, values in zip(halves, (image, part), strict=True):
            if colour is not None and rgb_weight is not None:
                seen = F.conv2d(values, rgb_weight[:, half, None, None])
                colour[:, :, rows] = seen if values is image else colour[:, :, rows].add_(seen)
            if styled.style is not None:
                style = styled.style[half].view(1, -1, 1, 1)
                torch.mul(values, style, out=out[:, half, rows])
    return out, colour


def _blur(x: Tensor, padding: int, gain: float) -> Tensor:
    """``primitives.blur`` with a filter that is kept: a graph cannot record it being sent."""
    weight = _fir(x.shape[1], gain, x.dtype, x.device)
    return conv2d(x, weight, padding=padding, groups=x.shape[1])


@lru_cache(maxsize=64)
def _fir(channels: int, gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return fir_kernel(channels, gain, torch.empty(0, dtype=dtype, device=device))


def _strips(height: int, row_values: int) -> Iterator[slice]:
    """Slices of rows of at most about _STRIP_VALUES values."""
    rows = max(1, _STRIP_VALUES // max(1, row_values))
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))
