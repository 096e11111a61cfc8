"""The distillation losses: every anchor's outputs and the features of every block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Modules whose outputs the student imitates: backbone blocks, pyramid and context branches.
_STAGES = (("stage1", 6), ("stage2", 6), ("stage3", 2))
_FPN = ("output1", "output2", "output3", "merge1", "merge2")
_SSH = ("conv3X3", "conv5X5_2", "conv7x7_3")


def tapped_names() -> list[str]:
    """The names of the imitated modules, in the order of the forward pass."""
    names = [f"body.{stage}.{i}" for stage, count in _STAGES for i in range(count)]
    names = names[2:]  # the largest maps: phase one settled them, and they would cost the most
    names += [f"fpn.{name}" for name in _FPN]
    return names + [f"ssh{level}.{name}" for level in (1, 2, 3) for name in _SSH]


class Taps:
    """Keeps the outputs of the imitated modules of one network after each forward pass."""

    def __init__(self, net: nn.Module) -> None:
        self.features: dict[str, Tensor] = {}
        for name in tapped_names():
            net.get_submodule(name).register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.features[name] = output

        return keep


class Variances:
    """Running variances of the teacher's channels, by which squared errors are scaled."""

    def __init__(self, momentum: float = 0.3, every: int = 10) -> None:
        self.momentum, self.every = momentum, every
        self.variance: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.calls = -1

    def tick(self) -> None:
        """Begin a step; the variances are measured every ``every`` steps."""
        self.calls += 1

    def weight(self, name: str, target: Tensor) -> Tensor:
        """One over the channels' variance, [1, C, 1, 1], for a target [N, C, H, W]."""
        if self.calls % self.every == 0 or name not in self.weights:
            now = target.var(dim=(0, 2, 3))
            last = self.variance.get(name, now)
            self.variance[name] = last + self.momentum * (now - last)
            # The floor keeps channels that hardly ever move from ruling the sum.
            floor = 0.05 * self.variance[name].mean() + 1e-6
            self.weights[name] = (1 / (self.variance[name] + floor)).view(1, -1, 1, 1)
        return self.weights[name]


class Mimicry:
    """Mean squared error of the features, each channel scaled by the teacher's variance."""

    def __init__(self) -> None:
        self.variances = Variances()

    def __call__(self, student: Taps, teacher: Taps) -> Tensor:
        """Mean over the tapped modules, a scalar."""
        self.variances.tick()
        parts = []
        for name, target in teacher.features.items():
            error = (student.features[name] - target).square().mean(dim=(0, 2, 3), keepdim=True)
            parts.append((error * self.variances.weight(name, target)).mean())
        return torch.stack(parts).mean()


def output_losses(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Losses over all anchors; each network gives (boxes, class logits, landmarks) [N, A, 4|2|10].

    Returns scalars ``score``, ``logit``, ``box`` and ``points``, and ``per_image`` [N], the class
    loss of each scene, which tells the hard ones.
    """
    margin_s = student[1][..., 1] - student[1][..., 0]
    margin_t = teacher[1][..., 1] - teacher[1][..., 0]
    prob = torch.sigmoid(margin_t)
    entropy = F.binary_cross_entropy_with_logits(margin_s, prob, reduction="none")
    # Less the teacher's own entropy: zero where both agree (the Kullback-Leibler divergence).
    entropy = entropy - F.binary_cross_entropy_with_logits(margin_t, prob, reduction="none")
    faces = prob.sum()
    count = torch.clamp(faces, min=8.0 * len(prob))
    near = torch.clamp(margin_t, -8, 12)
    logit = (torch.clamp(margin_s, -8, 12) - near).square() * (0.02 + (margin_t > -5).float())
    weight = torch.where(prob > 0.02, prob, torch.zeros_like(prob))
    weight = weight / torch.clamp(weight.sum(), min=8.0)
    box = F.smooth_l1_loss(student[0], teacher[0], beta=0.2, reduction="none").mean(-1)
    points = F.smooth_l1_loss(student[2], teacher[2], beta=0.2, reduction="none").mean(-1)
    return {
        "score": entropy.sum() / count,
        "logit": logit.sum() / count,
        "box": (box * weight).sum(),
        "points": (points * weight).sum(),
        "per_image": entropy.detach().sum(1),
    }
