"""What the fused operations work on: tensors of one layer, and how a face's tensors are laid out.

Activations are (1, C, H, W) in channels_last order, so a pixel's channels lie side by side. Every
vector here is fp32 and contiguous, whatever the activations are in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Taps of the FIR filter, before division by 8 (the outer product's by 64): StyleGAN2's [1,3,3,1].
FIR = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True)
class Feature:
    """An encoder feature before its activation, sqrt(2) * leaky(raw + bias): applied when read.

    raw: (1, C, S, S), the convolution's result. For the finest feature, which is a 1x1
        convolution of the picture, the picture itself, (1, 3, S, S).
    bias: (C,).
    weight: (C, 3) of that 1x1 convolution, else None.
    """

    raw: Tensor
    bias: Tensor
    weight: Tensor | None = None

    @property
    def channels(self) -> int:
        """C."""
        return self.bias.numel()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.raw.shape[2], self.raw.shape[3]


@dataclass(frozen=True)
class Styled:
    """What follows a styled layer's convolution, for one face.

    demodulation: (C,), multiplies the convolution's result.
    bias: (2 C,), of the image part, then of the encoder part.
    gain: (1,), multiplies the encoder feature.
    style: (2 C,), multiplies the activated result for the convolution that reads it; None where
        nothing reads it.
    """

    demodulation: Tensor
    bias: Tensor
    gain: Tensor
    style: Tensor | None


@dataclass(frozen=True)
class Rgb:
    """A ToRGB layer for one face.

    weight: (3, 2 C), modulated. bias: (3,).
    below: (1, 3, H / 2, W / 2) fp32, the picture so far; None at the coarsest level.
    """

    weight: Tensor
    bias: Tensor
    below: Tensor | None


def nhwc(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last order; the same tensor where it already is."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_nhwc(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """An uninitialised (1, C, H, W) in channels_last order, of the type and device of ``like``."""
    return torch.empty(
        (1, channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
