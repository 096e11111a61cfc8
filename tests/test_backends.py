"""Devices, memory and precision: what happens when a network cannot do what was asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from face_restore_worker import Face, Restorer
from face_restore_worker.errors import DeviceError, ModelError
from face_restore_worker.pipeline import loaded
from face_restore_worker.pipeline.backends import FaceNetwork
from face_restore_worker.pipeline.device import (
    choose_device,
    choose_precision,
    describe_device,
    is_out_of_memory,
)

from tests.natural import Apply, Identity, natural_photo, place_face

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def only_builtin_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user of this machine has installed must not matter."""
    monkeypatch.setenv("FACE_RESTORE_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return natural_photo(300, 400)


def face(size: float = 80, x: float = 150, y: float = 140) -> Face:
    return place_face(size, 0.1, x, y)


# -- devices, memory, precision ------------------------------------------------------------------


class Failing(Identity):
    """Raises an error the first `times` calls."""

    def __init__(self, times: float, error: Exception, size: int = 64) -> None:
        super().__init__(size)
        self.times = times
        self.error = error

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return x


def device_full() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "error",
    [
        device_full(),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_tried_once_more(error: Exception, photo: np.ndarray) -> None:
    assert is_out_of_memory(error)
    network = Failing(1, error)
    outcome = Restorer(network=network).restore(photo, [face()])
    assert len(outcome.patches) == 1 and network.calls == 2


def test_a_full_device_hands_the_face_to_the_cpu(
    photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is always full ("meta" stands for it), a CPU that works."""
    full, spare = Failing(float("inf"), device_full()), Identity(64)
    asked = []

    def load(device: str, precision: str) -> Identity:
        asked.append((device, precision))
        return spare if device == "cpu" else full

    monkeypatch.setattr(loaded, "load_network", lambda *_: FaceNetwork(load, "meta", "fp16"))
    outcome = Restorer().restore(photo, [face(), face(60)])
    assert len(outcome.patches) == 2 and spare.calls == 2 and full.calls == 4
    assert asked == [("meta", "fp16"), ("cpu", "fp32")]  # the CPU's copy is loaded once
    assert all(p.note and "CPU" in p.note for p in outcome.patches)
    assert sum("CPU" in note for note in outcome.notes) == 1
    for patch in outcome.patches:
        assert np.isfinite(patch.rgb).all()


def test_a_model_that_does_not_fit_the_device_runs_on_the_cpu() -> None:
    def load(device: str, precision: str) -> Identity:
        if device != "cpu":
            raise device_full()
        return Identity(64)

    network = FaceNetwork(load, "meta", "fp16")
    assert network.device == "cpu" and network.precision == "fp32"
    assert any("CPU" in note for note in network.notes)


def test_no_memory_anywhere_is_an_error_that_helps(photo: np.ndarray) -> None:
    with pytest.raises(DeviceError) as caught:
        Restorer(network=Failing(float("inf"), MemoryError())).restore(photo, [face()])
    assert caught.value.code == "out-of-memory" and caught.value.hint


def test_other_errors_are_not_taken_for_memory(photo: np.ndarray) -> None:
    network = Failing(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        Restorer(network=network).restore(photo, [face()])
    assert network.calls == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflow_in_half_precision_goes_to_fp32(bad: float) -> None:
    def load(device: str, precision: str) -> Identity:
        return Identity(16) if precision == "fp32" else Apply(lambda x: x * bad, 16)

    network = FaceNetwork(load, "cpu", "fp16")
    crop = np.full((16, 16, 3), 0.25, np.float32)
    result, note = network.restore(crop)
    assert np.allclose(result, crop) and note is not None and "fp16" in note
    assert network.restore(crop)[1] is None  # told once, fp32 from then on


def test_values_that_are_no_numbers_are_an_error(photo: np.ndarray) -> None:
    with pytest.raises(DeviceError) as caught:
        Restorer(network=Apply(lambda x: x / 0, 64)).restore(photo, [face()])
    assert caught.value.code == "not-finite"


def test_a_network_must_say_its_size_and_keep_shapes(photo: np.ndarray) -> None:
    with pytest.raises(ModelError, match="size"):
        Restorer(network=lambda x: x).restore(photo, [face()])
    with pytest.raises(ModelError, match="shape"):
        Restorer(network=Apply(lambda x: x[:, :, ::2], 64)).restore(photo, [face()])


def test_the_device_has_a_name_and_memory() -> None:
    chosen = choose_device("auto")
    described = describe_device(chosen)
    assert described["id"] == chosen
    assert described["name"] and described["memory_total"] > described["memory_free"] > 0
    assert choose_precision("auto", "cpu") in ("fp32", "bf16")
    assert choose_precision("fp16", "cpu") == "fp16"
