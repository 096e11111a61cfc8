"""Model files that go bad under a running worker, and too little memory; with torch's engine."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import RestoreOptions
from face_restore_worker.client.client import WorkerClient
from face_restore_worker.pipeline.types import RestoreOutcome
from gpen_factory import random_state, tiny
from harness import FaultHome, Tell, eventually
from safetensors.torch import save_file
from tiny_models import detector_state

STATE = random_state(tiny(32))
FACE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultHome]:
    """A home with a real worker."""
    made = FaultHome(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.variables.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "face_restore_worker.server", "--quiet", "--threads", "1"]
        process = subprocess.Popen(command, env=made.environment(OMP_NUM_THREADS="1"))
        made.processes.append(process)
        eventually(lambda: made.listening() == process.pid, "the worker listens")
        yield made
        made.end_all()


@pytest.fixture
def client(home: FaultHome) -> Iterator[WorkerClient]:
    with WorkerClient.connect(timeout=120) as connected:
        yield connected


def restore(client: WorkerClient, model: object, picture: object = FACE) -> RestoreOutcome:
    options = RestoreOptions(model=str(model), aligned=True)
    return client.restore(picture, restore=options)  # type: ignore[arg-type]


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def torch_bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def many_keys(whole: bytes) -> bytes:
    """A safetensors header that claims far more than the file holds."""
    text = b"{" + b",".join(b'"k%d":{}' % n for n in range(200_000)) + b"}"
    return len(text).to_bytes(8, "little") + text + whole[-64:]


def zip_bomb(whole: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(io.BytesIO(torch_bytes(STATE))) as old:
            for entry in old.infolist():
                archive.writestr(entry.filename, old.read(entry))
        archive.writestr("archive/data/999", bytes(200_000_000))
    return stream.getvalue()


def damages(folder: Path) -> dict[str, Callable[[bytes], bytes]]:
    """Name of a kind of damage -> what it makes of a whole safetensors file."""
    first = next(iter(STATE))
    with_nan = {**STATE, first: torch.full_like(STATE[first], float("nan"))}
    negative = b'{"a":{"dtype":"F32","shape":[-8],"data_offsets":[0,-32]}}'
    return {
        "empty": lambda whole: b"",
        "truncated": lambda whole: whole[: len(whole) // 2],
        "zeros": lambda whole: bytes(len(whole)),
        "header overwritten": lambda whole: whole[:8] + b"\xff" * 64 + whole[72:],
        "negative sizes": lambda whole: len(negative).to_bytes(8, "little") + negative,
        "header of 10^18 bytes": lambda whole: (10**18).to_bytes(8, "little") + whole[8:],
        "200,000 keys": many_keys,
        "NaN weights": lambda whole: torch_bytes(with_nan),
        "pickle bomb": lambda whole: torch_bytes({**STATE, "x": Bomb(folder / "exploded")}),
        "zip bomb": zip_bomb,
        "another network": lambda whole: torch_bytes(detector_state()),
        "a web page": lambda whole: b"<!doctype html><html>Please log in</html>" * 9,
    }


@pytest.mark.slow
def test_bad_models_and_too_little_memory(
    home: FaultHome, client: WorkerClient, tmp_path: Path, tell: Tell
) -> None:
    """One test, because torch's start takes seconds."""
    bad_files(home, client, tmp_path)
    tell("bad model file, named and written over the one in use", 24, "refused by name; stays")
    codes = too_little_memory(home, client)
    tell("address space used up (CPU)", len(codes), ", ".join(codes) + "; the worker stays")


def bad_files(home: FaultHome, client: WorkerClient, tmp_path: Path) -> None:
    """A model file that goes bad in every way."""
    used, other = tmp_path / "used.safetensors", tmp_path / "other.safetensors"
    save_file(STATE, used)
    whole = used.read_bytes()
    before = restore(client, used).patches[0].rgb
    worker = psutil.Process(home.listening())
    rss = worker.memory_info().rss
    for name, damage in damages(tmp_path).items():
        bad = damage(whole)
        # As a file the user names: refused by name.
        other.write_bytes(bad)
        with pytest.raises(FaceRestoreError) as caught:
            restore(client, other)
        assert str(other) in caught.value.message, name
        assert caught.value.code.startswith(("checkpoint", "not-", "wrong-")), caught.value.code
        # Written over the model in use: that stays in use, and the user is told.
        with used.open("r+b") as file:
            file.truncate(0)
            file.write(bad)
        outcome = restore(client, used)
        assert np.array_equal(outcome.patches[0].rgb, before), name
        assert any(str(used) in note and "still used" in note for note in outcome.notes), name
        assert worker.memory_info().rss < rss + 150e6, name
    assert not (tmp_path / "exploded").exists()
    used.write_bytes(whole)
    outcome = restore(client, used)
    assert not any("still used" in note for note in outcome.notes)
    assert np.array_equal(outcome.patches[0].rgb, before)
    assert worker.is_running()


def too_little_memory(home: FaultHome, client: WorkerClient) -> list[str]:
    """Jobs that need more than the address space has room for; what became of them."""
    pid = home.listening()
    assert pid is not None
    large = np.zeros((3000, 4000, 3), np.float32)
    restore(client, "auto", large[:64, :64])
    codes = []
    for room in (20, 150):  # MB: the limit meets other parts of the job each time
        client.restore(large[:64, :64])
        now = psutil.Process(pid).memory_info().vms
        limit = now + large.nbytes + (room << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            client.restore(large)
            codes.append("answer")
        except FaceRestoreError as error:
            codes.append(error.code)
            assert error.hint
        finally:
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert set(codes) <= {"out-of-memory", "answer"}, codes
    assert "out-of-memory" in codes
    assert client.status().pid == pid
    assert client.restore(FACE).model_name == "built-in, not GPEN"
    return codes
