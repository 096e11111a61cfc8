"""An idle worker gives back working memory first, models later."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from face_restore_worker import load_gpen
from face_restore_worker.pipeline.backends import FaceNetwork
from face_restore_worker.server import idle as module
from face_restore_worker.server.idle import REST, REST_SECONDS, UNLOAD, Idle
from gpen_factory import faces, random_state, tiny
from worker_process import Worker, eventually


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_first_a_rest_then_unloading_each_once(clock: Clock) -> None:
    idle = Idle(600.0)
    for _ in range(2):
        idle.work_begins()
        clock.now += 7
        idle.work_ended()
        start = clock.now
        assert idle.due() is None and idle.next_at() == start + REST_SECONDS
        clock.now = start + REST_SECONDS
        assert (idle.due(), idle.due()) == (REST, None)
        assert idle.next_at() == start + 600
        clock.now = start + 600
        assert (idle.due(), idle.due(), idle.next_at()) == (UNLOAD, None, None)


def test_kept_models_rest_as_well(clock: Clock) -> None:
    idle = Idle(None)
    clock.now += 1e6
    assert (idle.due(), idle.due(), idle.next_at()) == (REST, None, None)


def test_unloading_leaves_nothing_to_rest(clock: Clock) -> None:
    idle = Idle(5.0)
    clock.now += 5
    assert (idle.due(), idle.next_at()) == (UNLOAD, None)
    idle.work_begins()
    clock.now += 1000  # an upkeep that came late
    assert (idle.due(), idle.due(), idle.next_at()) == (UNLOAD, None, None)
    idle.work_begins()
    idle.unloaded()
    assert (idle.due(), idle.next_at()) == (None, None)


def test_a_worker_rests(tmp_path: Path) -> None:
    with Worker(tmp_path, "--keep", FAKE_ENGINE_REST="0.2") as worker, worker.raw() as client:
        eventually(lambda: worker.trace == ["loaded", "rested"], "it rests")
        client.restore("a", "faces=1")
        assert client.receive_final()[0].type == "result"
        eventually(lambda: worker.trace[2:] == ["face 1", "rested"], "and again")


def test_resting_gives_planes_back_and_changes_nothing() -> None:
    architecture = tiny(256)
    net = load_gpen(random_state(architecture))
    network = FaceNetwork(lambda device, precision: net, "cpu")
    face = faces(architecture)
    before = net(face)
    planes = net.fast.planes  # type: ignore[union-attr]
    assert len(planes) > 0
    network.rest()
    assert len(planes) == 0
    assert torch.equal(net(face), before)
    network.rest()
    FaceNetwork(lambda device, precision: lambda x: x, "cpu", size=64).rest()
