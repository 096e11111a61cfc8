"""The compiled kernels compute the processor's GPEN, and without them torch does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from face_restore_worker.network import cpu_memory, cpu_native, cpu_strips, gpen_cpu
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.cpu_levels import LevelPlanes
from face_restore_worker.network.cpu_memory import Planes
from face_restore_worker.network.cpu_native import NativeLevel
from face_restore_worker.network.cpu_native_encoder import NativeDown, NativeFirst
from face_restore_worker.network.cpu_strips import StripPool
from face_restore_worker.network.gpen import Gpen, StyledConv, ToRgb, build_gpen
from face_restore_worker.network.gpen_cpu import GpenCpu
from face_restore_worker.network.native import library
from face_restore_worker.network.native.library import Library
from face_restore_worker.network.primitives import SLOPE, fir_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

STYLE = 8


@pytest.fixture
def in_use(compiled: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The compiled kernels, used by what is built from now on."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "installed", lambda: compiled)
    return compiled


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


class Example:
    """A level with random weights, what it reads, and what the reference makes of it in fp64."""

    def __init__(self, inputs: int, channels: int, size: int, seed: int, last: bool,
                 dtype: torch.dtype) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.layers = (
            StyledConv(inputs, channels, STYLE, upsample=True),
            StyledConv(2 * channels, channels, STYLE),
            ToRgb(2 * channels, STYLE),
        )
        for layer in self.layers:
            for parameter in layer.requires_grad_(False).parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.size, self.channels, self.last, self.dtype = size, channels, last, dtype
        self.style = torch.randn((1, STYLE), generator=generator)
        self.below = torch.randn((1, 3, size // 2, size // 2), generator=generator)
        self.source = self.plane((1, inputs, size // 2, size // 2), generator)
        self.feature = self.plane((1, channels, size, size), generator)

    def plane(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        plane = torch.randn(shape, generator=generator).to(self.dtype)
        return plane.contiguous(memory_format=torch.channels_last)

    def native(self, kernels: Library, threads: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """What the kernels make of it: features (1, 2 C, S, S), unset for the last level, RGB."""
        shape = (1, 2 * self.channels, self.size, self.size)
        out = torch.zeros(shape, dtype=self.dtype).contiguous(memory_format=torch.channels_last)
        rgb = torch.full((1, 3, self.size, self.size), torch.nan)
        planes = LevelPlanes(
            source=self.source,
            feature=lambda rows: self.feature[:, :, rows.slice],
            rgb=F.pad(self.below, (1, 1, 1, 1)),
            out=None if self.last else out,
            out_rgb=rgb,
            memory=Planes(),
        )
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode(), StripPool() as pool:
                level = NativeLevel(kernels, self.layers, self.dtype, self.size)
                level.styled(self.style).run(pool, planes)
        finally:
            torch.set_num_threads(before)
        return out, rgb

    def reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        up, conv, to_rgb = (layer.double() for layer in self.layers)
        style, feature = self.style.double(), self.feature.double()
        x = conv(up(self.source.double(), style, feature), style, feature)
        return x, to_rgb(x, style, self.below.double())


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([32, 96, 128]),
    st.sampled_from([16, 32, 96, 160]),
    st.sampled_from([32, 64, 96]),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([16, 128]),
    st.sampled_from([16, 512]),
    st.sampled_from([100, 20_000, 8 << 20]),
    st.integers(1, 3),
    st.sampled_from([(torch.float32, 1.5e-6), (torch.bfloat16, 8e-3)]),
)
def test_a_level_is_the_reference_level(
    compiled: Library,
    inputs: int,
    channels: int,
    size: int,
    seed: int,
    last: bool,
    whole: int,
    shared: int,
    strip_bytes: int,
    threads: int,
    precision: tuple[torch.dtype, float],
) -> None:
    dtype, bound = precision
    example = Example(inputs, channels, size, seed, last, dtype)
    assert cpu_native.usable(example.layers, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_strips, "STRIP_BYTES", strip_bytes)
        patch.setattr(cpu_native, "WHOLE", whole)
        patch.setattr(cpu_native, "SHARED", shared)
        out, rgb = example.native(compiled, threads)
    wanted, wanted_rgb = example.reference()
    assert relative_error(rgb, wanted_rgb) < bound
    assert float((rgb - wanted_rgb).abs().max() / wanted_rgb.std()) < 20 * bound
    if not last:
        assert relative_error(out, wanted) < bound
        assert float((out - wanted).abs().max() / wanted.std()) < 50 * bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_channel_with_small_weights_costs_the_others_nothing(
    dtype: torch.dtype, compiled: Library
) -> None:
    """Integers of the channels beside it would have no bits left."""
    example = Example(64, 32, 64, 7, False, dtype)
    _, conv, _ = example.layers
    example.feature[:, 5] *= 1000
    conv.conv.weight[0, :, 32 + 5] /= 1000
    out, _ = example.native(compiled)
    wanted, _ = example.reference()
    bound = {torch.float32: 1.5e-6, torch.bfloat16: 8e-3}[dtype]
    assert relative_error(out[:, :32], wanted[:, :32]) < bound
    weight, above = torch.randn(32, 32, 3, 3), torch.randn(1, 32, 64, 64)
    weight[:, 5] /= 1000
    above[:, 5] *= 1000
    out, wanted = encoded(compiled, weight, torch.randn(32), above, dtype)
    assert relative_error(out, wanted) < bound


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_stay_so(
    dtype: torch.dtype, value: float, compiled: Library
) -> None:
    """Whoever called finds them: in integers they would be large values like others."""
    example = Example(32, 32, 64, 1, True, dtype)
    example.feature[0, 3, 40, 30] = value
    _, rgb = example.native(compiled)
    assert not rgb[0, :, 40, 30].isfinite().any()
    example = Example(32, 32, 64, 1, True, dtype)
    example.source[0, 3, 20, 10] = value
    _, rgb = example.native(compiled)
    assert not rgb[0, :, 40, 20].isfinite().any()
    above = torch.randn(1, 32, 32, 32)
    above[0, 7, 10, 20] = value
    out, _ = encoded(compiled, torch.randn(32, 32, 3, 3), torch.randn(32), above, dtype)
    assert not out[0, :, 5, 10].isfinite().any()


@pytest.mark.parametrize("shared", [16, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_level_has_the_same_bytes_whatever_the_strips_and_threads(
    dtype: torch.dtype, shared: int, compiled: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_native, "SHARED", shared)
    example = Example(64, 32, 128, 1, False, dtype)
    out, rgb = example.native(compiled)
    for whole, strip_bytes, threads in (
        (128, 100, 2),
        (16, 100, 1),
        (16, 100, 2),
        (16, 300_000, 3),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_strips, "STRIP_BYTES", strip_bytes)
            patch.setattr(cpu_native, "WHOLE", whole)
            again, rgb_again = example.native(compiled, threads)
        assert torch.equal(again, out) and torch.equal(rgb_again, rgb)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([16, 48, 80]),
    st.sampled_from([16, 32, 96]),
    st.sampled_from([8, 24, 64, 72]),
    st.integers(0, 1000),
    st.sampled_from([100, 20_000, 8 << 20]),
    st.integers(1, 3),
    st.sampled_from([(torch.float32, 2e-6), (torch.bfloat16, 3e-3)]),
)
def test_an_encoder_level_is_the_blurred_convolution(
    compiled: Library,
    inputs: int,
    outputs: int,
    size: int,
    seed: int,
    strip_bytes: int,
    threads: int,
    precision: tuple[torch.dtype, float],
) -> None:
    dtype, bound = precision
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((outputs, inputs, 3, 3), generator=generator)
    bias = torch.randn(outputs, generator=generator)
    above = torch.randn((1, inputs, 2 * size, 2 * size), generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_strips, "STRIP_BYTES", strip_bytes)
            out, wanted = encoded(compiled, weight, bias, above, dtype)
    finally:
        torch.set_num_threads(before)
    assert relative_error(out, wanted) < bound
    assert float((out - wanted).abs().max() / wanted.std()) < 50 * bound


def encoded(
    kernels: Library,
    weight: torch.Tensor,
    bias: torch.Tensor,
    above: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A level of the encoder by the kernels, and in fp64."""
    above = above.to(dtype).contiguous(memory_format=torch.channels_last)
    size = above.shape[3] // 2
    out = torch.full((1, len(weight), size, size), torch.nan, dtype=dtype)
    out = out.contiguous(memory_format=torch.channels_last)
    with StripPool() as pool:
        level = NativeDown(kernels, weight, bias, dtype)
        level.run(pool, lambda rows: above[:, :, rows.slice], out, Planes())
    fir = fir_kernel(above.shape[1], 1.0, above.double())
    blurred = F.conv2d(above.double(), fir, padding=2, groups=above.shape[1])
    exact = F.conv2d(blurred, weight.double(), bias.double(), stride=2)
    return out, F.leaky_relu(exact, SLOPE)


def network(seed: int) -> Gpen:
    architecture = GpenArchitecture.from_parameters(128, 2, 0.125, 32, 4)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator) * (0.3 if "bias" in name else 1.0)
        for name, shape in architecture.shapes().items()
    }
    return build_gpen(architecture, state)


def picture(seed: int) -> torch.Tensor:
    return torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("whole", [16, 128])
@pytest.mark.parametrize("coarse", [16, 64])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_the_network_with_kernels_is_the_reference_network(
    whole: int,
    coarse: int,
    dtype: torch.dtype,
    bound: float,
    in_use: Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpen_cpu, "COARSE", coarse)
    monkeypatch.setattr(cpu_native, "WHOLE", whole)
    monkeypatch.setattr(cpu_native, "SHARED", whole)
    x, reference = picture(4), network(4)
    fast = GpenCpu(reference, dtype)
    assert any(isinstance(level, NativeLevel) for level in fast.synthesis)
    assert any(isinstance(level, NativeDown) for level in fast.encoder)
    assert isinstance(fast.encoder[0], NativeFirst)
    result = fast(x)
    assert torch.equal(fast(x), result)
    assert torch.equal(fast(torch.cat([picture(5), x]))[1:], result)
    with torch.inference_mode():
        wanted = reference.double()(x.double())
    assert relative_error(result, wanted) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_face_takes_each_buffer_once(
    dtype: torch.dtype, in_use: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growing from level to level they would be fetched from the system again and again."""
    monkeypatch.setattr(gpen_cpu, "COARSE", 16)
    monkeypatch.setattr(cpu_native, "WHOLE", 64)
    fast = GpenCpu(network(4), dtype)
    fast.release()
    taken = []
    huge_pages = cpu_memory.huge_pages

    def counted(count: int, kind: torch.dtype) -> torch.Tensor:
        taken.append(count)
        return huge_pages(count, kind)

    monkeypatch.setattr(cpu_memory, "huge_pages", counted)
    fast(picture(4))
    assert len(taken) == len(fast.planes)


def test_levels_that_the_kernels_are_not_for_are_computed_by_torch(in_use: Library) -> None:
    architecture = GpenArchitecture.from_parameters(128, 1, 0.03125, 32, 4)  # 8 channels at 64
    state = {name: torch.ones(shape) for name, shape in architecture.shapes().items()}
    fast = GpenCpu(build_gpen(architecture, state))
    assert not any(isinstance(level, NativeLevel) for level in fast.synthesis)


def uses_kernels() -> bool:
    return any(isinstance(level, NativeLevel) for level in GpenCpu(network(4)).synthesis)


def test_the_environment_turns_the_kernels_off(
    in_use: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpen_cpu, "COARSE", 16)
    assert uses_kernels()
    monkeypatch.setenv(library.VARIABLE, "0")
    assert not uses_kernels()
