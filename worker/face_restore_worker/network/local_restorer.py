"""The built-in local restorer: a small residual U-Net for aligned face crops.

It removes blur, noise and JPEG artefacts as far as the pixels around a place tell; it holds no
generative prior, so it invents no features and changes no identity.

Layout: pixel-unshuffle by 2, three strided 2x2 convolutions down to 1/16 of the input, residual
blocks of two 3x3 convolutions at every level, 1x1 convolution plus pixel-shuffle upwards with
additive skips, and a global residual: the network predicts a correction to its input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The input is padded inside to a multiple of this many pixels (2 by the stem, 2**3 by the levels).
STRIDE = 16

_SLOPE = 0.1

#: Greatest difference between the channels of a picture, in the network's units, up to which it
#: counts as gray, and from which on as coloured: 2 and 8 of 255 levels.
_GRAY, _COLOURED = 2 / 127.5, 8 / 127.5


class ResidualBlock(nn.Module):
    """``x + conv2(leaky_relu(conv1(x)))`` with 3x3 convolutions, no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            # A small second convolution lets a deep stack without normalisation start near the
            # identity, which keeps early training stable.
            self.conv2.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x + self.conv2(F.leaky_relu(self.conv1(x), _SLOPE, inplace=True))


class LocalRestorer(nn.Module):
    """Residual U-Net, RGB in [-1, 1] to RGB of the same shape, not clamped.

    Args:
        widths: channels per level, from 1/2 of the input's resolution downwards; four levels.
        encoder_blocks: residual blocks per level on the way down; the last entry is the bottom.
        decoder_blocks: residual blocks per level on the way up, finest first; one entry fewer.

    Raises:
        ValueError: the three sequences do not describe a four-level network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 96, 128),
        encoder_blocks: Sequence[int] = (2, 2, 2, 2),
        decoder_blocks: Sequence[int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        if not len(widths) == len(encoder_blocks) == len(decoder_blocks) + 1 == 4:
            raise ValueError(
                "LocalRestorer needs four widths, four encoder_blocks and three decoder_blocks, "
                f"got {tuple(widths)}, {tuple(encoder_blocks)}, {tuple(decoder_blocks)}"
            )
        self.stem = nn.Conv2d(12, widths[0], 3, padding=1)
        self.enc = nn.ModuleList(_stack(w, n) for w, n in zip(widths, encoder_blocks, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.dec = nn.ModuleList(
            _stack(w, n) for w, n in zip(widths[:-1], decoder_blocks, strict=True)
        )
        self.tail = nn.Conv2d(widths[0], 12, 3, padding=1)
        with torch.no_grad():
            self.tail.weight.mul_(0.1)
            if self.tail.bias is not None:
                self.tail.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Restore a batch of crops.

        Args:
            x: (N, 3, H, W), float32, bfloat16 or float16, RGB in [-1, 1], H and W at least 1.

        Returns:
            (N, 3, H, W) of the same dtype, RGB, **not clamped** to [-1, 1].

        Raises:
            ValueError: ``x`` is not a batch of three-channel images.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 1:
            raise ValueError(f"expected a tensor of shape (N, 3, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        padded = _pad_to_stride(x)
        correction = _keep_gray(padded, self._correction(padded))
        return (padded + correction)[:, :, :height, :width]

    def _correction(self, x: Tensor) -> Tensor:
        """Predict what to add to (N, 3, H, W) with H and W multiples of ``STRIDE``."""
        features = self.stem(F.pixel_unshuffle(x, 2))
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.enc):
            features = blocks(features)
            if level < len(self.down):
                skips.append(features)
                features = self.down[level](features)
        for level in reversed(range(len(self.dec))):
            features = F.pixel_shuffle(self.up[level](features), 2) + skips[level]
            features = self.dec[level](features)
        return F.pixel_shuffle(self.tail(features), 2)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> LocalRestorer:
        """Build the network a state dict was saved from and load it (in float32, eval mode).

        The widths are read from the shapes and the block counts from the names.

        Args:
            state: names to tensors of any floating dtype, as ``state_dict()`` gives them.

        Raises:
            ValueError: names or shapes are not those of a LocalRestorer.
        """
        try:
            widths = [int(state["stem.weight"].shape[0])]
            widths += [int(state[f"down.{level}.weight"].shape[0]) for level in range(3)]
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"these are not weights of the local restorer: {error} is missing or malformed"
            ) from error
        encoder = [_count_blocks(state, f"enc.{level}") for level in range(4)]
        decoder = [_count_blocks(state, f"dec.{level}") for level in range(3)]
        network = cls(widths, encoder, decoder)
        try:
            network.load_state_dict({name: value.float() for name, value in state.items()})
        except RuntimeError as error:
            raise ValueError(f"these are not weights of the local restorer: {error}") from error
        return network.eval()


def count_flop(network: nn.Module, height: int, width: int) -> int:
    """Count the convolutions' operations for one (1, 3, height, width) input.

    One multiply-add is counted as 2; element-wise operations are left out (below 2 %).
    """
    total = 0

    def hook(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            taps = module.weight[0].numel()
            total += 2 * taps * output.numel()

    handles = [m.register_forward_hook(hook) for m in network.modules()]
    try:
        with torch.no_grad():
            parameter = next(network.parameters())
            network(torch.zeros(1, 3, height, width).to(parameter))
    finally:
        for handle in handles:
            handle.remove()
    return total


def _stack(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def _count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.conv1\.weight")
    return sum(1 for name in state if pattern.fullmatch(name))


def _keep_gray(x: Tensor, correction: Tensor) -> Tensor:
    """Take the colour out of the correction where the whole picture has none.

    A gray picture so stays exactly gray. Between the two limits the colour is let in gradually,
    so that the result depends continuously on the picture.

    Args:
        x: (N, 3, H, W), the picture.
        correction: the same shape.
    """
    spread = (x.amax(dim=1) - x.amin(dim=1)).amax(dim=(1, 2)).view(-1, 1, 1, 1)
    colour = ((spread - _GRAY) / (_COLOURED - _GRAY)).clamp(0, 1)
    gray = correction.mean(dim=1, keepdim=True)
    return gray + colour * (correction - gray)


def _pad_to_stride(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    bottom, right = -height % STRIDE, -width % STRIDE
    if not (bottom or right):
        return x
    # Reflection needs more pixels than it adds; tiny inputs repeat their edge instead.
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)
