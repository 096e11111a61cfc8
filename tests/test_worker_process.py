"""The worker's life as a user sees it: started when needed, found, lost, restarted, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from face_restore_shared import connection, paths
from face_restore_shared.errors import ConnectionFileError, FaceRestoreError
from face_restore_shared.schema import DetectOptions, Progress, RestoreOptions
from face_restore_shared.wire import ProtocolMismatch
from face_restore_worker.client import launch
from face_restore_worker.client.client import WorkerClient
from face_restore_worker.client.errors import (
    WorkerLost,
    WorkerNotAnswering,
    WorkerNotRunning,
    WorkerStartFailed,
)
from face_restore_worker.client.session import WorkerSession, restore_with_retry
from worker_process import FAKE, eventually

PICTURE = np.zeros((40, 30, 3), np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own; whatever worker is left there is ended."""
    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    monkeypatch.setenv("FAKE_ENGINE_TRACE", str(tmp_path / "trace"))
    yield tmp_path
    left = launch.find() if paths.connection_file().exists() else None
    if left is not None:
        os.kill(left.pid, signal.SIGCONT)
        launch.kill(left)


def ensure(**more: object) -> connection.Connection:
    return launch.ensure_worker(command=FAKE, **more)  # type: ignore[arg-type]


def gone(found: connection.Connection) -> bool:
    return not launch.process_alive(found)


# -- starting -----------------------------------------------------------------------------------


def test_started_once_and_found_again(home: Path) -> None:
    with pytest.raises(WorkerNotRunning):
        launch.ensure_worker(start=False)
    started: list[str] = []
    first = ensure(on_start=lambda: started.append("yes"))
    assert ensure(on_start=lambda: started.append("again")) == first
    assert started == ["yes"]
    status = launch.status()
    assert status is not None
    assert status.pid == first.pid
    process = psutil.Process(first.pid)
    assert os.getsid(first.pid) == first.pid != os.getsid(0)
    assert process.cwd() == str(Path.home())
    assert {Path(f"/proc/{first.pid}/fd/{n}").resolve() for n in (1, 2)} == {paths.output_file()}
    assert launch.stop() is True
    assert gone(first)
    assert launch.stop() is False
    assert launch.status() is None


def test_many_clients_at_once_share_one_worker() -> None:
    found: list[connection.Connection] = []
    threads = [threading.Thread(target=lambda: found.append(ensure())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({c.pid for c in found}) == 1


def test_a_failing_start_shows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE_CRASH", "1")
    with pytest.raises(WorkerStartFailed) as caught:
        ensure()
    assert "this worker cannot start" in caught.value.message
    assert "status 1" in caught.value.message
    assert str(paths.output_file().parent) in caught.value.hint
    monkeypatch.delenv("FAKE_ENGINE_CRASH")
    assert ensure().pid


def test_a_start_that_hangs_is_given_up() -> None:
    with pytest.raises(WorkerStartFailed, match="not ready within"):
        launch.ensure_worker(
            command=[sys.executable, "-c", "import time; time.sleep(5)"], timeout=0.5
        )
    with pytest.raises(WorkerStartFailed, match="could not be started"):
        launch.ensure_worker(command=["/no/such/program"])


def test_a_dead_workers_file_is_no_hindrance() -> None:
    first = ensure()
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: gone(first), "it is dead")
    assert paths.connection_file().exists()
    assert launch.status() is None
    second = ensure()
    assert second.pid != first.pid
    assert second.token != first.token


def test_a_file_of_a_process_number_used_again_is_stale() -> None:
    first = ensure()
    launch.stop()
    mine = connection.Connection(
        first.endpoint, first.token, os.getpid(), 1, "0", first.started - 1e6, ""
    )
    connection.write(paths.connection_file(), mine)
    assert launch.find() is None
    assert ensure().pid != os.getpid()


def test_a_file_that_cannot_be_trusted_is_refused() -> None:
    ensure()
    paths.connection_file().chmod(0o644)
    with pytest.raises(ConnectionFileError, match="other users"):
        ensure()
    paths.connection_file().chmod(0o600)


def test_a_lost_connection_file_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE_UPKEEP", "0.5")
    first = ensure()
    paths.connection_file().unlink()
    assert ensure() == first  # a start meanwhile finds the lock held and waits for the file
    paths.connection_file().chmod(0o644)

    def mended() -> bool:
        return paths.connection_file().stat().st_mode & 0o077 == 0

    eventually(mended, "private again")
    assert launch.find() == first


def test_a_restart_replaces_a_worker_whose_file_cannot_be_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its token may be known to others: it must not be the one that runs afterwards."""
    monkeypatch.setenv("FAKE_ENGINE_UPKEEP", "0.5")
    monkeypatch.setattr(launch, "_command", lambda: FAKE)
    first = ensure()
    paths.connection_file().chmod(0o644)
    second = launch.restart()
    assert (second.pid, second.token) != (first.pid, first.token)
    eventually(lambda: gone(first), "the first ends")
    assert launch.find() == second


def test_a_worker_of_another_protocol_is_named() -> None:
    first = ensure()
    values = {**first.public(), "token": first.token, "protocol": 99}
    connection.write(paths.connection_file(), connection.Connection(**values))
    with pytest.raises(ProtocolMismatch, match="update it"):
        ensure()
    connection.write(paths.connection_file(), first)


def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONHOME", "GIMP3_PLUGINDIR", "GI_TYPELIB_PATH", "LD_PRELOAD", "APPDIR"):
        monkeypatch.setenv(name, "/bundle")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/bundle/lib")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    env = launch.environment()
    assert not {"PYTHONHOME", "GI_TYPELIB_PATH", "LD_PRELOAD", "LD_LIBRARY_PATH"} & set(env)
    assert env["CUDA_VISIBLE_DEVICES"] == "0"
    for name in ("APPDIR", "GIMP3_PLUGINDIR"):
        monkeypatch.delenv(name)
    assert launch.environment()["LD_LIBRARY_PATH"] == "/bundle/lib"


# -- stopping -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_frozen_worker_is_named_and_can_be_replaced() -> None:
    first = ensure()
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(WorkerNotAnswering, match=str(first.pid)):
        ensure(timeout=1)
    assert launch.stop(timeout=2) is True
    assert gone(first)
    assert ensure().pid != first.pid


def test_stopping_in_the_middle_of_a_job() -> None:
    found = ensure()
    errors: list[FaceRestoreError] = []

    def work() -> None:
        with WorkerClient.connect(found) as client:
            try:
                client.restore(PICTURE, restore=RestoreOptions(model="faces=99;delay=1"))
            except FaceRestoreError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: (s := launch.status()) and s.state == "busy", "the job runs")
    begin = time.monotonic()
    assert launch.stop() is True
    print(f"stopped in the middle of a job within {time.monotonic() - begin:.2f} s")
    thread.join()
    assert [error.code for error in errors] == ["stopping"]
    assert not paths.connection_file().exists()


# -- lost and found -------------------------------------------------------------------------------


def kill_once(number: int, gate: Path) -> tuple[list[int], object]:
    """A listener that sends a signal to the worker at its first "restoring", then makes `gate`."""
    killed: list[int] = []

    def listen(progress: Progress) -> None:
        if progress.stage == "restoring" and not killed:
            found = launch.find()
            assert found is not None
            killed.append(found.pid)
            os.kill(found.pid, number)
            gate.touch()

    return killed, listen


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)],
)
def test_a_worker_killed_in_the_middle_is_replaced_once(number: int, home: Path) -> None:
    events: list[str] = []
    killed, listen = kill_once(number, home / "gate")
    script = f"faces=3;delay=0.1;until={home / 'gate'}"
    with WorkerSession(command=FAKE, on_event=events.append) as session:
        outcome = session.restore(PICTURE, restore=RestoreOptions(model=script), on_progress=listen)
        assert len(outcome.patches) == 3
        assert session.client().connection.pid != killed[0]
        eventually(lambda: not psutil.pid_exists(killed[0]) or gone_pid(killed[0]), "it is gone")
    assert any("Starting it again, once." in event for event in events)


def gone_pid(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_worker_lost_twice_is_an_error(home: Path) -> None:
    def listen(progress: Progress) -> None:
        if progress.stage == "restoring":
            found = launch.find()
            if found is not None:
                os.kill(found.pid, signal.SIGKILL)

    with WorkerSession(command=FAKE) as session:
        with pytest.raises(WorkerLost, match="twice"):
            script = f"faces=3;until={home / 'never'}"
            session.restore(PICTURE, restore=RestoreOptions(model=script), on_progress=listen)
        # The session can be used again.
        assert len(session.restore(PICTURE).patches) == 1


def test_a_worker_that_ended_between_pictures_is_started_quietly() -> None:
    events: list[str] = []
    with WorkerSession(command=FAKE, on_event=events.append) as session:
        session.restore(PICTURE)
        launch.stop()
        assert len(session.restore(PICTURE).patches) == 1
        assert len(session.detect(PICTURE).faces) == 1
    assert events == ["Starting the worker.", "Starting the worker."]


def test_without_leave_to_start_a_lost_worker_is_an_error(home: Path) -> None:
    found = ensure()
    killed, listen = kill_once(signal.SIGKILL, home / "gate")
    script = f"faces=3;delay=0.1;until={home / 'gate'}"
    with WorkerSession(start=False) as session, pytest.raises(WorkerLost):
        session.restore(PICTURE, restore=RestoreOptions(model=script), on_progress=listen)
    assert killed == [found.pid]


def test_an_error_of_the_job_is_not_tried_again(home: Path) -> None:
    with WorkerSession(command=FAKE) as session, pytest.raises(FaceRestoreError) as caught:
        session.restore(PICTURE, restore=RestoreOptions(model="faces=2;fail=checkpoint"))
    assert caught.value.code == "checkpoint"
    assert (home / "trace").read_text().count("face 1") == 1


# -- the real thing -------------------------------------------------------------------------------


def test_the_real_worker_restores_the_astronaut(home: Path) -> None:
    from face_restore_worker import composite

    data = pytest.importorskip("skimage.data")
    picture = data.astronaut()
    stages: list[str] = []
    events: list[str] = []
    with WorkerSession(options=["--threads", "1"], on_event=events.append) as session:
        outcome = session.restore(picture, on_progress=lambda p: stages.append(p.stage))
        assert outcome.model_name == "built-in, not GPEN"
        assert any("download gpen-bfr-2048" in note for note in outcome.notes)
        (patch,) = outcome.patches
        assert 150 < patch.x < 205
        assert 20 < patch.y < 100
        again = session.restore(picture, faces=outcome.faces)
        assert np.array_equal(again.patches[0].rgb, patch.rgb)  # the same bytes
        found = session.detect(picture, options=DetectOptions(previews=48))
        assert len(found.faces) == len(found.previews) == 1
        status = session.client().status()
        assert status.models_loaded == ("built-in, not GPEN",)
        assert status.jobs_done == 3
        assert {m.id for m in session.client().models()} >= {"gpen-bfr-2048", "builtin-restorer"}
        # An error of the pipeline arrives as it is, and the worker lives on.
        with pytest.raises(FaceRestoreError) as caught:
            session.restore(picture, restore=RestoreOptions(model="gpen-bfr-512"))
        assert caught.value.code == "model-missing"
    assert {"detecting", "aligning", "restoring", "pasting", "sending"} <= set(stages)
    restored = composite(picture, outcome.patches)
    assert restored.dtype == picture.dtype
    assert (restored != picture).any()
    assert launch.stop()
    assert events == ["Starting the worker."]
    assert "Traceback" not in paths.log_file().read_text()


def test_restore_with_retry_uses_a_session(home: Path) -> None:
    with WorkerSession(command=FAKE) as session:
        killed, listen = kill_once(signal.SIGKILL, home / "gate")
        outcome = restore_with_retry(
            PICTURE,
            session=session,
            restore=RestoreOptions(model=f"faces=2;delay=0.1;until={home / 'gate'}"),
            on_progress=listen,
        )
    assert len(outcome.patches) == 2
    assert killed


def test_the_foreground_worker_ends_on_ctrl_c(home: Path) -> None:
    process = subprocess.Popen(FAKE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    found = eventually(lambda: connection.read(paths.connection_file()), "it listens")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"Stopping: SIGINT" in said
    assert found.token.encode() not in said
