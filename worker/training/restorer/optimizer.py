"""AdamW with orthogonalised momentum for the convolutions.

Plain Adam learns the coarse levels of a U-Net slowly, because few directions of each gradient
carry nearly all of its energy. Replacing a kernel's momentum by the nearest semi-orthogonal
matrix gives all its directions equal weight (Jordan et al., "Muon", 2024); scaled to the size of
Adam's usual step (Liu et al., "Muon is scalable for LLM training", 2025) it shares Adam's rate.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: Quintic of the Newton-Schulz iteration: quick rather than exact, it drives singular values into
#: about 0.7 to 1.2 within five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ADAM_STEP = 0.2


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate ``U V^T`` of the singular value decomposition of a (rows, columns) matrix."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return (x if wide else x.T).to(matrix.dtype)


class OrthogonalMomentum(torch.optim.Optimizer):
    """Nesterov momentum on kernels, orthogonalised as (out, in * taps) matrices."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; closures are not supported."""
        if closure is not None:
            raise ValueError("OrthogonalMomentum takes no closure; call backward() first")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(buffer, group["momentum"])
                matrix = ahead.reshape(ahead.shape[0], -1)
                update = orthogonalise(matrix) * (_ADAM_STEP * max(matrix.shape) ** 0.5)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"])


class Optimizers:
    """Orthogonalised momentum for the 3x3 kernels inside, AdamW for everything else."""

    def __init__(self, network: nn.Module, lr: float, weight_decay: float = 1e-3) -> None:
        kernels, others = [], []
        for name, parameter in network.named_parameters():
            inside = parameter.ndim == 4 and not name.startswith(("stem", "tail"))
            (kernels if inside else others).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            OrthogonalMomentum(kernels, lr, 0.95, weight_decay),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of both."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        """Update and drop the gradients."""
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)
