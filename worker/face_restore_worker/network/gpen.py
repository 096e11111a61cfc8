"""GPEN (arXiv 2105.06070): a StyleGAN2 generator driven by a U-shaped encoder.

The reference implementation: one layer after the other as the paper and the published weights
have it. Module names give the published checkpoints' tensor names.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.primitives import (
    ActivatedLinear,
    BiasedLeaky,
    Blur,
    EqualConv2d,
    FeatureGain,
    ModulatedConv2d,
    PixelNorm,
    upsample_rgb,
)

_MAPPING_LR = 0.01


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, then the encoder feature beside it, bias and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style_dim, upsample=upsample)
        self.noise = FeatureGain()
        self.activate = BiasedLeaky(2 * outputs)

    def forward(self, x: Tensor, style: Tensor, feature: Tensor) -> Tensor:
        """Map x (1, in, h, w) and feature (1, out, H, W) to (1, 2*out, H, W)."""
        y = self.conv(x, style)
        return self.activate(torch.cat((y, self.noise(feature)), dim=1))


class ToRgb(nn.Module):
    """Modulated 1x1 convolution to RGB, added to the picture so far; the sum is kept in fp32."""

    def __init__(self, inputs: int, style_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.empty(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None) -> Tensor:
        """Map x (1, in, H, W) and the previous (1, 3, H/2, W/2) to (1, 3, H, W) of fp32 or fp64."""
        rgb = self.conv(x, style).to(self.bias.dtype) + self.bias
        return rgb if skip is None else rgb.add_(upsample_rgb(skip))


class LearnedInput(nn.Module):
    """The constant (1, C(4), 4, 4) that synthesis starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.empty(1, channels, 4, 4))


class Generator(nn.Module):
    """Mapping and synthesis networks of StyleGAN2, encoder features in place of noise."""

    def __init__(self, architecture: GpenArchitecture) -> None:
        super().__init__()
        style, c = architecture.style_dim, architecture.channels
        mapping = [
            ActivatedLinear(style, style, _MAPPING_LR) for _ in range(architecture.mapping_depth)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = LearnedInput(c[0])
        self.conv1 = StyledConv(c[0], c[0], style)
        self.to_rgb1 = ToRgb(2 * c[0], style)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for below, channels in pairwise(c):
            self.convs.append(StyledConv(2 * below, channels, style, upsample=True))
            self.convs.append(StyledConv(2 * channels, channels, style))
            self.to_rgbs.append(ToRgb(2 * channels, style))

    def forward(self, code: Tensor, features: list[Tensor]) -> Tensor:
        """Return the picture (1, 3, S, S).

        ``code`` is (1, style_dim) in the parameters' type. ``features`` are the encoder's, finest
        first; they are taken off the list as they are used, to free memory early.
        """
        w = self.style(code)
        feature = features.pop()
        x = self.input.input.to(feature.dtype)
        x = self.conv1(x, w, feature)
        rgb = self.to_rgb1(x, w, None)
        for up, conv, to_rgb in zip(self.convs[::2], self.convs[1::2], self.to_rgbs, strict=True):
            feature = features.pop()
            x = up(x, w, feature)
            x = conv(x, w, feature)
            del feature
            rgb = to_rgb(x, w, rgb)
        return rgb


class Gpen(nn.Module):
    """The whole network; size-S picture in, size-S picture out.

    Args:
        architecture: what :func:`infer_architecture` found or ``GpenArchitecture.from_parameters``.
    """

    def __init__(self, architecture: GpenArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        c, levels = architecture.channels, architecture.levels
        self.ecd0 = nn.Sequential(
            nn.Sequential(EqualConv2d(3, c[levels], 1, 1), BiasedLeaky(c[levels]))
        )
        for i in range(1, levels + 1):
            below, above = c[levels - i], c[levels - i + 1]
            stage = nn.Sequential(Blur(), EqualConv2d(above, below, 3, 2), BiasedLeaky(below))
            self.add_module(f"ecd{i}", nn.Sequential(stage))
        self.final_linear = nn.Sequential(ActivatedLinear(c[0] * 16, architecture.style_dim))
        self.generator = Generator(architecture)

    def forward(self, x: Tensor) -> Tensor:
        """Map RGB in [-1, 1], (N, 3, S, S), to the same shape, not clamped.

        The type of ``x`` is the type of convolutions and activations: fp32, bf16, fp16, or fp64
        with fp64 parameters. Mapping, modulation, demodulation and the RGB sum stay in the
        parameters' type, which the result has too. Faces go through one by one: a face's result
        does not depend on its neighbours in the batch, nor does the memory of activations.
        """
        return torch.cat([self._restore_one(face) for face in x.split(1)])

    def _restore_one(self, x: Tensor) -> Tensor:
        features = self.encode(x)
        precise = self.generator.input.input.dtype
        # .contiguous(): dense weights expect channel-major order, whatever the memory format.
        code = self.final_linear(features[-1].contiguous().flatten(1).to(precise))
        return self.generator(code, features)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's features (1, C(r), r, r) for r = S, S/2, ... 4."""
        features = []
        x = x.contiguous(memory_format=torch.channels_last)
        for i in range(self.architecture.levels + 1):
            x = self.get_submodule(f"ecd{i}")(x)
            features.append(x)
        return features


def build_gpen(architecture: GpenArchitecture, state: Mapping[str, Tensor]) -> Gpen:
    """Return the network in evaluation mode with the tensors of ``state``, not copied.

    ``state`` holds exactly the tensors of ``architecture.shapes()``, fp32 or fp64.

    Raises:
        RuntimeError: names or shapes differ (callers check them beforehand).
    """
    with torch.device("meta"):
        network = Gpen(architecture)
    network.load_state_dict(dict(state), strict=True, assign=True)
    return network.eval().requires_grad_(False)
