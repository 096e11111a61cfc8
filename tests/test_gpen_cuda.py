"""GpenCuda with plain operations computes the reference's function; bad kernels are found out."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from face_restore_worker.checkpoints import gpen as checkpoint
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.cuda import graph, operations, plain
from face_restore_worker.network.cuda.layers import Feature, Rgb, Styled
from face_restore_worker.network.cuda.operations import PLAIN, Operations, checked
from face_restore_worker.network.gpen import Gpen, build_gpen
from face_restore_worker.network.gpen_cuda import GpenCuda
from gpen_factory import faces, random_state, relative_error, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
BOUND = {torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
TYPES = pytest.mark.parametrize("dtype", list(BOUND))


def network_and_exact(architecture: GpenArchitecture, seed: int = 0) -> tuple[Gpen, Gpen]:
    state = random_state(architecture, seed)
    double = {name: value.double() for name, value in state.items()}
    return build_gpen(architecture, state), build_gpen(architecture, double)


@TYPES
def test_golden_vectors(dtype: torch.dtype) -> None:
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = json.loads((GOLDEN / "tiny-64.json").read_text())
    shapes = {key: tuple(shape) for key, shape in config["shapes"].items()}
    arrays = recipe.random_state_dict(shapes, config["seed"])
    state = {key: torch.from_numpy(value).float() for key, value in arrays.items()}
    learned, architecture = checkpoint.gpen_state(state, "golden")
    picture = torch.from_numpy(recipe.input_image(config["in_size"], config["seed"]))
    output = GpenCuda(build_gpen(architecture, learned), dtype, CPU)(picture.float())[0]
    with np.load(GOLDEN / "tiny-64.npz") as golden:
        channel, row, column = torch.from_numpy(golden["index"].astype(np.int64)).T
        wanted = torch.from_numpy(golden["value"])
    assert relative_error(output[channel, row, column], wanted) < BOUND[dtype]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([8, 16, 32, 64]),
    st.lists(st.integers(1, 9), min_size=5, max_size=5),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(0, 1000),
    st.sampled_from([1, 300, 1 << 22]),
)
def test_equals_the_reference_for_any_widths_and_strips(
    size: int, widths: list[int], style: int, depth: int, seed: int, strip: int
) -> None:
    levels = size.bit_length() - 3
    architecture = GpenArchitecture(size, tuple(widths[: levels + 1]), style, depth)
    network, exact = network_and_exact(architecture, seed)
    x = faces(architecture, seed=seed)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(plain, "_STRIP_VALUES", strip)
        result = GpenCuda(network, torch.float32, CPU)(x)
        assert relative_error(result, exact(x.double())) < 2e-5


@TYPES
def test_sixteen_bits_are_as_good_as_the_reference_in_them(dtype: torch.dtype) -> None:
    architecture = tiny(64, n=1 / 16, style_dim=32)
    network, exact = network_and_exact(architecture, 3)
    x = faces(architecture)
    with torch.inference_mode():
        wanted = exact(x.double())
        usual = relative_error(network(x.to(dtype)), wanted)
    result = GpenCuda(network, dtype, CPU)(x)
    assert result.dtype == torch.float32
    assert relative_error(result, wanted) < min(BOUND[dtype], max(1.5 * usual, 2e-6))


def test_no_style_is_too_large_for_sixteen_bits() -> None:
    """Styles multiply activations: scaled to at most 1, they cannot overflow fp16."""
    architecture = tiny(32, n=1 / 16, style_dim=32)
    state = random_state(architecture, 5)
    for name in state:
        if "conv.modulation" in name and "to_rgb" not in name:
            state[name] = state[name] * 1e6  # undone by the demodulation
    network = build_gpen(architecture, state)
    x = faces(architecture)
    with torch.inference_mode():
        exact = build_gpen(architecture, {k: v.double() for k, v in state.items()})(x.double())
    assert relative_error(GpenCuda(network, torch.float16, CPU)(x), exact) < 4e-3


def test_fp32_is_as_close_as_the_reference() -> None:
    """Mapping is in fp64 then: its error is in every style."""
    architecture = tiny(64, n=1 / 16, style_dim=32)
    network, exact = network_and_exact(architecture, 3)
    x = faces(architecture)
    with torch.inference_mode():
        wanted = exact(x.double())
        usual = relative_error(network(x), wanted)
    assert relative_error(GpenCuda(network, torch.float32, CPU)(x), wanted) < min(2e-6, 2 * usual)


def test_a_batch_and_a_second_time_give_the_same_bytes() -> None:
    architecture = tiny(16)
    fast = GpenCuda(network_and_exact(architecture)[0], torch.float32, CPU)
    x = faces(architecture, 2)
    both = fast(x)
    first = both.clone()
    assert torch.equal(fast(x[1:]), both[1:]) and torch.equal(both, first)
    assert not fast.recorded and fast.operations is PLAIN and fast.notes == ()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pixels_to_pixels(dtype: torch.dtype) -> None:
    architecture = tiny(16)
    network, exact = network_and_exact(architecture)
    pixels = torch.rand((16, 16, 3), generator=torch.Generator().manual_seed(3))
    if dtype == torch.uint8:
        pixels = (pixels * 255).to(torch.uint8)
    unit = pixels.double() / (255 if dtype == torch.uint8 else 1)
    with torch.inference_mode():
        wanted = exact((unit * 2 - 1).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    found, finite = GpenCuda(network, torch.float32, CPU).restore_pixels(pixels)
    assert bool(finite) and found.shape == (16, 16, 3) and found.is_contiguous()
    assert torch.allclose(found.double(), (wanted / 2 + 0.5).clamp(0, 1), atol=2e-6)
    whole = plain.to_pixels(wanted.permute(2, 0, 1)[None].float(), torch.uint8)
    assert torch.equal(whole, (found.double() * 255 + 0.5).floor().to(torch.uint8))


def test_values_that_are_no_numbers_are_told() -> None:
    architecture = tiny(16)
    state = random_state(architecture)
    state["generator.to_rgbs.0.bias"] = torch.full((1, 3, 1, 1), float("nan"))
    fast = GpenCuda(build_gpen(architecture, state), torch.float32, CPU)
    assert not bool(fast.restore_pixels(torch.zeros(16, 16, 3))[1])


def test_rows_of_a_feature_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn((1, 3, 6, 5), generator=generator)
    feature = Feature(
        picture,
        torch.randn(4, generator=generator),
        torch.randn((4, 3), generator=generator),
    )
    whole = plain.activate_feature(feature, slice(None))
    assert torch.equal(plain.activate_feature(feature, slice(2, 5)), whole[:, :, 2:5])
    assert feature.channels == 4 and feature.size == (6, 5)


# -- kernels that cannot be trusted ----------------------------------------------------------------


def candidates(**broken: Callable[..., Any]) -> Operations:
    """Stand-ins for the fused kernels: copies of the plain ones, some of them broken."""

    def copy_of(name: str) -> Callable[..., Any]:
        function = getattr(plain, name)
        return lambda *arguments: function(*arguments)

    return Operations(**({name: copy_of(name) for name in operations.NAMES} | broken))


def nearly(t: Tensor, feature: Feature, styled: Styled) -> Tensor:
    out = plain.finish_up(t, feature, styled)
    out[..., -1] = 0  # a border column forgotten
    return out


def failing(*arguments: object) -> Tensor:
    raise RuntimeError("PTX was compiled with an unsupported version")


def swapped(u: Tensor, feature: Feature, styled: Styled, rgb: Rgb) -> tuple[Tensor | None, Tensor]:
    y, colour = plain.finish_conv(u, feature, styled, rgb)
    return y, colour.flip(1)


def no_numbers(pixels: Tensor, out: Tensor) -> None:
    plain.normalise(pixels, out)
    out[0, 0, 0, 0] = float("nan")


def truncating(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    pixels = plain.to_pixels(rgb, torch.float32)
    return pixels if dtype == torch.float32 else (pixels * 255).to(torch.uint8)


BROKEN = {
    "finish_up": nearly,
    "blur_feature": failing,
    "finish_conv": swapped,
    "normalise": no_numbers,
    "to_pixels": truncating,
}


@TYPES
@pytest.mark.parametrize("name", operations.NAMES)
def test_a_broken_kernel_is_replaced_by_its_twin_and_told(
    name: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = checked(candidates(**{name: BROKEN[name]}), CPU, dtype)
    assert getattr(chosen, name) is getattr(plain, name)
    assert set(chosen.fused) == set(operations.NAMES) - {name}
    assert len(chosen.notes) == 1 and name in chosen.notes[0] and name in caplog.text


def test_good_kernels_are_all_kept() -> None:
    good = candidates()
    assert checked(good, CPU, torch.bfloat16) == good and good.fused == operations.NAMES


def test_out_of_memory_is_no_reason_to_distrust_a_kernel() -> None:
    def full(*arguments: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        checked(candidates(blur_feature=full), CPU, torch.float32)


def test_without_triton_the_plain_operations_run_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("fused", "kernels"):
        monkeypatch.delitem(sys.modules, f"face_restore_worker.network.cuda.{name}", False)
    package = sys.modules["face_restore_worker.network.cuda"]
    monkeypatch.delattr(package, "fused", raising=False)
    with caplog.at_level(logging.WARNING):
        chosen = operations.choose_operations(torch.device("cuda"), torch.float16)
    assert chosen.fused == () and "Triton cannot be imported" in chosen.notes[0]
    assert "Plain PyTorch" in caplog.text
    assert operations.choose_operations(CPU, torch.float16) is PLAIN


def test_fused_operations_that_only_fail_at_full_size_are_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loading does on a GPU, on the CPU: the whole network against the plain operations."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    architecture = tiny(16)
    network, exact = network_and_exact(architecture)
    x = faces(architecture)
    for broken in (candidates(finish_up=nearly), candidates(finish_conv=failing)):
        fast = GpenCuda(network, torch.float32, CPU, operations=broken)
        with torch.inference_mode(), caplog.at_level(logging.WARNING):
            fast._warm_up(graph=False)
            assert relative_error(fast(x), exact(x.double())) < 5e-6
        assert fast.operations.fused == () and "not used" in fast.notes[0]
    kept = GpenCuda(network, torch.float32, CPU, operations=candidates())
    with torch.inference_mode():
        kept._warm_up(graph=False)
    assert kept.operations.fused == operations.NAMES


# -- graphs ----------------------------------------------------------------------------------------


def test_a_graph_that_cannot_be_recorded_leaves_the_network_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph, "_record", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    calls: list[int] = []

    def run() -> None:
        calls.append(1)

    with caplog.at_level(logging.WARNING):
        assert graph.capture(run, torch.device("cuda")) is run
    assert "not permitted" in caplog.text
    assert graph.capture(run, CPU) is run and not calls


@pytest.mark.parametrize("right", [True, False])
def test_a_graph_is_used_only_if_it_gives_the_same(
    right: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    architecture = tiny(16)
    fast = GpenCuda(network_and_exact(architecture)[0], torch.float32, CPU)

    def fake(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        def replay() -> None:
            run()
            if not right:
                fast._result.mul_(1.1)

        return replay

    monkeypatch.setattr("face_restore_worker.network.gpen_cuda.capture", fake)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        fast._warm_up(graph=True)
    assert fast.recorded is right
    assert ("graph is not used" in caplog.text) is not right


def test_recording_warms_up_on_another_stream_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, with stand-ins for what only a GPU has."""
    events: list[str] = []

    class Stand:
        def __init__(self, name: str = "") -> None:
            self.name = name

        def __enter__(self) -> None:
            events.append(f"enter {self.name}")

        def __exit__(self, *error: object) -> None:
            events.append(f"exit {self.name}")

        def wait_stream(self, other: object) -> None:
            events.append("wait")

        def replay(self) -> None:
            events.append("replay")

    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda x, name=name, **mode: Stand(name))
    monkeypatch.setattr(torch.cuda, "Stream", Stand)
    monkeypatch.setattr(torch.cuda, "current_stream", Stand)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Stand)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    replay = graph.capture(lambda: events.append("run"), torch.device("cuda"))
    replay()
    assert events == [
        "enter device", "wait", "enter stream", "run", "run", "run", "exit stream", "wait",
        "synchronize", "enter graph", "run", "exit graph", "exit device", "replay",
    ]  # fmt: skip


def test_arithmetic_is_exact_while_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from face_restore_worker.network.cuda.context import exact

    entered: list[Any] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            entered.append(device)

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device", Current)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    cudnn = torch.backends.cudnn
    try:
        for timed in (False, True):
            with exact(torch.device("cuda", 1), timed):
                assert torch.get_float32_matmul_precision() == "highest"
                assert cudnn.deterministic and not cudnn.allow_tf32 and cudnn.benchmark is timed
            assert torch.get_float32_matmul_precision() == "high" and not cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision(before)
    assert entered == [torch.device("cuda", 1)] * 2


def test_replace_keeps_the_notes() -> None:
    assert replace(PLAIN, notes=("a",)).fused == ()


# -- who uses it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision", "used"),
    [
        ("cuda", "fp16", torch.float16),
        ("cuda:1", "bf16", torch.bfloat16),
        ("cuda", "fp32", torch.float32),
    ],
)
def test_cuda_devices_get_this_implementation(
    device: str, precision: str, used: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        checkpoint, "GpenCuda", lambda *arguments: made.append(arguments) or "prepared"
    )
    network = network_and_exact(tiny(16))[0]
    restorer = checkpoint.GpenRestorer(network, torch.device(device), precision)
    assert restorer.fast == "prepared"
    assert made == [(network, used, torch.device(device))]
    assert all(value.device == CPU for value in network.parameters())


def test_a_file_may_be_overwritten_while_a_gpu_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "GpenCuda", lambda *arguments: "prepared")
    monkeypatch.setattr(checkpoint, "_device", lambda device, precision: torch.device(device))
    path = tmp_path / "gpen.safetensors"
    checkpoint.write_gpen_safetensors(random_state(tiny(16)), path)
    network = checkpoint.load_gpen(path, device="cuda", precision="fp16").network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


if torch.cuda.is_available():  # elsewhere there is nothing to report, not even a skip

    @TYPES
    @pytest.mark.parametrize("graph_wanted", [True, False])
    def test_on_a_gpu(dtype: torch.dtype, graph_wanted: bool) -> None:
        architecture = tiny(64, n=1 / 16, style_dim=32)
        network, exact = network_and_exact(architecture)
        x = faces(architecture, 2)
        with torch.inference_mode():
            wanted = exact(x.double())
        fast = GpenCuda(network, dtype, "cuda", graph=graph_wanted)
        result = fast(x.cuda()).cpu()
        assert relative_error(result, wanted) < BOUND[dtype]
        assert torch.equal(result, fast(x.cuda()).cpu())
        assert fast.recorded is graph_wanted
        if torch.version.cuda and sys.platform == "linux":
            assert fast.operations.fused == operations.NAMES, fast.notes
