"""GPEN the way its authors' code computes it without compiled operators: what to be faster than.

The same function as ``network.gpen``, written straightforwardly for any batch, as StyleGAN2 ports
to PyTorch are: modulated weights for every sample and grouped convolutions, FIR filters as
zero insertion, padding and a one-channel convolution (upfirdn2d in plain PyTorch), features
concatenated, every activation a new tensor, NCHW throughout. A yardstick, not for use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from face_restore_worker.network.architecture import GpenArchitecture

_MAPPING_LR = 0.01


def upfirdn2d(x: Tensor, kernel: Tensor, *, up: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zero-insert, pad and filter (N, C, H, W) with a (k, k) kernel, channel by channel.

    up: factor of the zero insertion. pad: zeros before and after, in both directions.
    """
    n, c, h, w = x.shape
    out = x.reshape(-1, 1, h, 1, w, 1)
    out = F.pad(out, (0, up - 1, 0, 0, 0, up - 1)).reshape(-1, 1, h * up, w * up)
    out = F.pad(out, (pad[0], pad[1], pad[0], pad[1]))
    out = F.conv2d(out, kernel.flip(0, 1)[None, None])
    return out.reshape(n, c, out.shape[-2], out.shape[-1])


def activated(x: Tensor, bias: Tensor) -> Tensor:
    """sqrt(2) * leaky_relu(x + bias), slope 0.2; bias (C,) along the second dimension."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return F.leaky_relu(x + bias.view(shape), 0.2) * math.sqrt(2)


class AuthorsGpen:
    """Call it with (N, 3, S, S) RGB in [-1, 1]; returns the same shape in the weights' type.

    state: {published name: tensor}, all of one floating type and on one device; used, not copied.
    """

    def __init__(self, architecture: GpenArchitecture, state: Mapping[str, Tensor]) -> None:
        self.architecture = architecture
        self.state = state
        like = state["generator.input.input"]
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=like.dtype, device=like.device)
        self.fir = torch.outer(taps, taps) / 64

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """What a call does, for exporters, which do not see through inference mode."""
        x = x.to(self.fir)
        features = self._encode(x)
        code = features[-1].reshape(len(x), -1)
        style = self._mapping(self._activated_linear(code, "final_linear.0", 1.0))
        return self._synthesise(style, features[::-1])

    # --- encoder and mapping -----------------------------------------------------------

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Features (N, C(r), r, r) for r = S, S/2, ... 4."""
        features = []
        for level in range(self.architecture.levels + 1):
            name = f"ecd{level}.0"
            if level:
                x = upfirdn2d(x, self.fir, pad=(2, 2))
            weight = self.state[f"{name}.{1 if level else 0}.weight"]
            scale = 1 / math.sqrt(weight[0].numel())
            x = F.conv2d(x, weight * scale, stride=2 if level else 1)
            x = activated(x, self.state[f"{name}.{2 if level else 1}.bias"])
            features.append(x)
        return features

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.linear(x, weight / math.sqrt(weight.shape[1]), bias)

    def _activated_linear(self, x: Tensor, name: str, lr_mul: float) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return activated(F.linear(x, weight * (lr_mul / math.sqrt(weight.shape[1]))), bias * lr_mul)

    def _mapping(self, code: Tensor) -> Tensor:
        style = code * torch.rsqrt((code**2).mean(dim=1, keepdim=True) + 1e-8)
        for layer in range(1, self.architecture.mapping_depth + 1):
            style = self._activated_linear(style, f"generator.style.{layer}", _MAPPING_LR)
        return style

    # --- synthesis ---------------------------------------------------------------------

    def _synthesise(self, style: Tensor, features: list[Tensor]) -> Tensor:
        x = self.state["generator.input.input"].repeat(len(style), 1, 1, 1)
        x = self._styled(x, style, features[0], "generator.conv1")
        rgb = self._to_rgb(x, style, None, "generator.to_rgb1")
        for level in range(self.architecture.levels):
            feature = features[level + 1]
            x = self._styled(x, style, feature, f"generator.convs.{2 * level}", up=True)
            x = self._styled(x, style, feature, f"generator.convs.{2 * level + 1}")
            rgb = self._to_rgb(x, style, rgb, f"generator.to_rgbs.{level}")
        return rgb

    def _styled(
        self, x: Tensor, style: Tensor, feature: Tensor, name: str, *, up: bool = False
    ) -> Tensor:
        """Modulated convolution, the feature beside it, bias and leaky ReLU."""
        y = self._modulated(x, style, f"{name}.conv", demodulate=True, up=up)
        y = torch.cat((y, self.state[f"{name}.noise.weight"] * feature), dim=1)
        return activated(y, self.state[f"{name}.activate.bias"])

    def _to_rgb(self, x: Tensor, style: Tensor, skip: Tensor | None, name: str) -> Tensor:
        rgb = self._modulated(x, style, f"{name}.conv", demodulate=False, up=False)
        rgb = rgb + self.state[f"{name}.bias"]
        if skip is not None:
            rgb = rgb + upfirdn2d(skip, 4 * self.fir, up=2, pad=(2, 1))
        return rgb

    def _modulated(
        self, x: Tensor, style: Tensor, name: str, *, demodulate: bool, up: bool
    ) -> Tensor:
        """A convolution with weights of each sample's own, all samples in one grouped call."""
        n, inputs, h, w = x.shape
        weight = self.state[f"{name}.weight"]
        outputs, k = weight.shape[1], weight.shape[-1]
        scales = self._linear(style, f"{name}.modulation").view(n, 1, inputs, 1, 1)
        weight = weight * (1 / math.sqrt(inputs * k * k)) * scales
        if demodulate:
            norm = torch.rsqrt(weight.pow(2).sum((2, 3, 4)) + 1e-8)
            weight = weight * norm.view(n, outputs, 1, 1, 1)
        x = x.reshape(1, n * inputs, h, w)
        if not up:
            weight = weight.reshape(n * outputs, inputs, k, k)
            y = F.conv2d(x, weight, padding=k // 2, groups=n)
            return y.view(n, outputs, h, w)
        weight = weight.transpose(1, 2).reshape(n * inputs, outputs, k, k)
        y = F.conv_transpose2d(x, weight, stride=2, groups=n)
        y = y.view(n, outputs, y.shape[-2], y.shape[-1])
        return upfirdn2d(y, 4 * self.fir, pad=(1, 1))
