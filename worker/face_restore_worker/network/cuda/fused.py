# mypy: disable-error-code="import-untyped, import-not-found"
"""The fused operations through Triton: the functions of ``plain``, by the same names.

Importing this imports Triton.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from face_restore_worker.network.cuda import kernels
from face_restore_worker.network.cuda.layers import Feature, Rgb, Styled, empty_nhwc, nhwc

#: Values a program works on at once: eight for each thread of four warps.
_TILE = 1024
_BLOCK = 1024


def normalise(pixels: Tensor, out: Tensor) -> None:
    """See ``plain.normalise``."""
    pixels = pixels.contiguous()
    _require(out.is_contiguous(memory_format=torch.channels_last), "out is not channels_last")
    _require(out.numel() == pixels.numel(), "pixels and out differ in size")
    scale = 2.0 / 255.0 if pixels.dtype == torch.uint8 else 2.0
    count = pixels.numel()
    kernels.normalise_kernel[(triton.cdiv(count, _BLOCK),)](pixels, out, scale, count, BLOCK=_BLOCK)


def to_pixels(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    """See ``plain.to_pixels``."""
    rgb = rgb.contiguous()
    _, _, height, width = rgb.shape
    out = torch.empty((height, width, 3), dtype=dtype, device=rgb.device)
    rounded = dtype == torch.uint8
    plane = height * width
    kernels.to_pixels_kernel[(triton.cdiv(plane, _BLOCK),)](
        rgb, out, plane, 255.0 if rounded else 1.0, ROUND=rounded, BLOCK=_BLOCK
    )
    return out


def blur_feature(feature: Feature, dtype: torch.dtype) -> Tensor:
    """See ``plain.blur_feature``."""
    height, width = feature.size
    channels = feature.channels
    like = feature.raw.new_empty(0, dtype=dtype)
    out = empty_nhwc(like, channels, height + 1, width + 1)
    bx, bc = _tile(channels)
    grid = triton.cdiv(width + 1, bx), height + 1, triton.cdiv(channels, bc)
    raw, weight, bias = _feature(feature)
    kernels.blur_feature_kernel[grid](
        raw, weight, bias, out, height, width, channels,
        FROM_PICTURE=feature.weight is not None, BX=bx, BC=bc,
    )  # fmt: skip
    return out


def finish_up(t: Tensor, feature: Feature, styled: Styled) -> Tensor:
    """See ``plain.finish_up``."""
    _, channels, height, width = t.shape
    height, width = height - 1, width - 1
    t = nhwc(t)
    _check(feature, styled, channels, height, width)
    assert styled.style is not None
    out = empty_nhwc(t, 2 * channels, height, width)
    bx, bc = _tile(channels)
    grid = triton.cdiv(width, bx), height, triton.cdiv(channels, bc)
    raw, weight, bias = _feature(feature)
    kernels.finish_up_kernel[grid](
        t, raw, weight, bias, styled.demodulation, styled.bias, styled.gain, styled.style, out,
        height, width, channels,
        FROM_PICTURE=feature.weight is not None, BX=bx, BC=bc,
    )  # fmt: skip
    return out


def finish_conv(
    u: Tensor, feature: Feature, styled: Styled, rgb: Rgb
) -> tuple[Tensor | None, Tensor]:
    """See ``plain.finish_conv``."""
    _, channels, height, width = u.shape
    u = nhwc(u)
    _check(feature, styled, channels, height, width)
    keep = styled.style is not None
    out = empty_nhwc(u, 2 * channels, height, width) if keep else None
    colour = torch.empty((1, 3, height, width), dtype=torch.float32, device=u.device)
    bx, bc = _tile(channels)
    raw, weight, bias = _feature(feature)
    # Unused pointers get a tensor that is there: they are never read.
    kernels.finish_conv_kernel[(triton.cdiv(width, bx), height)](
        u, raw, weight, bias, styled.demodulation, styled.bias, styled.gain,
        styled.style if styled.style is not None else styled.bias,
        rgb.weight, rgb.bias, rgb.below.contiguous() if rgb.below is not None else colour,
        out if out is not None else u, colour,
        height, width, channels,
        FROM_PICTURE=feature.weight is not None, KEEP=keep, BELOW=rgb.below is not None,
        BX=bx, BC=bc,
    )  # fmt: skip
    return out, colour


def _tile(channels: int) -> tuple[int, int]:
    """Pixels and channels of a program: powers of two whose product is _TILE."""
    bc = min(64, max(16, triton.next_power_of_2(channels)))
    return _TILE // bc, bc


def _feature(feature: Feature) -> tuple[Tensor, Tensor, Tensor]:
    weight = feature.weight if feature.weight is not None else feature.bias
    return nhwc(feature.raw), weight, feature.bias


def _check(feature: Feature, styled: Styled, channels: int, height: int, width: int) -> None:
    """Shapes that do not belong together would be read past their end."""
    _require(feature.channels == channels, "the feature has another number of channels")
    _require(feature.size == (height, width), "the feature has another size")
    for vector, count in (
        (styled.demodulation, channels),
        (styled.bias, 2 * channels),
        (styled.style, 2 * channels),
    ):
        if vector is not None:
            _require(vector.numel() == count and vector.is_contiguous(), "a vector's length")


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise ValueError(f"a fused kernel cannot be used: {what}")
