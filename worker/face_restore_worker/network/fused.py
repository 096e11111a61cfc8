"""Convolutions of small networks with their activations in one pass of oneDNN."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FusedConv:
    """A convolution and its activation, in one pass where oneDNN can, else one after the other.

    slope: of the leaky ReLU; 0 is a ReLU, None no activation.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        like: nn.Conv2d,
        slope: float | None,
        dtype: torch.dtype,
    ) -> None:
        self.weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        zeros = torch.zeros(weight.shape[0])
        self.bias = (zeros if bias is None else bias.detach()).to(dtype)
        self.stride, self.padding = list(like.stride), [int(p) for p in like.padding]
        self.groups, self.slope = like.groups, slope
        self.fused = _can_fuse(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H / stride, W / stride), channels last."""
        if self.fused:
            kind = "none" if self.slope is None else "leaky_relu" if self.slope else "relu"
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups,
                kind, [self.slope] if self.slope else [], "",
            )  # fmt: skip
            return y
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        if self.slope is None:
            return y
        return F.leaky_relu_(y, self.slope)


def fused_chain(block: nn.Module, dtype: torch.dtype) -> list[FusedConv]:
    """The convolutions of a Sequential in order, also of nested ones, each with its activation.

    Raises ValueError where a batch norm is left: fold it first.
    """
    layers = [m for m in block.modules() if not isinstance(m, (nn.Identity, nn.Sequential))]
    convs = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.BatchNorm2d):
            raise ValueError("the network's batch norms must be folded first")
        if isinstance(layer, nn.Conv2d):
            slope = None
            if isinstance(following, nn.LeakyReLU):
                slope = float(following.negative_slope)
            elif isinstance(following, nn.ReLU):
                slope = 0.0
            convs.append(FusedConv(layer.weight, layer.bias, layer, slope, dtype))
    return convs


def fold_batch_norms(network: nn.Module) -> None:
    """Put each norm of a Sequential into the convolution before it, in place."""
    for block in list(network.modules()):
        if not isinstance(block, nn.Sequential):
            continue
        for index, (conv, norm) in enumerate(pairwise(list(block))):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[index] = fuse_conv_bn_eval(conv, norm)
                block[index + 1] = nn.Identity()


def _can_fuse(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
