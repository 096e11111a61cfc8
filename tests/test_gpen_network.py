"""GPEN's function: golden vectors of the authors' code, precisions, determinism, batches."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from face_restore_worker import load_gpen
from face_restore_worker.errors import DeviceError
from face_restore_worker.network.primitives import upsample_rgb
from gpen_factory import FIR, faces, random_state, relative_error, tiny
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"fp64": 2e-6, "fp32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}
EXACT_2048 = {"fp32": 2e-6, "bf16": 8e-3}  # of the processor's path for the model that matters


def _recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_output(name: str, precision: str) -> tuple[Tensor, dict]:
    """Run the network on a golden case; return ((3, S, S) fp64, the case's configuration)."""
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    recipe = _recipe()
    shapes = {key: tuple(shape) for key, shape in config["shapes"].items()}
    arrays = recipe.random_state_dict(shapes, config["seed"])
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    restorer = load_gpen(state, precision=precision)
    picture = torch.from_numpy(recipe.input_image(config["in_size"], config["seed"]))
    if precision == "fp64":
        picture = picture.double()
    return restorer(picture)[0].double(), config


def golden_error(output: Tensor, name: str) -> float:
    """Return ||value - output|| / ||value|| over the sampled values."""
    with np.load(GOLDEN / f"{name}.npz") as golden:
        channel, row, column = torch.from_numpy(golden["index"].astype(np.int64)).T
        return relative_error(output[channel, row, column], torch.from_numpy(golden["value"]))


CASES = [
    pytest.param("tiny-64", "fp64"),
    pytest.param("tiny-64", "fp32"),
    pytest.param("tiny-64", "bf16"),
    pytest.param("tiny-64", "fp16"),
    pytest.param("bfr-256", "fp32"),
    pytest.param("bfr-512", "fp32", marks=pytest.mark.slow),
    pytest.param("bfr-256", "fp64", marks=pytest.mark.slow),
    pytest.param("bfr-512", "fp64", marks=pytest.mark.slow),
    pytest.param("bfr-2048", "fp32", marks=pytest.mark.long),
    pytest.param("bfr-2048", "bf16", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_golden(name: str, precision: str, record_property: Callable[[str, object], None]) -> None:
    output, config = golden_output(name, precision)
    error = golden_error(output, name)
    record_property("relative_error", error)
    print(f"{name} {precision}: relative error {error:.2e}")
    assert error < TOLERANCE[precision]
    assert name != "bfr-2048" or error < EXACT_2048[precision]
    with np.load(GOLDEN / f"{name}.npz") as golden:
        # The sampled values are 4096 places; these say the same of the whole picture.
        size = config["out_size"]
        down = output.view(3, 32, size // 32, 32, size // 32).mean(dim=(2, 4))
        assert relative_error(down, torch.from_numpy(golden["down"])) < TOLERANCE[precision]
        assert relative_error(output.norm(), torch.tensor(golden["norm"])) < TOLERANCE[precision]


@pytest.mark.long
def test_bf16_of_the_2048_model_in_8_bit_levels() -> None:
    exact, _ = golden_output("bfr-2048", "fp32")
    fast, _ = golden_output("bfr-2048", "bf16")
    # Random weights give more contrast than a face has: levels for a standard deviation of 0.16.
    levels = (fast - exact).abs() * (127.5 * 0.16 / exact.std())
    assert float(levels.mean()) < 0.2
    assert float(levels.flatten().kthvalue(int(0.999 * levels.numel())).values) < 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_same_input_gives_the_same_bytes(precision: str) -> None:
    architecture = tiny(32)
    restorer = load_gpen(random_state(architecture), precision=precision)
    picture = faces(architecture)
    first = restorer(picture)
    assert first.dtype == torch.float32
    assert torch.equal(first, restorer(picture))
    again = load_gpen(random_state(architecture), precision=precision)
    assert torch.equal(first, again(picture))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("fp16", 4e-3)])
@pytest.mark.parametrize("size", [16, 64])
def test_sixteen_bits_stay_close(precision: str, tolerance: float, size: int) -> None:
    architecture = tiny(size, n=1 / 16, style_dim=32)
    state, picture = random_state(architecture, size), faces(architecture)
    exact = load_gpen(state, precision="fp64")(picture.double())
    assert relative_error(load_gpen(state, precision=precision)(picture), exact) < tolerance


def test_a_face_does_not_depend_on_its_batch() -> None:
    architecture = tiny(16)
    restorer = load_gpen(random_state(architecture))
    batch = faces(architecture, count=3)
    together = restorer(batch)
    for i in range(3):
        assert torch.equal(together[i : i + 1], restorer(batch[i : i + 1]))
    assert not torch.equal(together[0], together[1])


def test_input_is_left_alone_and_memory_format_does_not_matter() -> None:
    architecture = tiny(16)
    restorer = load_gpen(random_state(architecture))
    picture = faces(architecture)
    before = picture.clone()
    plain = restorer(picture)
    assert torch.equal(picture, before)
    other = picture.to(memory_format=torch.channels_last)
    assert torch.equal(restorer(other), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_floating_type_is_taken(dtype: torch.dtype) -> None:
    architecture = tiny(16)
    restorer = load_gpen(random_state(architecture))
    result = restorer(faces(architecture).to(dtype))
    assert result.dtype == torch.float32 and result.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (torch.zeros(3, 16, 16), ValueError, r"\(N, 3, 16, 16\), not \(3, 16, 16\)"),
        (torch.zeros(1, 3, 32, 32), ValueError, r"\(N, 3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), ValueError, r"\(N, 3, 16, 16\)"),
        (torch.zeros(0, 3, 16, 16), ValueError, r"\(N, 3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, "floating"),
        (np.zeros((1, 3, 16, 16), np.float32), TypeError, "torch tensor"),
        (torch.full((1, 3, 16, 16), float("nan")), ValueError, "NaN"),
        (torch.full((1, 3, 16, 16), float("inf")), ValueError, "NaN or infinity"),
    ],
)
def test_wrong_input_is_named(wrong: object, error: type[Exception], says: str) -> None:
    restorer = load_gpen(random_state(tiny(16)))
    with pytest.raises(error, match=says):
        restorer(wrong)  # type: ignore[arg-type]


def test_attributes_and_moving() -> None:
    architecture = tiny(16)
    restorer = load_gpen(random_state(architecture), precision="bf16")
    assert restorer.size == 16
    assert restorer.architecture == architecture
    assert restorer.device == torch.device("cpu")
    assert restorer.precision == "bf16"
    assert restorer.to("cpu") is restorer


@pytest.mark.parametrize(("device", "precision"), [("cpu", "int8"), ("nonsense", "fp32")])
def test_unusable_device_or_precision(device: str, precision: str) -> None:
    with pytest.raises(DeviceError) as caught:
        load_gpen(random_state(tiny(16)), device=device, precision=precision)
    assert caught.value.hint


def test_rgb_upsampling_is_zero_insertion_and_fir() -> None:
    picture = torch.randn(1, 3, 5, 7, dtype=torch.float64)
    zeros = torch.zeros(1, 3, 10, 14, dtype=torch.float64)
    zeros[..., ::2, ::2] = picture
    padded = torch.nn.functional.pad(zeros, (2, 1, 2, 1))
    kernel = (4 * FIR).double().expand(3, 1, 4, 4)
    wanted = torch.nn.functional.conv2d(padded, kernel, groups=3)
    assert torch.allclose(upsample_rgb(picture), wanted, rtol=0, atol=1e-14)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_agrees_with_the_processor(precision: str) -> None:
    architecture = tiny(64, n=1 / 16, style_dim=32)
    state, picture = random_state(architecture), faces(architecture)
    exact = load_gpen(state, precision="fp64")(picture.double())
    restorer = load_gpen(state, device="cuda", precision=precision)
    result = restorer(picture)
    assert result.device.type == "cpu"
    assert relative_error(result, exact) < TOLERANCE[precision]
    assert torch.equal(result, restorer(picture))
