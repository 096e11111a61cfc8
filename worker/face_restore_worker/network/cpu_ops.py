"""Convolutions of the processor's GPEN: oneDNN's fused kernels, and the same function without them.

Every convolution takes and gives channels_last tensors of one type, fp32 or bf16. Weights can be
brought into oneDNN's own layout once (`pack`) instead of at every call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from face_restore_worker.network.primitives import SLOPE

Pair = tuple[int, int]


def fused_available(dtype: torch.dtype) -> bool:
    """True where PyTorch offers oneDNN's fused convolutions for `dtype`."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x, (N, C, h, w), as channels_last in `dtype`, copied only where it differs."""
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def empty_plane(channels: int, height: int, width: int) -> Tensor:
    """An uninitialised channels_last fp32 (1, C, h, w).

    Made this way, and not from (h, w, C) by permuting, its strides tell torch.cat the format too.
    """
    return torch.empty((1, channels, height, width), memory_format=torch.channels_last)


class Conv:
    """A convolution with fixed weights: bias and leaky ReLU are applied as the result is written.

    Args:
        weight: (O, I / groups, k, k) of any floating type.
        bias: (O,) or None.
        dtype: torch.float32 or torch.bfloat16.
        leaky: whether a leaky ReLU follows.
        like: shape (1, I, h, w) of a typical input: pack the weights for it, where oneDNN can.
        shared: use the weights as they lie, without a copy; with dtype fp32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *,
                 stride: int = 1, groups: int = 1, leaky: bool = False,
                 like: list[int] | None = None, shared: bool = False) -> None:  # fmt: skip
        self.weight = weight if shared else channels_last(weight, dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.stride, self.groups, self.leaky = stride, groups, leaky
        self.fused = fused_available(dtype)
        if like is not None and self.fused and not shared:
            pads = [weight.shape[-1] // 2] * 2
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, pads, [stride, stride], [1, 1], groups, like
            )

    def __call__(self, x: Tensor, padding: Pair = (0, 0)) -> Tensor:
        """Map (1, I, h, w) to (1, O, h', w')."""
        stride = [self.stride, self.stride]
        if self.fused:
            name, scalars = ("leaky_relu", [SLOPE]) if self.leaky else ("none", [])
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, list(padding), stride, [1, 1], self.groups,
                name, scalars, "",
            )  # fmt: skip
        y = F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)
        return F.leaky_relu_(y, SLOPE) if self.leaky else y

    def add_(self, total: Tensor, x: Tensor, padding: Pair = (0, 0)) -> Tensor:
        """Add the convolution of x to `total`, in place where oneDNN can; returns the sum.

        For stride 1 without leaky ReLU.
        """
        if self.fused:
            return torch.ops.mkldnn._convolution_pointwise_(
                total, x, self.weight, self.bias, list(padding), [1, 1], [1, 1], self.groups,
                "add", 1.0, None, [], None,
            )  # fmt: skip
        return total.add_(F.conv2d(x, self.weight, self.bias, padding=padding, groups=self.groups))


_PATCHES = 512  # at a time: enough for the matrix product, and some megabytes


class PatchConv:
    """A 3x3 convolution of stride 2 and leaky ReLU as a matrix product of patches, in fp32.

    A matrix product adds up in many sums and loses a third of what a direct convolution loses;
    it is as fast where there are many channels.

    Args:
        weight: fp32 (O, I, 3, 3).
        bias: fp32 (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.permute(0, 2, 3, 1).flatten(1).t(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map (1, I, 2 h + 1, 2 w + 1) to (1, O, h, w), both channels_last."""
        patches = x[0].permute(1, 2, 0).unfold(0, 3, 2).unfold(1, 3, 2)
        patches = patches.permute(0, 1, 3, 4, 2)  # (h, w, 3, 3, I): runs of 3 I values
        height, width = patches.shape[:2]
        y = empty_plane(len(self.bias), height, width)
        step = max(1, _PATCHES // width)
        lines = y[0].permute(1, 2, 0)
        for some, out in zip(patches.split(step), lines.split(step), strict=True):
            some = some.reshape(-1, len(self.weight))
            torch.addmm(self.bias, some, self.weight, out=out.view(len(some), -1))
        return F.leaky_relu_(y, SLOPE)


class TransposedConv:
    """A transposed convolution of stride 2 without padding or bias.

    Args:
        weight: (I, O, k, k) of any floating type.
        dtype: torch.float32 or torch.bfloat16.
        like: as for `Conv`.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, like: list[int] | None = None) -> None:
        self.weight = channels_last(weight, dtype)
        self.packed = like is not None and fused_available(dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self.weight, [0, 0], [0, 0], [2, 2], [1, 1], 1, like
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Map (1, I, h, w) to (1, O, 2h + k - 2, 2w + k - 2)."""
        if self.packed:
            return torch.ops.mkldnn._convolution_transpose_pointwise(
                x, self.weight, None, [0, 0], [0, 0], [2, 2], [1, 1], 1, "none", [], ""
            )
        return F.conv_transpose2d(x, self.weight, stride=2)


def pad_rows(x: Tensor, top: int, bottom: int) -> tuple[Tensor, int]:
    """Return x and the symmetric row padding left to the convolution.

    The zeros outside of the plane are added by the convolution where both sides need the same
    number, and as rows of their own where only one side of a strip lies at the border.
    """
    if top == bottom:
        return x, top
    padded = F.pad(x, (0, 0, top, bottom))
    return padded.contiguous(memory_format=torch.channels_last), 0
