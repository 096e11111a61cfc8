"""The first phase: every block of the student alone learns its teacher block's mapping.

Each block gets the teacher's input and imitates the teacher's output, so that no block waits for
those before it to settle (blockwise distillation). The blocks start from random weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from distill import Variances, output_losses

if TYPE_CHECKING:
    from torch import Tensor, nn

BACKBONE = [f"body.stage{s}.{i}" for s, count in ((1, 6), (2, 6), (3, 2)) for i in range(count)]
_FPN = [f"fpn.{name}" for name in ("output1", "output2", "output3", "merge1", "merge2")]
_BRANCHES = ("conv3X3", "conv5X5_1", "conv5X5_2", "conv7X7_2", "conv7x7_3")
_SSH = [f"ssh{level}.{name}" for level in (1, 2, 3) for name in _BRANCHES]
_HEADS = ("BboxHead", "ClassHead", "LandmarkHead")


class Blocks:
    """Keeps the inputs and outputs of the teacher's blocks and feeds them to the student's."""

    def __init__(self, teacher: nn.Module) -> None:
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.contexts: dict[int, Tensor] = {}
        self.variances = Variances()
        for name in BACKBONE + _FPN + _SSH:
            teacher.get_submodule(name).register_forward_hook(self._pair_keeper(name))
        for level in range(3):
            module = teacher.get_submodule(f"ssh{level + 1}")
            module.register_forward_hook(self._context_keeper(level))

    def _pair_keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.pairs[name] = (inputs[0], output)

        return keep

    def _context_keeper(self, level: int) -> Any:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.contexts[level] = output

        return keep

    def losses(self, student: nn.Module, target: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """``mimic``: the sum of the blocks' scaled errors; the heads' losses as output_losses.

        To be called after the teacher's forward pass, which gave ``target``.
        """
        self.variances.tick()
        parts = []
        for name, (given, wanted) in self.pairs.items():
            error = (student.get_submodule(name)(given) - wanted).square()
            weight = self.variances.weight(name, wanted)
            parts.append((error.mean(dim=(0, 2, 3), keepdim=True) * weight).mean())
        outputs = [
            torch.cat([student.get_submodule(f"{h}.{i}")(x) for i, x in self.contexts.items()], 1)
            for h in _HEADS
        ]
        losses = output_losses(tuple(outputs), target)
        losses["mimic"] = torch.stack(parts).sum()
        # The heads are linear: plain squared error everywhere settles them sooner.
        losses["score"] = losses["score"] + F.mse_loss(outputs[1], target[1])
        return losses
