"""The built-in restorer as shipped: size, cost, what it gains, what it leaves alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import face_restore_worker.network.local_restorer as module
import numpy as np
import pytest
import torch
from face_restore_worker.network.local_restorer import LocalRestorer, count_flop
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from skimage.data import astronaut
from skimage.metrics import structural_similarity

BUILTIN = Path(module.__file__).parents[1] / "models" / "builtin"
WEIGHTS = BUILTIN / "builtin-restorer.safetensors"
TRAINING = Path(__file__).parents[1] / "worker" / "training" / "restorer"


@pytest.fixture(scope="module")
def network() -> LocalRestorer:
    return LocalRestorer.from_state_dict(load_file(WEIGHTS))


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((BUILTIN / "builtin-restorer.json").read_text())


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """The astronaut's head and shoulders at about the template's scale, 512x512, RGB in [0, 1]."""
    crop = astronaut()[0:256, 96:352]
    return cv2.resize(crop, (512, 512), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255


def damage(clean: np.ndarray, sigma: float, noise: float, quality: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    blurred = cv2.GaussianBlur(clean, (0, 0), sigma)
    noisy = blurred + rng.normal(0, noise / 255, clean.shape)
    levels = np.clip(noisy * 255 + 0.5, 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


def restore(network: LocalRestorer, picture: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None] * 2 - 1
    with torch.no_grad():
        y = network(x.contiguous(memory_format=torch.channels_last))
    return ((y[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((first.astype(np.float64) - second) ** 2)))


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    return float(structural_similarity(first, second, channel_axis=2, data_range=1.0))


def test_file_is_small_and_is_what_the_card_says(card: dict[str, Any]) -> None:
    data = WEIGHTS.read_bytes()
    assert len(data) <= 4_000_000
    assert card["bytes"] == len(data)
    digest = hashlib.sha256(data).hexdigest()
    assert card["sha256"] == digest
    assert digest in (BUILTIN / "builtin-restorer.md").read_text()
    assert card["file"] == WEIGHTS.name
    assert card["size"] == 512


def test_cost_counted_from_the_modules(network: LocalRestorer, card: dict[str, Any]) -> None:
    gflop = count_flop(network, 512, 512) / 1e9
    assert gflop <= 60
    assert gflop == pytest.approx(card["gflop"], abs=0.01)


def test_flop_of_a_known_convolution() -> None:
    # 5 output channels of 3x3x3 taps at 8x8 places, 2 operations each.
    assert count_flop(torch.nn.Conv2d(3, 5, 3, padding=1), 8, 8) == 2 * 27 * 5 * 64


@pytest.mark.parametrize(
    ("sigma", "noise", "quality", "least"),
    [(1.5, 12.0, 60, 1.5), (0.8, 25.0, 80, 3.0), (3.0, 4.0, 50, 0.5)],
)
def test_degraded_face_gains(
    network: LocalRestorer,
    face: np.ndarray,
    sigma: float,
    noise: float,
    quality: int,
    least: float,
) -> None:
    degraded = damage(face, sigma, noise, quality)
    restored = restore(network, degraded)
    assert psnr(restored, face) - psnr(degraded, face) > least
    assert similarity(restored, face) > similarity(degraded, face)


def test_clean_face_is_kept(network: LocalRestorer, face: np.ndarray) -> None:
    assert psnr(restore(network, face), face) > 33


def test_gray_stays_gray(network: LocalRestorer, face: np.ndarray) -> None:
    degraded = damage(face, 1.5, 12.0, 60)
    gray = cv2.cvtColor(degraded, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    assert np.ptp(restore(network, gray), axis=2).max() == 0
    # A colour cast of a few levels (JPEG rounding, a scan) may not grow into colour noise.
    cast = np.clip(gray + np.float32([0.006, 0, -0.006]), 0, 1)
    change = restore(network, cast) - cast
    assert np.percentile(np.ptp(change, axis=2), 99) * 255 < 3.0


def test_same_bytes_every_time(network: LocalRestorer, face: np.ndarray) -> None:
    degraded = damage(face[192:320, 192:320], 1.0, 10.0, 70)
    again = LocalRestorer.from_state_dict(load_file(WEIGHTS))
    assert restore(network, degraded).tobytes() == restore(network, degraded).tobytes()
    assert restore(network, degraded).tobytes() == restore(again, degraded).tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees(network: LocalRestorer, face: np.ndarray, dtype: Any) -> None:
    # Small: float16 convolutions are slow on processors without it.
    degraded = damage(face[200:248, 200:248], 1.0, 10.0, 70)
    half = LocalRestorer.from_state_dict(load_file(WEIGHTS)).to(dtype)
    x = torch.from_numpy(degraded).permute(2, 0, 1)[None] * 2 - 1
    with torch.no_grad():
        output = half(x.to(dtype))
        difference = output.float() - network(x)
    assert output.dtype == dtype
    # In 8-bit levels; bfloat16 itself rounds values near 1 to half a level.
    assert float(difference.abs().mean()) * 127.5 < 1.0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(1, 70), st.integers(1, 70))
def test_any_size_keeps_its_shape(count: int, height: int, width: int) -> None:
    small = LocalRestorer((4, 4, 8, 8), (1, 1, 1, 1), (1, 1, 1)).eval()
    with torch.no_grad():
        assert small(torch.zeros(count, 3, height, width)).shape == (count, 3, height, width)


def test_shape_is_read_from_the_state_dict() -> None:
    small = LocalRestorer((4, 6, 8, 10), (1, 2, 3, 1), (2, 1, 2)).eval()
    rebuilt = LocalRestorer.from_state_dict({k: v.half() for k, v in small.state_dict().items()})
    x = torch.rand(1, 3, 40, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(x), small(x), atol=1e-2, rtol=1e-2)


def test_foreign_weights_and_inputs_are_refused(network: LocalRestorer) -> None:
    with pytest.raises(ValueError, match="not weights of the local restorer"):
        LocalRestorer.from_state_dict({"conv.weight": torch.zeros(3, 3, 3, 3)})
    state = dict(network.state_dict())
    state["tail.weight"] = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"tail\.weight"):
        LocalRestorer.from_state_dict(state)
    with pytest.raises(ValueError, match="expected a tensor"):
        network(torch.zeros(1, 1, 16, 16))


def load_script(name: str) -> ModuleType:
    """Import a training script under a name of its own (another model's may be called alike)."""
    spec = importlib.util.spec_from_file_location(f"restorer_{name}", TRAINING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("seed", range(6))
def test_degradations_are_seeded_and_keep_the_size(face: np.ndarray, seed: int) -> None:
    degradations = load_script("degradations")
    crop = face[100:260, 90:230]
    first, second = (
        degradations.degrade(np.random.default_rng(seed), crop, gray=False) for _ in range(2)
    )
    assert first.shape == crop.shape
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1
    np.testing.assert_array_equal(first, second)
    # Every kernel has weight one: a flat picture survives blurring.
    flat = np.full((64, 64, 3), 0.5, np.float32)
    blurred = degradations.blur(np.random.default_rng(seed), flat, (0.3, 5.0))
    np.testing.assert_allclose(blurred, flat, atol=1e-4)


def test_gray_pictures_are_degraded_gray(face: np.ndarray) -> None:
    degradations = load_script("degradations")
    gray = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[128:288, 128:288, None].repeat(3, axis=2)
    for seed in range(8):
        degraded = degradations.degrade(np.random.default_rng(seed), gray, gray=True)
        assert np.ptp(degraded, axis=2).max() * 255 <= 2.5


def test_synthetic_pictures_are_seeded() -> None:
    synthetic = load_script("synthetic")
    first, second = (synthetic.synthetic_picture(np.random.default_rng(3), 64) for _ in range(2))
    other = synthetic.synthetic_picture(np.random.default_rng(4), 64)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.slow
def test_training_and_judging_run(tmp_path: Path, face: np.ndarray) -> None:
    crops = tmp_path / "crops"
    crops.mkdir()
    levels = (cv2.resize(face, (320, 320)) * 255).astype(np.uint8)[..., ::-1]
    for index in range(24):
        cv2.imwrite(str(crops / f"{index}.jpg"), np.roll(levels, index * 7, axis=1))
    out = tmp_path / "out"
    common = ["--data", str(crops), "--seed", "5"]
    sizes = ["--steps", "3", "--batch", "1", "--synthetic", "2", "--validation", "1"]
    for _ in range(2):
        run("train.py", *common, "--out", str(out), *sizes)
        state = load_file(out / "last.safetensors")
        save_file(state, tmp_path / f"{len(list(tmp_path.glob('*.safetensors')))}.safetensors")
    first, second = (load_file(tmp_path / f"{n}.safetensors") for n in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = str(out / "last.safetensors")
    report = tmp_path / "figures.json"
    run("evaluate.py", *common, "--weights", weights, "--json", str(report), "--repeats", "1",
        "--limit", "1", "--no-filters")  # fmt: skip
    figures = json.loads(report.read_text())
    assert figures["gflop"] < 60
    assert abs(figures["512"]["gain"]["psnr"]) < 1  # three steps change next to nothing
    run("publish.py", "--weights", weights, "--figures", str(report), "--out", str(tmp_path / "p"))
    assert (tmp_path / "p" / "builtin-restorer.safetensors").stat().st_size == figures["bytes"]


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, str(TRAINING / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
