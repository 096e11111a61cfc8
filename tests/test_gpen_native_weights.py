"""The kernels' weights: exact enough, and never so large that sums of integers overflow."""

from __future__ import annotations

import pytest
import torch
from face_restore_worker.network import cpu_native_weights as weights
from face_restore_worker.network.cpu_winograd import Winograd
from face_restore_worker.network.native.library import Library
from hypothesis import given, settings
from hypothesis import strategies as st

LARGEST_INPUT = 16383  # vector.h: INT16_LIMIT


def in_order(pairs: torch.Tensor, matrices: int, outputs: int) -> torch.Tensor:
    """Panels of pairs of int16, seen as int32, as (matrices, I, O) in the kernels' order."""
    wide = min(outputs, 32)
    halves = pairs.view(torch.int16).view(matrices, outputs // wide, -1, wide, 2)
    return halves.permute(0, 2, 4, 1, 3).reshape(matrices, -1, outputs)


def by_fours(count: int) -> torch.Tensor:
    """The kernels' order: of 32 the first and the second sixteen take turns by four."""
    return torch.arange(count).view(-1, 2, 4, 4).transpose(1, 2).flatten()


def weights_of(outputs: int, inputs: int, seed: int, spread: float) -> torch.Tensor:
    """Random weights, outputs of very different size, and one output without any."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((outputs, inputs, 3, 3), generator=generator)
    weight *= torch.logspace(-spread, spread, outputs)[:, None, None, None]
    weight[outputs // 2] = 0
    return weight


@settings(max_examples=20)
@given(
    st.sampled_from([16, 32, 96]),
    st.sampled_from([32, 64, 192]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 3.0, 12.0]),
)
def test_integers_are_winograds_weights_and_their_sums_fit(
    compiled: Library, outputs: int, inputs: int, seed: int, spread: float
) -> None:
    weight = weights_of(outputs, inputs, seed, spread)
    pairs, unit = weights.winograd_int16(compiled, weight)
    whole = in_order(pairs, 36, outputs)
    exact = Winograd(weight).weight[:, by_fours(inputs)]
    assert ((whole * unit[:, None] - exact).abs() <= 0.51 * unit[:, None] + 1e-30).all()
    for run in whole.long().abs().split(64, dim=1):
        assert int(run.sum(dim=1).max()) * LARGEST_INPUT < 1 << 31
    # No bits are given away: a sum or a weight is near what it may be.
    used = [run.sum(dim=1) for run in whole.long().abs().split(64, dim=1)]
    full = (torch.stack(used).amax(dim=0) > 130_000) | (whole.long().abs().amax(dim=1) > 32_000)
    assert (full | (exact.abs().amax(dim=1) == 0)).all()


@settings(max_examples=20)
@given(
    st.sampled_from([16, 32, 96]),
    st.sampled_from([16, 48, 128]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 3.0, 12.0]),
)
def test_integers_are_the_encoders_weights_and_their_sums_fit(
    compiled: Library, outputs: int, inputs: int, seed: int, spread: float
) -> None:
    weight = weights_of(outputs, inputs, seed, spread)
    pairs, units = weights.down_int16(compiled, weight)
    taps = weight.flatten(2).double()
    for transform, unit in zip(weights.down_transform(), units, strict=True):
        phases = len(transform)
        count = phases * inputs * outputs // 2
        whole = in_order(pairs[:count], 1, outputs)[0]
        pairs = pairs[count:]
        # Sixteen inputs of each phase, the next sixteen, ...
        exact = torch.stack([(taps @ row).t() for row in transform])
        exact = exact.unflatten(1, (-1, 16)).transpose(0, 1).reshape(-1, outputs)
        if phases > 1:
            exact = exact[by_fours(len(exact))]
        assert ((whole * unit.double() - exact).abs() <= 0.51 * unit + 1e-30).all()
        for run in whole.long().abs().split(16 * phases):
            assert int(run.sum(dim=0).max()) * LARGEST_INPUT < 1 << 31
    assert len(pairs) == 0


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (96, 64)])
def test_an_up_convolutions_bf16_are_its_weights_rounded(
    compiled: Library, outputs: int, inputs: int
) -> None:
    weight = weights_of(outputs, inputs, 3, 2.0)
    pairs = weights.up_bf16(compiled, weight)
    wide = min(outputs, 32)
    halves = pairs.view(torch.bfloat16).view(36, -1, inputs // 2, wide, 2)
    even_odd = torch.arange(inputs).view(-1, 16, 2).mT.flatten()  # of 32 the even ones first
    exact = weights.up_fp32(weight)[:, :, even_odd].view(36, -1, inputs // 2, 2, wide).mT
    lost = 1e-6 * exact.abs().amax(dim=(0, 2, 4), keepdim=True)  # adding taps up in fp32
    assert ((halves.float() - exact).abs() <= exact.abs() * 2**-8 + lost).all()
