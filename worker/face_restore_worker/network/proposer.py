"""A tiny network that says where small faces may be, so that a detector need not look elsewhere.

It is fully convolutional and sees faces of 10 to 110 pixels of its input. It is no detector: its
threshold lets nearly every face pass and a small share of everything else.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from face_restore_worker.network.fused import (
    FusedConv,
    fold_batch_norms,
    fused_chain,
)

STRIDE = 8
"""Input pixels per cell of the output."""
GRAIN = 16
"""Sides of the pictures looked at are multiples of this."""
BORDER = 1
"""Pixels that the input reaches beyond the picture on each side."""
GRAY = 128
"""The value of a border without a picture; taken off every input."""
RANGES = ((10.0, 36.0), (26.0, 110.0))
"""Sides (geometric mean of a face's box) in input pixels that each output answers for."""
SLOPE = 0.1


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


class FaceProposer(nn.Module):
    """Says for each cell of STRIDE pixels whether a small face may be centred there.

    The first convolution has a stride of 4, so most of the work is done on a sixteenth of the
    pixels; a branch at stride 16 brings in a face's surroundings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 6, 4, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(SLOPE, True)
        )
        self.fine = _separable(16, 32)
        self.middle = nn.Sequential(
            _separable(32, 48, 2), _separable(48, 48), _separable(48, 48), _separable(48, 48)
        )
        self.coarse = nn.Sequential(
            _separable(48, 64, 2), _separable(64, 64), _separable(64, 64), _separable(64, 48)
        )
        self.merge = _separable(48, 48)
        self.head = nn.Conv2d(48, len(RANGES), 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2, H / STRIDE, W / STRIDE), one map for each of RANGES.

        pixels: (N, 3, H + 2 BORDER, W + 2 BORDER) float RGB, 0 to 255; H, W multiples of GRAIN.
        """
        return self.answers((pixels - GRAY) / 64)

    def answers(self, x: torch.Tensor) -> torch.Tensor:
        """As forward, of (pixels - GRAY) / 64."""
        middle: torch.Tensor = self.middle(self.fine(self.stem(x)))
        coarse = F.interpolate(self.coarse(middle), size=middle.shape[2:], mode="nearest")
        logits: torch.Tensor = self.head(self.merge(middle + coarse))
        return logits


class PreparedProposer:
    """The network for inference on the processor: norms folded, fused passes, raw pixels.

    Args:
        network: with its weights, in fp32; it is not changed.
        dtype: of convolutions and features, torch.float32 or torch.bfloat16.
    """

    def __init__(self, network: FaceProposer, dtype: torch.dtype = torch.float32) -> None:
        network = copy.deepcopy(network).eval()
        fold_batch_norms(network)
        self.dtype = dtype
        self._before = fused_chain(nn.Sequential(network.stem, network.fine, network.middle), dtype)
        _take_raw_pixels(self._before[0])
        self._coarse = fused_chain(network.coarse, dtype)
        self._after = fused_chain(nn.Sequential(network.merge, network.head), dtype)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2, H / STRIDE, W / STRIDE) float32, as FaceProposer gives them.

        pixels: (N, H + 2 BORDER, W + 2 BORDER, 3) RGB, 0 to 255, uint8 or `dtype`; H, W multiples
        of GRAIN.
        """
        with torch.inference_mode():
            x = pixels.to(self.dtype).permute(0, 3, 1, 2)
            for conv in self._before:
                x = conv(x)
            coarse = x
            for conv in self._coarse:
                coarse = conv(coarse)
            x += F.interpolate(coarse, size=x.shape[2:])
            for conv in self._after:
                x = conv(x)
            return x.float()


def _take_raw_pixels(first: FusedConv) -> None:
    """Put forward's (pixels - GRAY) / 64 into the first convolution, which has no padding."""
    weight = first.weight.float() / 64
    first.weight = weight.to(first.weight.dtype)  # a power of two: exact
    shift = weight.sum(dim=(1, 2, 3)) * GRAY
    first.bias = (first.bias.float() - shift).to(first.bias.dtype)
