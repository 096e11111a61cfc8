"""The yardstick: GPEN the authors' way is the reference's function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from face_restore_worker.bench.authors_eager import AuthorsGpen, upfirdn2d
from face_restore_worker.bench.weights import random_state
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.gpen import build_gpen


@pytest.mark.parametrize(
    ("size", "multiplier", "narrow"), [(8, 2, 1 / 64), (32, 1, 1 / 32), (128, 2, 1 / 16)]
)
@torch.inference_mode()
def test_the_same_function_as_the_reference(size: int, multiplier: int, narrow: float) -> None:
    architecture = GpenArchitecture.from_parameters(size, multiplier, narrow, 32, 4)
    state = {name: value.double() for name, value in random_state(architecture, seed=3).items()}
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((2, 3, size, size), generator=generator).double() * 2 - 1
    wanted, found = build_gpen(architecture, state)(x), AuthorsGpen(architecture, state)(x)
    assert found.shape == x.shape
    assert float((found - wanted).norm() / wanted.norm()) < 1e-13
    assert float((wanted[0] - wanted[1]).norm() / wanted.norm()) > 1e-3  # the input matters


def test_upfirdn_filters_turned_kernels_between_inserted_zeros() -> None:
    """Against the definition: a true convolution of the zero-inserted, padded signal."""
    x = torch.arange(6.0, dtype=torch.float64).view(1, 2, 1, 3)
    kernel = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    inserted = torch.zeros(1, 2, 2, 6, dtype=torch.float64)
    inserted[:, :, ::2, ::2] = x
    padded = F.pad(inserted, (2, 1, 2, 1))
    wanted = torch.zeros(1, 2, 4, 8, dtype=torch.float64)
    for i in range(4):
        for j in range(8):
            for di in range(2):
                for dj in range(2):
                    wanted[..., i, j] += kernel[1 - di, 1 - dj] * padded[..., i + di, j + dj]
    torch.testing.assert_close(upfirdn2d(x, kernel, up=2, pad=(2, 1)), wanted)


def test_random_weights_are_the_same_everywhere_and_every_layer_matters() -> None:
    architecture = GpenArchitecture.from_parameters(16, 2, 1 / 32, 16, 2)
    first, again = random_state(architecture), random_state(architecture)
    assert set(first) == set(architecture.shapes())
    assert all(torch.equal(first[name], again[name]) for name in first)
    x = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        wanted = build_gpen(architecture, first)(x)
        for name, value in first.items():
            other = build_gpen(architecture, first | {name: value * 1.5 + 0.1})(x)
            assert float((other - wanted).norm() / wanted.norm()) > 1e-4, name
