"""The Triton kernels, interpreted on the CPU, beside their plain twins.

`test_triton.py` runs this file in a process of its own with TRITON_INTERPRET=1, which Triton reads
when it is imported. The interpreter runs a program after the other in NumPy, so sizes are small.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.cuda import fused, kernels, plain
from face_restore_worker.network.cuda.layers import Feature, Rgb, Styled, nhwc
from face_restore_worker.network.cuda.operations import (
    NAMES,
    Operations,
    checked,
    relative_error,
    try_operation,
)
from face_restore_worker.network.gpen import build_gpen
from face_restore_worker.network.gpen_cuda import GpenCuda
from gpen_factory import faces, random_state
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")
FUSED = Operations(**{name: getattr(fused, name) for name in NAMES})
BOUND = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
torch.set_num_threads(1)

CASE = {
    "height": st.integers(1, 5),
    "width": st.integers(1, 9),
    "channels": st.integers(1, 40),
    "picture": st.booleans(),
    "dtype": st.sampled_from(list(BOUND)),
    "tile": st.sampled_from([256, 4096]),
    "seed": st.integers(0, 1000),
}
few = settings(max_examples=5, deadline=None)
many = settings(max_examples=80, deadline=None)


class Maker:
    """Random tensors of one case."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def vector(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def plane(self, *shape: int) -> torch.Tensor:
        return nhwc(torch.randn((1, *shape), generator=self.generator).to(self.dtype))

    def feature(self, channels: int, height: int, width: int, picture: bool) -> Feature:
        raw = self.plane(3 if picture else channels, height, width)
        weight = self.vector(channels, 3) if picture else None
        return Feature(raw, self.vector(channels), weight)

    def styled(self, channels: int, keep: bool = True) -> Styled:
        style = self.vector(2 * channels) if keep else None
        return Styled(self.vector(channels), self.vector(2 * channels), self.vector(1), style)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert found.is_contiguous(memory_format=torch.channels_last) or found.ndim == 3
    # Sums of a few random terms may cancel: relative to the whole, with a little absolute room.
    difference = float((found.double() - wanted.double()).norm())
    assert difference <= BOUND[wanted.dtype] * (float(wanted.double().norm()) + 1)


@few
@given(**CASE)
def test_blur_feature(height: int, width: int, channels: int, picture: bool, dtype: torch.dtype,
                      tile: int, seed: int) -> None:  # fmt: skip
    feature = Maker(dtype, seed).feature(channels, height, width, picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_TILE", tile)
        close(fused.blur_feature(feature, dtype), plain.blur_feature(feature, dtype))


@few
@given(**CASE)
def test_finish_up(height: int, width: int, channels: int, picture: bool, dtype: torch.dtype,
                   tile: int, seed: int) -> None:  # fmt: skip
    make = Maker(dtype, seed)
    case = (
        make.plane(channels, height + 1, width + 1),
        make.feature(channels, height, width, picture),
        make.styled(channels),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_TILE", tile)
        close(fused.finish_up(*case), plain.finish_up(*case))


@few
@given(**CASE, keep=st.booleans(), below=st.booleans())
def test_finish_conv(height: int, width: int, channels: int, picture: bool, dtype: torch.dtype,
                     tile: int, seed: int, keep: bool, below: bool) -> None:  # fmt: skip
    make = Maker(dtype, seed)
    height, width = 2 * height, 2 * width  # levels of a picture are even
    under = make.vector(1, 3, height // 2, width // 2) if below else None
    rgb = Rgb(make.vector(3, 2 * channels), make.vector(3), under)
    case = (
        make.plane(channels, height, width),
        make.feature(channels, height, width, picture),
        make.styled(channels, keep),
        rgb,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_TILE", tile)
        found, colour = fused.finish_conv(*case)
    wanted, wanted_colour = plain.finish_conv(*case)
    assert colour.dtype == torch.float32 and colour.shape == wanted_colour.shape
    room = 3e-6 * (float(wanted_colour.norm()) + channels)
    assert float((colour - wanted_colour).norm()) <= room
    assert (found is None) == (wanted is None) == (not keep)
    if found is not None and wanted is not None:
        close(found, wanted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("test", [test_blur_feature, test_finish_up, test_finish_conv])
def test_at_length(test: Any) -> None:
    """The same with many more cases."""
    many(test)()


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([torch.uint8, torch.float32, torch.float16]),
    st.sampled_from(list(BOUND)), st.integers(0, 99),
)  # fmt: skip
def test_normalise(side: int, source: torch.dtype, dtype: torch.dtype, seed: int) -> None:
    values = torch.rand((side, side, 3), generator=torch.Generator().manual_seed(seed))
    pixels = (values * 255).to(torch.uint8) if source == torch.uint8 else values.to(source)
    found = nhwc(torch.zeros((1, 3, side, side), dtype=dtype))
    wanted = found.clone()
    fused.normalise(pixels, found)
    plain.normalise(pixels, wanted)
    assert torch.allclose(found.float(), wanted.float(), rtol=0, atol=BOUND[dtype])


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 40), st.sampled_from([torch.uint8, torch.float32]), st.integers(0, 99))
def test_to_pixels(side: int, dtype: torch.dtype, seed: int) -> None:
    rgb = torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(seed)) * 2
    found, wanted = fused.to_pixels(rgb, dtype), plain.to_pixels(rgb, dtype)
    assert found.dtype == dtype and found.shape == (side, side, 3)
    # A value on the border between two levels may be rounded to either.
    assert int((found.double() - wanted.double()).abs().max() <= (1 if dtype == torch.uint8 else 0))


def test_a_whole_network_through_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_TILE", 2048)
    architecture = GpenArchitecture(8, (5, 3), 6, 1)
    state = random_state(architecture, 4)
    x = faces(architecture)
    with torch.inference_mode():
        exact = build_gpen(architecture, {k: v.double() for k, v in state.items()})(x.double())
        network = build_gpen(architecture, state)
        found = GpenCuda(network, torch.float32, CPU, operations=FUSED)(x)
    assert relative_error(found, exact) < 5e-6


@pytest.mark.parametrize("name", ["normalise", "to_pixels"])
@pytest.mark.parametrize("dtype", list(BOUND))
def test_the_trial_at_load_accepts_the_kernels(name: str, dtype: torch.dtype) -> None:
    assert try_operation(name, FUSED, CPU, dtype) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blur_feature", "finish_up", "finish_conv"])
@pytest.mark.parametrize("dtype", list(BOUND))
def test_the_trial_at_load_accepts_the_large_kernels(name: str, dtype: torch.dtype) -> None:
    assert try_operation(name, FUSED, CPU, dtype) is None


@triton.jit
def _forgetful_kernel(pixels, out, scale, count, BLOCK: tl.constexpr):
    """``normalise_kernel`` without the shift and the last value."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(pixels + i, mask=i < count - 1, other=0).to(tl.float32)
    tl.store(out + i, value * scale - 1.0, mask=i < count - 1)


def test_the_trial_at_load_finds_a_broken_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "normalise_kernel", _forgetful_kernel)
    only = Operations(normalise=fused.normalise, to_pixels=fused.to_pixels)
    chosen = checked(only, CPU, torch.float32)
    assert chosen.normalise is plain.normalise and chosen.to_pixels is fused.to_pixels
    assert "normalise" in chosen.notes[0]


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    make = Maker(torch.float32, 0)
    feature = make.feature(4, 6, 6, False)
    for t, f, s in (
        (make.plane(4, 6, 7), feature, make.styled(4)),
        (make.plane(3, 7, 7), feature, make.styled(3)),
        (make.plane(4, 7, 7), feature, make.styled(5)),
    ):
        with pytest.raises(ValueError, match="fused kernel"):
            fused.finish_up(t, f, s)
    with pytest.raises(ValueError, match="size"):
        fused.normalise(torch.zeros(3, 3, 3), nhwc(torch.zeros(1, 3, 4, 4)))
