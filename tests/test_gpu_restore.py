"""A Restorer whose network works on its device: the same patches, and ways out when it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from face_restore_shared.schema import RestoreOptions
from face_restore_worker import Face, Restorer
from face_restore_worker.network.gpen_cuda import GpenCuda
from face_restore_worker.pipeline import gpu_bus
from face_restore_worker.pipeline.backends import FaceNetwork
from gpen_factory import random_state, tiny
from torch import Tensor

from tests.natural import Apply, natural_photo, place_face

torch.set_num_threads(2)
SIZE = 64


class OnDevice:
    """A network from pixels to pixels; calls ``before`` first."""

    def __init__(self, before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.size, self.device, self.before = SIZE, torch.device("cpu"), before
        self.calls = 0

    def restore_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        y = self.before(pixels) * 0.8 + 0.1
        return y, torch.isfinite(y).all()


class Both(Apply):
    """The same function from [-1, 1] to [-1, 1], with the other one beside it."""

    def __init__(self, fast: OnDevice | None) -> None:
        super().__init__(lambda x: x * 0.8, SIZE)
        self.fast = fast


@pytest.fixture(autouse=True)
def only_builtin_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACE_RESTORE_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return natural_photo(300, 400)


def faces() -> list[Face]:
    outside = place_face(60, 0.0, -900, -900)
    return [place_face(80, 0.1, 120, 140), outside, place_face(110, -0.4, 280, 150)]


@pytest.mark.parametrize("aligned", [False, True])
def test_patches_and_notes_are_those_of_the_usual_way(photo: np.ndarray, aligned: bool) -> None:
    options = RestoreOptions(aligned=aligned, return_aligned=True)
    fast = OnDevice()
    usual = Restorer(network=Both(None)).restore(photo, faces(), options=options)
    found = Restorer(network=Both(fast)).restore(photo, faces(), options=options)
    assert fast.calls == len(usual.patches) == (1 if aligned else 2)
    assert found.notes == usual.notes
    for a, b in zip(found.patches, usual.patches, strict=True):
        assert (a.x, a.y, a.crop_size, a.strength) == (b.x, b.y, b.crop_size, b.strength)
        assert np.array_equal(a.matrix, b.matrix)
        assert a.rgb.shape == b.rgb.shape and np.abs(a.rgb - b.rgb).mean() < 2e-3
        assert np.abs(a.mask - b.mask).max() < 2e-4
        assert a.aligned_input is not None and b.aligned_input is not None
        assert a.aligned_output is not None and b.aligned_output is not None
        assert np.abs(a.aligned_input - b.aligned_input).mean() < 2e-3
        assert np.abs(a.aligned_output - b.aligned_output).mean() < 2e-3


def test_the_next_face_is_begun_before_the_last_is_fetched(
    photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, following = 0, [threading.Event() for _ in range(4)]
    whole = gpu_bus.Bus.fetch

    def fetch(self: gpu_bus.Bus, values: Tensor) -> Callable[[], np.ndarray]:
        nonlocal begun
        waiting, mine = whole(self, values), begun
        following[mine].set()
        begun += 1

        def wait() -> np.ndarray:
            # Would hang if the next face were begun only after this one.
            assert mine == 2 or following[mine + 1].wait(120)
            return waiting()

        return wait

    monkeypatch.setattr(gpu_bus.Bus, "fetch", fetch)
    three = [place_face(80, 0.1, x, 140) for x in (90, 180, 270)]
    outcome = Restorer(network=Both(OnDevice())).restore(photo, three)
    assert begun == 3
    assert [p.face.landmarks[0, 0] for p in outcome.patches] == [f.landmarks[0, 0] for f in three]


def test_a_full_device_sends_a_face_the_usual_way(photo: np.ndarray) -> None:
    calls: list[int] = []

    def full_once(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    outcome = Restorer(network=Both(OnDevice(full_once))).restore(photo, faces())
    assert len(outcome.patches) == 2 and len(calls) == 2


def test_other_errors_are_not_hidden(photo: np.ndarray) -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Restorer(network=Both(OnDevice(broken))).restore(photo, faces())


def test_values_that_are_no_numbers_send_a_face_the_usual_way(photo: np.ndarray) -> None:
    outcome = Restorer(network=Both(OnDevice(lambda x: x * float("nan")))).restore(photo, faces())
    assert len(outcome.patches) == 2
    assert all(np.isfinite(patch.rgb).all() for patch in outcome.patches)


def test_the_gpus_network_is_found_where_there_is_one() -> None:
    architecture = tiny(16)
    from face_restore_worker.network.gpen import build_gpen

    network = build_gpen(architecture, random_state(architecture))
    fast = GpenCuda(network, torch.float32, "cpu")
    holder = Apply(lambda x: x, 16)
    assert FaceNetwork(lambda *_: holder, "cpu").pixels is None
    holder.fast = fast  # type: ignore[attr-defined]
    assert FaceNetwork(lambda *_: holder, "cpu").pixels is fast
