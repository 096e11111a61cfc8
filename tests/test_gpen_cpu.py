"""The processor's GPEN computes the reference's function, whatever the strips are."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from face_restore_worker.network import cpu_levels, cpu_ops, cpu_strips, cpu_winograd, gpen_cpu
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.cpu_memory import Planes
from face_restore_worker.network.cpu_strips import Rows, StripPool, bands, cut, strip_rows
from face_restore_worker.network.gpen import Gpen, build_gpen
from face_restore_worker.network.gpen_cpu import GpenCpu
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


def use_winograd(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cpu_levels, "WINOGRAD_SIDE", 8)
    patch.setattr(cpu_levels, "WINOGRAD_INPUTS", {torch.float32: 1, torch.bfloat16: 1})


@settings(max_examples=16, deadline=None)
@given(
    st.sampled_from([(32, 1, 0.03125), (64, 2, 0.03125), (128, 1, 0.0625)]),
    st.integers(0, 1000),
    st.integers(100, 200_000),
    st.sampled_from([4, 8, 64]),
    st.integers(1, 3),
    st.booleans(),
)
def test_equals_the_reference_whatever_the_strips_and_threads(
    shape: tuple[int, int, float],
    seed: int,
    strip_bytes: int,
    coarse: int,
    threads: int,
    winograd: bool,
) -> None:
    network = random_network(*shape, seed)
    x = picture(shape[0], seed)
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(cpu_strips, "STRIP_BYTES", strip_bytes)
        patch.setattr(gpen_cpu, "COARSE", coarse)
        if winograd:
            use_winograd(patch)
        torch.set_num_threads(threads)
        try:
            result = GpenCpu(network)(x)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        reference = network.double()(x.double())
    assert relative_error(result.double(), reference) < 2e-6


def test_without_fused_kernels_it_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = random_network(64, 2, 0.0625, 3), picture(64, 3)
    monkeypatch.setattr(gpen_cpu, "COARSE", 16)
    fused = GpenCpu(network)(x)
    monkeypatch.setattr(cpu_ops, "fused_available", lambda dtype: False)
    assert relative_error(GpenCpu(network)(x), fused) < 2e-6


@pytest.mark.parametrize("coarse", [8, 64])
@pytest.mark.parametrize("winograd", [False, True])
def test_bf16_stays_within_its_bounds_of_the_reference(
    coarse: int, winograd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpen_cpu, "COARSE", coarse)
    if winograd:
        use_winograd(monkeypatch)
    network, x = random_network(128, 2, 0.125, 4), picture(128, 4)
    with torch.inference_mode():
        reference = network(x)
    result = GpenCpu(network, torch.bfloat16)(x)
    assert result.dtype == torch.float32
    assert relative_error(result, reference) < 8e-3


def test_the_same_input_gives_the_same_bytes_alone_or_in_a_batch() -> None:
    network = random_network(64, 2, 0.0625, 5)
    fast, x = GpenCpu(network), torch.cat([picture(64, 5), picture(64, 6)])
    both = fast(x)
    assert torch.equal(both, fast(x))
    assert torch.equal(both[1:], fast(x[1:]))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99)
)
def test_winograd_is_the_convolution(
    rows: int, columns: int, inputs: int, outputs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((outputs, inputs, 3, 3), generator=generator)
    x = torch.randn((4 * rows + 2, 4 * columns + 2, inputs), generator=generator)
    out = torch.empty(4 * rows, 4 * columns, outputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_winograd, "TILE_BYTES", 36 * columns * inputs * 8)
        patch.setattr(cpu_winograd, "LEAST_ROWS", 1)
        cpu_winograd.Winograd(weight)(x, out)
    reference = F.conv2d(x.permute(2, 0, 1).double()[None], weight.double())[0]
    assert relative_error(out.double(), reference.permute(1, 2, 0)) < 2e-6


def test_released_memory_is_taken_anew() -> None:
    network, x = random_network(256, 1, 0.0625, 7), picture(256, 7)
    fast = GpenCpu(network)
    first = fast(x)
    assert len(fast.planes) > 0
    fast.release()
    assert len(fast.planes) == 0
    assert torch.equal(fast(x), first)


def test_calls_from_several_threads_do_not_mix() -> None:
    network = random_network(256, 1, 0.0625, 8)
    fast = GpenCpu(network)
    faces = [picture(256, seed) for seed in (8, 9)]
    alone = [fast(x) for x in faces]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(fast, faces * 4))
    assert all(torch.equal(result, alone[i % 2]) for i, result in enumerate(results))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="only Linux has huge pages")
def test_too_little_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(MemoryError, match="no 64 MB for a plane"):
        Planes().take("a", [(16, 1024, 1024)], torch.float32)


def test_planes_keep_one_buffer_for_a_name_and_grow_it() -> None:
    planes = Planes()
    (small,) = planes.take("a", [(3, 4, 5)], torch.float32)
    assert small.shape == (1, 3, 4, 5)
    assert small.is_contiguous(memory_format=torch.channels_last)
    first, second = planes.take("a", [(16, 256, 256), (2, 4, 8)], torch.bfloat16)
    assert first.dtype == torch.bfloat16 and first.data_ptr() != small.data_ptr()
    assert second.data_ptr() == first.data_ptr() + 2 * first.numel()
    (again,) = planes.take("a", [(8, 256, 256)], torch.bfloat16)
    assert again.data_ptr() == first.data_ptr() and len(planes) == 1
    small.fill_(1.0)  # still its own memory


def test_an_error_in_a_strip_is_raised_and_threads_are_restored() -> None:
    def fail(rows: Rows) -> None:
        if rows.start == 8:
            raise MemoryError("no more")

    before = torch.get_num_threads()
    with pytest.raises(MemoryError), StripPool() as pool:
        pool.each(fail, cut(Rows(0, 64), 8))
    assert torch.get_num_threads() == before


@settings(deadline=None)
@given(st.integers(4, 4096), st.integers(1, 10**6), st.integers(1, 10**7), st.integers(1, 300))
def test_bands_and_strips_cover_every_row_once(
    height: int, row_bytes: int, target: int, threads: int
) -> None:
    height *= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_strips, "STRIP_BYTES", target)
        step = strip_rows(height, row_bytes, threads)
    parts = [strip for band in bands(height, step, threads) for strip in cut(band, step)]
    assert [rows.start for rows in parts[1:]] == [rows.stop for rows in parts[:-1]]
    assert parts[0].start == 0 and parts[-1].stop == height
    assert all(rows.start % 2 == 0 and rows.stop > rows.start for rows in parts)
    assert all(rows.stop - rows.start == step for rows in parts[:-1])
