"""The processor's GPEN computes the reference's function, whatever the strips are."""

from __future__ import annotations

import pytest
import torch
from face_restore_worker.network import gpen_cpu
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.gpen import Gpen, build_gpen
from face_restore_worker.network.gpen_cpu import GpenCpu, strips
from hypothesis import given, settings
from hypothesis import strategies as st


def random_network(size: int, multiplier: int, narrow: float, seed: int) -> Gpen:
    architecture = GpenArchitecture.from_parameters(size, multiplier, narrow, 32, 4)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator) * (0.3 if "bias" in name else 1.0)
        for name, shape in architecture.shapes().items()
    }
    return build_gpen(architecture, state)


def picture(size: int, seed: int) -> torch.Tensor:
    return torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(32, 1, 0.03125), (64, 2, 0.03125), (128, 1, 0.0625)]),
    st.integers(0, 1000),
    st.integers(100, 200_000),
)
def test_equals_the_reference_for_any_strip_height(
    shape: tuple[int, int, float], seed: int, strip_bytes: int
) -> None:
    network = random_network(*shape, seed)
    x = picture(shape[0], seed)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(gpen_cpu, "STRIP_BYTES", strip_bytes)
        result = GpenCpu(network)(x)
        reference = network.double()(x.double())
    assert relative_error(result.double(), reference) < 5e-6


def test_without_fused_kernels_it_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = random_network(64, 2, 0.0625, 3), picture(64, 3)
    fused = GpenCpu(network)(x)
    monkeypatch.setattr(gpen_cpu, "fused_available", lambda dtype: False)
    assert relative_error(GpenCpu(network)(x), fused) < 5e-6


def test_bf16_stays_within_its_bounds_of_the_reference() -> None:
    network, x = random_network(128, 2, 0.125, 4), picture(128, 4)
    with torch.inference_mode():
        reference = network(x)
    result = GpenCpu(network, torch.bfloat16)(x)
    assert result.dtype == torch.float32
    assert relative_error(result, reference) < 2e-2


def test_the_same_input_gives_the_same_bytes_alone_or_in_a_batch() -> None:
    network = random_network(64, 2, 0.0625, 5)
    fast, x = GpenCpu(network), torch.cat([picture(64, 5), picture(64, 6)])
    both = fast(x)
    assert torch.equal(both, fast(x))
    assert torch.equal(both[1:], fast(x[1:]))


@given(st.integers(4, 4096), st.integers(1, 10**6), st.integers(1, 10**7))
def test_strips_cover_every_row_once(height: int, row_bytes: int, target: int) -> None:
    height *= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpen_cpu, "STRIP_BYTES", target)
        parts = strips(height, row_bytes)
    assert [rows.start for rows in parts[1:]] == [rows.stop for rows in parts[:-1]]
    assert parts[0].start == 0 and parts[-1].stop == height
    assert all(rows.start % 2 == 0 and rows.stop > rows.start for rows in parts)
