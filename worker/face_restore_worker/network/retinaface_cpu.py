"""RetinaFace with the MobileNet backbone for the processor: the same function, fewer passes.

What differs from the plain network, and why it is still the same function:

* oneDNN applies bias and (leaky) ReLU while it writes a convolution's result.
* Pixels go in as they are. The first convolution's bias takes their mean off; so its border has to
  be the mean colour instead of zero, and is part of the input.
* The ReLU after a concatenation is applied where each of its parts is written.
* Scores come first; boxes and landmarks are computed only at the anchors that pass. They are 1x1
  convolutions, so each anchor needs its own place's features alone.

On processors with native bf16 the convolutions may run in it: scores then differ by about 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from face_restore_worker.network.fused import FusedConv, fused_chain

MEAN_RGB = (123.0, 117.0, 104.0)
_ANCHORS = 2
_CONTEXTS = ("conv3X3", "conv5X5_1", "conv5X5_2", "conv7X7_2", "conv7x7_3")


@dataclass(frozen=True)
class Passed:
    """The K anchors of one picture that pass, in the network's order.

    index: (K,) int64, the anchors' numbers. scores: (K,) float32. offsets: (K, 4), points: (K, 10)
    float32, as the network gives them.
    """

    index: Tensor
    scores: Tensor
    offsets: Tensor
    points: Tensor


class RetinaFaceCpu:
    """A prepared RetinaFace('mobile0.25').

    Args:
        network: with facexlib's names, batch norms folded, fp32 on the CPU; it is not changed.
        dtype: of convolutions and features, torch.float32 or torch.bfloat16.

    Raises:
        ValueError: the network has another backbone, or norms that are not folded.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        if not is_mobile(network):
            raise ValueError("only RetinaFace with the MobileNet backbone can be prepared")
        self.dtype = dtype
        body, fpn = network.get_submodule("body"), network.get_submodule("fpn")
        self._stages = [
            fused_chain(getattr(body, name), dtype) for name in ("stage1", "stage2", "stage3")
        ]
        _take_raw_pixels(self._stages[0][0])
        self._lateral = [fused_chain(getattr(fpn, f"output{i}"), dtype)[0] for i in (1, 2, 3)]
        self._merge = [fused_chain(getattr(fpn, f"merge{i}"), dtype)[0] for i in (1, 2)]
        self._contexts = [Context(network.get_submodule(f"ssh{i}"), dtype) for i in (1, 2, 3)]
        self._heads = [Head(network, i, dtype) for i in range(3)]

    def __call__(self, pixels: Tensor, threshold: float) -> list[Passed]:
        """The anchors scoring at least `threshold`, for each picture of a batch.

        pixels: (N, H + 1, W + 1, 3) uint8 RGB; H and W multiples of 32. The first row and column,
        and whatever else is no picture, are MEAN_RGB.
        """
        with torch.inference_mode():
            maps = self._features(pixels.to(self.dtype).permute(0, 3, 1, 2))
            scores = [head.scores(y) for head, y in zip(self._heads, maps, strict=True)]
            return [
                self._passed([s[n] for s in scores], [y[n] for y in maps], threshold)
                for n in range(len(pixels))
            ]

    def _features(self, x: Tensor) -> list[Tensor]:
        """The context modules' outputs at strides 8, 16 and 32: (N, 64, h, w)."""
        features = []
        for stage, lateral in zip(self._stages, self._lateral, strict=True):
            for conv in stage:
                x = conv(x)
            features.append(lateral(x))
        fine, middle, coarse = features
        middle += F.interpolate(coarse, size=middle.shape[2:])
        middle = self._merge[1](middle)
        fine += F.interpolate(middle, size=fine.shape[2:])
        fine = self._merge[0](fine)
        return [
            context(y) for context, y in zip(self._contexts, (fine, middle, coarse), strict=True)
        ]

    def _passed(self, scores: list[Tensor], maps: list[Tensor], threshold: float) -> Passed:
        """scores: (h * w * anchors,) of each stride; maps: (64, h, w) of each stride."""
        parts, before = [], 0
        for head, values, features in zip(self._heads, scores, maps, strict=True):
            index = torch.nonzero(values >= threshold)[:, 0]
            offsets, points = head.values(features, index)
            parts.append((index + before, values[index], offsets, points))
            before += len(values)
        return Passed(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Context:
    """A context module: views of 3x3, 5x5 and 7x7 places beside each other."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._wide, self._shared, self._second, self._third, self._fourth = (
            fused_chain(getattr(module, name), dtype)[0] for name in _CONTEXTS
        )
        for last in (self._wide, self._second, self._fourth):
            last.slope = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, 64, h, w) to the same shape."""
        shared = self._shared(x)
        parts = [self._wide(x), self._second(shared), self._fourth(self._third(shared))]
        return torch.cat(parts, dim=1)


class Head:
    """Scores of a whole map; boxes and landmarks of single anchors."""

    def __init__(self, network: nn.Module, level: int, dtype: torch.dtype) -> None:
        kinds = ("ClassHead", "BboxHead", "LandmarkHead")
        score, box, points = (getattr(network, kind)[level].conv1x1 for kind in kinds)
        # Of two classes' probabilities only the difference of their logits counts.
        logits = score.weight.detach().unflatten(0, (_ANCHORS, 2))
        biases = score.bias.detach().unflatten(0, (_ANCHORS, 2))
        self._score = FusedConv(
            logits[:, 1] - logits[:, 0], biases[:, 1] - biases[:, 0], score, None, dtype
        )
        weight = [_of_anchors(part.weight.flatten(1)) for part in (box, points)]
        bias = [_of_anchors(part.bias) for part in (box, points)]
        self._weight = torch.cat(weight, dim=1)  # (anchors, 14, 64)
        self._bias = torch.cat(bias, dim=1)  # (anchors, 14)

    def scores(self, y: Tensor) -> Tensor:
        """Map (N, 64, h, w) to (N, h * w * anchors) float32, 0 to 1."""
        return torch.sigmoid(self._score(y).float()).permute(0, 2, 3, 1).flatten(1)

    def values(self, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (K, 4) and points (K, 10), float32, of the anchors `index` of (64, h, w)."""
        place, anchor = index // _ANCHORS, index % _ANCHORS
        features = y.permute(1, 2, 0).flatten(0, 1)[place].float()
        values = torch.einsum("kvc,kc->kv", self._weight[anchor], features) + self._bias[anchor]
        return values[:, :4], values[:, 4:]


def is_mobile(network: nn.Module) -> bool:
    """Whether a network is a RetinaFace with the MobileNet backbone, by its modules' names."""
    body = getattr(network, "body", None)
    return hasattr(network, "ssh1") and all(hasattr(body, f"stage{i}") for i in (1, 2, 3))


def _take_raw_pixels(first: FusedConv) -> None:
    """Prepare the first convolution, trained on BGR less the mean, for RGB and for its border."""
    flipped = first.weight.flip(1)
    # Of the rounded weights: so the mean falls out exactly.
    shift = (flipped.float().sum(dim=(2, 3)) * torch.tensor(MEAN_RGB)).sum(dim=1)
    first.bias = (first.bias.float() - shift).to(first.bias.dtype)
    first.weight = flipped.contiguous(memory_format=torch.channels_last)
    first.padding = [0, 0]


def _of_anchors(values: Tensor) -> Tensor:
    """(anchors * V, ...) to (anchors, V, ...), float32."""
    return values.detach().float().unflatten(0, (_ANCHORS, -1))
