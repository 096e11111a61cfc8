"""The plug-in's way to the worker, without GIMP: real workers, the project's own ZMTP client."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import plugin_path
import pytest
from face_restore_shared import spawning, wire
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import DetectOptions, RestoreOptions
from face_restore_shared.zmtp import PeerLost
from face_restore_worker.models.store import GET_THE_REAL_ONE
from face_restore_worker.pipeline.restore import NO_FACE
from restore_faces import errors, job, progress, sending, starting, status
from restore_faces.bundled import Paths, read_paths
from restore_faces.job import Picture, Session
from restore_faces.options import Settings
from restore_faces.sending import Strips
from restore_faces.worker import Worker
from worker_process import FAKE, eventually
from worker_process import Worker as FakeWorker

PICTURE = Picture(64, 48, 3, "uint8", bytes(range(256)) * 36)


def quiet(*_arguments: object) -> None:
    pass


def plugin_worker(home: Path, command: list[str] | None = None) -> Worker:
    return Worker(Paths(tuple(command or ()), home / "state"))


def test_faces_come_back(tmp_path: Path) -> None:
    told: list[str] = []
    with FakeWorker(tmp_path), Session(plugin_worker(tmp_path), lambda *a: told.append(a[0])) as s:
        done = s.restore(PICTURE, DetectOptions(), RestoreOptions(model="faces=2"))
    assert len(done.patches) == 2 and done.found == 2
    for patch in done.patches:
        assert len(patch.rgb) == 3 * patch.rect.width * patch.rect.height
        assert len(patch.mask) == patch.rect.width * patch.rect.height
    assert told[0] == "sending-picture" and "restoring" in told


def strips_of(picture: Picture, sizes: list[int], fails: bool = False) -> Picture:
    """The same picture, read in pieces of these sizes and the rest."""

    def read() -> Iterator[bytes]:
        start = 0
        for size in [*sizes, len(picture.pixels)]:
            if fails and start:
                raise RuntimeError("the layer cannot be read")
            yield picture.pixels[start : start + size]
            start += size

    pixels = Strips(len(picture.pixels), read)
    return replace(picture, pixels=pixels, selection=bytes([255]) * (64 * 48))


@pytest.mark.parametrize("sizes", [[], [1], [3000, 3000, 1], [100] * 92])
def test_a_picture_read_while_it_is_sent_is_the_same(tmp_path: Path, sizes: list[int]) -> None:
    options = DetectOptions(), RestoreOptions(model="faces=2")
    with FakeWorker(tmp_path), Session(plugin_worker(tmp_path), quiet) as session:
        whole = session.restore(PICTURE, *options)
        strips = session.restore(strips_of(PICTURE, sizes), *options)
    assert [p.rgb for p in strips.patches] == [p.rgb for p in whole.patches]


def test_frames_are_cut_where_the_protocol_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CHUNK", 1000)
    data = bytes(range(250)) * 10
    pieces = iter([data[:700], data[700:2300], data[2300:]])
    frames = sending._frames(len(data), pieces)
    assert [frame.nbytes for frame in frames] == [1000, 1000, 500]
    assert [b"".join(frame.pieces) for frame in frames] == [
        data[:1000],
        data[1000:2000],
        data[2000:],
    ]


def test_a_layer_that_cannot_be_read_is_told_and_nothing_hangs(tmp_path: Path) -> None:
    options = DetectOptions(), RestoreOptions(model="faces=1")
    with FakeWorker(tmp_path):
        with Session(plugin_worker(tmp_path), quiet) as session, pytest.raises(RuntimeError):
            session.restore(strips_of(PICTURE, [5000], fails=True), *options)
        with Session(plugin_worker(tmp_path), quiet) as session:
            assert session.restore(PICTURE, *options).patches


def test_a_worker_lost_while_the_picture_is_sent(tmp_path: Path) -> None:
    """The reading ends, and the error is the lost worker's."""
    big = Picture(4096, 4096, 3, "uint8", bytes(3 * 4096 * 4096))
    with FakeWorker(tmp_path) as fake, Session(plugin_worker(tmp_path), quiet) as session:
        talk = session.open()

        def read() -> Iterator[bytes]:
            yield big.pixels[: 1 << 20]
            fake.process.kill()
            fake.process.wait()
            for start in range(1 << 20, len(big.pixels), 1 << 20):
                yield big.pixels[start : start + (1 << 20)]

        lost = replace(big, pixels=Strips(len(big.pixels), read))
        with pytest.raises(PeerLost):
            talk.restore(lost, DetectOptions(), RestoreOptions(), quiet)


def test_a_conversation_that_was_idle_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the plug-in reads a large layer it answers no heartbeat."""
    monkeypatch.setattr(job, "IDLE_SECONDS", 600.0)
    with FakeWorker(tmp_path), Session(plugin_worker(tmp_path), quiet) as session:
        first = session.open()
        assert session.open() is first
        monkeypatch.setattr(job, "IDLE_SECONDS", 0.0)
        assert session.open() is not first
        assert session.restore(PICTURE, DetectOptions(), RestoreOptions(model="faces=1")).patches


def test_an_error_of_the_worker_keeps_its_words(tmp_path: Path) -> None:
    with (
        FakeWorker(tmp_path),
        Session(plugin_worker(tmp_path), quiet) as session,
        pytest.raises(FaceRestoreError) as error,
    ):
        session.restore(
            PICTURE, DetectOptions(), RestoreOptions(model="faces=3;fail=out-of-memory")
        )
    assert error.value.code == "out-of-memory"
    text = errors.sentence(error.value, "/some/worker.log")
    assert error.value.message in text and text.endswith("/some/worker.log")
    assert "memory" in text


def test_a_worker_killed_in_the_middle_is_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    monkeypatch.setenv("FAKE_ENGINE_TRACE", str(tmp_path / "trace"))
    worker = plugin_worker(tmp_path, [*_python_of_the_checkout(), *FAKE[1:], "--quiet"])
    stages: list[str] = []
    first = FakeWorker(tmp_path)
    try:
        with first, Session(worker, lambda *a: stages.append(a[0])) as session:
            session.open()
            gate = tmp_path / "gate"
            killer = threading.Thread(target=_kill_when, args=(first, stages, signal.SIGKILL, gate))
            killer.start()
            done = session.restore(
                PICTURE, DetectOptions(), RestoreOptions(model=f"faces=3;until={gate}")
            )
            killer.join()
            assert len(done.patches) == 3
            assert stages.count("restarting") == 1
    finally:
        found = worker.find()
        if found is not None:
            os.kill(found.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_frozen_in_the_middle_is_told(tmp_path: Path) -> None:
    """It holds its lock, so no other can be started: the user is told how to restart it."""
    stages: list[str] = []
    with FakeWorker(tmp_path) as fake, Session(
        plugin_worker(tmp_path), lambda *a: stages.append(a[0])
    ) as session:  # fmt: skip
        session.open()
        gate = tmp_path / "gate"
        freezer = threading.Thread(target=_kill_when, args=(fake, stages, signal.SIGSTOP, gate))
        freezer.start()
        with pytest.raises(FaceRestoreError) as error:
            session.restore(PICTURE, DetectOptions(), RestoreOptions(model=f"until={gate}"))
        freezer.join()
    assert error.value.code == "worker-silent"
    text = errors.sentence(error.value, "/the/log")
    assert "face-restore worker restart" in text and "/the/log" in text


def _kill_when(worker: FakeWorker, stages: list[str], how: signal.Signals, gate: Path) -> None:
    """Send the signal while a face is restored, then let faces get done."""
    eventually(lambda: "restoring" in stages, "a face")
    os.kill(worker.process.pid, how)
    gate.touch()


def _python_of_the_checkout() -> list[str]:
    """The plug-in drops PYTHON* for its worker: the checkout's paths are given in the command."""
    paths = [str(plugin_path.ROOT / "worker"), str(plugin_path.ROOT / "shared")]
    code = (
        f"import sys, runpy; sys.path[:0] = {paths!r}; sys.argv.pop(0);"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-c", code]


def test_no_worker_and_no_way_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(FaceRestoreError) as error:
        plugin_worker(tmp_path).ensure(quiet)
    assert "face-restore gimp install" in str(error.value)
    assert "face-restore gimp install" in status.text(plugin_worker(tmp_path))
    able = status.text(plugin_worker(tmp_path, ["/bin/false"]))
    assert "it starts with the first restoration" in able


def test_in_a_sandbox_the_user_is_told_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATPAK_ID", "org.gimp.GIMP")
    monkeypatch.setattr(starting, "NOTICE_SECONDS", 0.5)
    assert "face-restore worker start" in status.line(None)
    stages: list[str] = []
    with pytest.raises(FaceRestoreError) as error:
        plugin_worker(tmp_path, ["/bin/false"]).ensure(stages.append)
    assert "Flatpak" in str(error.value) and "face-restore worker start" in str(error.value)
    assert "face-restore worker start" in progress.text(stages[-1])
    assert not list((tmp_path / "state").iterdir())  # a request left there would start one later


def test_in_a_sandbox_a_worker_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd's path unit does it: whoever watches the file takes it and starts the worker."""
    monkeypatch.setenv("SNAP_NAME", "gimp")
    request = tmp_path / "state" / "start-request"
    started: list[FakeWorker] = []

    def on_wait(stage: str) -> None:
        assert stage == "requested"
        if request.exists() and not started:
            request.unlink()
            started.append(FakeWorker(tmp_path))

    try:
        with plugin_worker(tmp_path, ["/bin/false"]).ensure(on_wait) as client:
            client.send([b"hello"])
    finally:
        started[0].end()
    assert not request.exists()


def test_a_worker_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", "echo torch is broken >&2; exit 3"]
    worker = plugin_worker(tmp_path, command)
    with pytest.raises(FaceRestoreError) as error:
        worker.ensure(quiet)
    assert "status 3" in str(error.value) and "torch is broken" in str(error.value)
    assert str(worker.output_file) in str(error.value)


def test_a_wrong_token_is_told(tmp_path: Path) -> None:
    with FakeWorker(tmp_path) as fake:
        worker = plugin_worker(tmp_path)
        values = json.loads(fake.file.read_text())
        fake.file.write_text(json.dumps({**values, "token": "0" * 64}))
        with pytest.raises(FaceRestoreError) as error:
            worker.connect()
        assert error.value.code == "wrong-token"
        assert "state: error" in status.text(worker) and "wrong-token" in status.text(worker)
        fake.file.write_text(json.dumps(values))


def test_a_file_of_a_dead_worker_is_no_worker(tmp_path: Path) -> None:
    with FakeWorker(tmp_path) as fake:
        kept = fake.file.read_bytes()
        fake.process.kill()
        fake.process.wait()
        fake.file.write_bytes(kept)
        assert plugin_worker(tmp_path).connect() is None
        assert "not running" in status.text(plugin_worker(tmp_path))


def test_the_status_text_of_a_running_worker(tmp_path: Path) -> None:
    with FakeWorker(tmp_path):
        text = status.text(plugin_worker(tmp_path))
        answer = status.query(plugin_worker(tmp_path))
    assert text.startswith("state: ") and "device: Fake" in text
    assert answer is not None
    choices = status.model_choices(answer[1])
    assert [ident for ident, _label in choices] == ["auto", "fake"]
    assert choices[1][1] != "Fake" and "Fake" in choices[1][1]  # marked as built in


def test_the_workers_environment_has_nothing_of_gimp(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "GIMP3_DIRECTORY", "GEGL_PATH", "GI_TYPELIB_PATH", "APPDIR"):
        monkeypatch.setenv(name, "/gimp")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/bundle")
    monkeypatch.setenv("KEPT_AS_IT_IS", "yes")
    monkeypatch.setenv("FACE_RESTORE_HOME", "here")  # the worker lives in another folder
    env = spawning.environment()
    assert "/gimp" not in env.values() and "LD_LIBRARY_PATH" not in env
    assert env["KEPT_AS_IT_IS"] == "yes"
    assert env["FACE_RESTORE_HOME"] == str(Path("here").absolute())


def test_settings_become_options() -> None:
    settings = Settings(threshold=40, faces="largest", softness=150, strength=30, model="x")
    detect, restore = settings.detect_options(), settings.restore_options()
    assert (detect.threshold, detect.only_largest) == (0.4, True)
    assert (restore.model, restore.mask_softness, restore.strength) == ("x", 1.5, 1.0)
    assert Settings().detect_options().threshold is None
    assert not Settings(faces="all").uses_selection


def test_a_broken_paths_file_is_told(tmp_path: Path) -> None:
    assert "missing" in read_paths(tmp_path).problem
    for text in ("{", "[]", '{"worker_command": "x"}', '{"worker_command": [], "state_dir": 3}'):
        (tmp_path / "face_restore_paths.json").write_text(text)
        assert read_paths(tmp_path).problem and not read_paths(tmp_path).worker_command
    (tmp_path / "face_restore_paths.json").write_text('{"worker_command": ["a", "b"]}')
    assert read_paths(tmp_path) == Paths(("a", "b"))


def test_progress_texts() -> None:
    assert progress.text("restoring", 2, 5) == "Restoring face 2 of 5"
    assert progress.text("some-new-stage", detail="words of the worker") == "words of the worker"
    assert progress.overall(0.5, 1, 2) == 0.75
    assert progress.overall(9.0, 0, 1) == 1.0


def test_no_face_names_what_limited_the_search() -> None:
    plain = errors.no_face("Photo", Settings(), in_selection=False)
    assert plain.message == 'No face was found in "Photo".' and "threshold" in plain.hint
    limited = errors.no_face("Photo", Settings(min_face=90, threshold=75.5), in_selection=True)
    assert 'in the selection on "Photo"' in limited.message
    for part in ("centre is selected", "90 pixels", "75.5 %"):
        assert part in limited.hint


def test_the_workers_notes_are_passed_on_but_what_is_said_already() -> None:
    kept = ["Face 3 was left alone: it lies outside the picture.", "The GPU ran out of memory."]
    assert errors.news([kept[0], NO_FACE, *kept, GET_THE_REAL_ONE]) == kept
