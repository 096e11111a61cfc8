"""GPEN networks of any size with reproducible random weights, for tests."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from face_restore_worker import load_gpen
from face_restore_worker.errors import CheckpointError
from face_restore_worker.network.architecture import GpenArchitecture
from torch import Tensor

FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def tiny(
    size: int = 16, m: float = 2, n: float = 1 / 64, style_dim: int = 16, mapping_depth: int = 2
) -> GpenArchitecture:
    """Return a network of a few thousand parameters: (1, 3, size, size) in milliseconds."""
    return GpenArchitecture.from_parameters(size, m, n, style_dim, mapping_depth)


def random_state(architecture: GpenArchitecture, seed: int = 0) -> dict[str, Tensor]:
    """Return {published name: fp32 tensor} distributed so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in architecture.shapes().items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("noise.weight"):
            value = torch.rand(shape, generator=generator) * 0.6 + 0.2
        elif name.endswith("modulation.bias"):
            value = 1 + 0.1 * value
        elif name.startswith("generator.style."):
            value = value * (10 if name.endswith("bias") else 100)
        elif name.endswith("bias"):
            value = 0.1 * value
        out[name] = value
    return out


def with_kernels(state: dict[str, Tensor], architecture: GpenArchitecture) -> dict[str, Tensor]:
    """Return the state with the FIR buffers that the published checkpoints carry."""
    kernels = {
        name: FIR.clone() if name.startswith("ecd") else 4 * FIR
        for name in architecture.kernel_shapes()
    }
    return state | kernels


def faces(architecture: GpenArchitecture, count: int = 1, seed: int = 0) -> Tensor:
    """Return (count, 3, S, S) fp32 in [-1, 1]: waves plus noise."""
    generator = torch.Generator().manual_seed(seed)
    size = architecture.size
    ramp = torch.linspace(0, 2 * math.pi, size)
    wave = 0.4 * torch.sin(3 * ramp[:, None] + 2 * ramp[None, :])
    noise = 0.2 * torch.randn((count, 3, size, size), generator=generator)
    return (wave + noise).clamp(-1, 1)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return ||found - wanted|| / ||wanted||."""
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm())


def refused(path: Path | dict, code: str, *words: str) -> CheckpointError:
    """Check that loading fails with this code and that the message holds these words."""
    with pytest.raises(CheckpointError) as caught:
        load_gpen(path)
    error = caught.value
    assert error.code == f"checkpoint-{code}", error
    for word in words:
        assert word in error.message, error.message
    assert error.hint
    if isinstance(path, Path):
        assert str(path) in error.message
    return error
