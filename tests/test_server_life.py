"""A worker from start to end: idle, stopped, killed, two at once, its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from face_restore_shared import connection
from face_restore_shared.schema import (
    StatusReply,
)
from face_restore_worker.server.owner import Owner
from worker_process import FAKE, HANG_SECONDS, Worker, eventually, start_job, state


def test_idle_models_are_let_go_and_come_back(tmp_path: Path) -> None:
    with Worker(tmp_path, "--idle", "0.5") as worker, worker.raw() as client:
        eventually(lambda: "unloaded" in worker.trace, "the models are let go")
        eventually(lambda: not client.ask("status").body["models_loaded"], "and the status says so")
        client.restore("a", "faces=1")
        assert client.receive_final()[0].type == "result"
        assert worker.trace.count("loaded") == 2
        eventually(lambda: worker.trace.count("unloaded") == 2, "and once more")


def test_kept_models_stay_until_asked(tmp_path: Path) -> None:
    with Worker(tmp_path, "--keep", "--idle", "0") as worker, worker.raw() as client:
        eventually(lambda: state(client) == "ready", "ready")
        time.sleep(0.5)
        status = StatusReply.from_wire(client.ask("status").body)
        assert (status.models_loaded, status.idle_unload) == (("Fake",), None)
        assert client.ask("unload").body == {"when": "now"}
        assert client.ask("status").body["models_loaded"] == []
        gate = tmp_path / "gate"
        start_job(client, worker, "a", f"faces=1;until={gate}")
        assert client.ask("unload").body == {"when": "later"}
        gate.touch()
        assert client.receive_final()[0].type == "result"
        eventually(lambda: worker.trace.count("unloaded") == 2, "unloaded after the job")


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM", "SIGINT"])
def test_stopping_answers_open_jobs_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    with Worker(tmp_path) as worker, worker.raw() as client:
        start_job(client, worker, "a", f"faces=9;until={tmp_path / 'never'}")
        client.restore("b")
        while client.receive_of(("accepted",)).id != "b":
            pass
        if how == "shutdown":
            assert client.ask("shutdown").type == "ok"
        else:
            worker.process.send_signal(getattr(signal, how))
        codes = {}
        while len(codes) < 2:
            header, _ = client.receive()
            if header.type == "error":
                codes[header.id] = header.body["code"]
        assert codes == {"a": "stopping", "b": "stopping"}
        assert worker.process.wait(120) == 0
        assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["logs", "worker.lock"]


def test_a_model_that_does_not_load_is_a_problem_not_the_end(tmp_path: Path) -> None:
    with Worker(tmp_path, FAKE_ENGINE_START_FAILS="1") as worker, worker.raw() as client:
        eventually(lambda: state(client) == "ready", "it tried")
        assert client.ask("status").body["problem"] == "The model is broken. Get it again."
        client.restore("a")
        body = client.receive_final()[0].body
        assert (body["code"], body["hint"]) == ("checkpoint", "Get it again.")


def test_a_long_problem_is_no_hindrance(tmp_path: Path) -> None:
    words = {"FAKE_ENGINE_START_FAILS": "1", "FAKE_ENGINE_WORDS": "1500"}
    with Worker(tmp_path, **words) as worker, worker.raw() as client:
        eventually(lambda: state(client) == "ready", "it tried")
        assert client.ask("status").body["problem"].startswith("The model is broken. x x")


def test_status_is_there_while_models_load(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Worker(tmp_path, FAKE_ENGINE_START_UNTIL=str(gate)) as worker, worker.raw() as client:
        eventually(lambda: state(client) == "loading", "it loads")
        client.restore("a")
        gate.touch()
        assert client.receive_final()[0].type == "result"


def test_two_at_once_exactly_one_stays(tmp_path: Path) -> None:
    for attempt in range(3):
        worker = Worker(tmp_path)
        rivals = [worker.process, *(worker.spawn() for _ in range(2))]
        eventually(lambda r=rivals: sum(p.poll() is None for p in r) == 1, f"one ({attempt})")
        (winner,) = [p for p in rivals if p.poll() is None]
        for process in rivals:
            if process is not winner:
                assert process.returncode == 0
                said = process.stdout.read().decode()
                found = json.loads(said.partition(": ")[2])
                assert found["pid"] == winner.pid
                assert "token" not in said
                process.stdout.close()
        worker.process = winner
        assert worker.connection.pid == winner.pid
        with worker.raw() as client:
            assert client.ask("hello").body["pid"] == winner.pid
        worker.end()
        assert not worker.file.exists()


def test_what_a_killed_worker_left_is_cleared(tmp_path: Path) -> None:
    first = Worker(tmp_path)
    eventually(lambda: first.file.exists(), "it runs")
    old = first.connection
    first.process.kill()
    first.process.wait()
    first.end()
    first.file.with_name("worker.json.xyz.tmp").write_text("half")
    with Worker(tmp_path) as second:
        eventually(lambda: connection.read(second.file) not in (None, old), "a new file")
        with second.raw() as client:
            assert client.ask("hello").body["pid"] == second.process.pid
        assert not list(second.file.parent.glob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_home_that_is_no_unicode(tmp_path: Path) -> None:
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b"/h\xff"))
    home.mkdir()
    with Worker(home) as worker, worker.raw() as client:
        status = StatusReply.from_wire(client.ask("status").body)
        assert status.log.endswith("worker.log") and status.models_dir.endswith("models")


def test_the_log_rotates(tmp_path: Path) -> None:
    code = (
        "import sys, logging; from pathlib import Path\n"
        "from face_restore_worker.server.logs import set_up\n"
        "log = set_up(Path(sys.argv[1]), 'info', also_stderr=False)\n"
        "for n in range(50000): log.info('line %d %s', n, 'x' * 60)\n"
    )
    file = tmp_path / "logs" / "worker.log"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    sizes = {path.name: path.stat().st_size for path in file.parent.iterdir()}
    assert sorted(sizes) == ["worker.log", "worker.log.1", "worker.log.2"]
    assert max(sizes.values()) <= 1_000_000


def test_a_folder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in the way")
    env = {**os.environ, "FACE_RESTORE_HOME": str(tmp_path)}
    result = subprocess.run(FAKE, env=env, capture_output=True, text=True)
    assert result.returncode == 1
    assert "not a folder" in result.stderr


def test_the_server_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; import face_restore_worker.server.process, face_restore_worker.server.loop\n"
        "import face_restore_worker.client.launch, face_restore_worker.client.session\n"
        "print([m for m in ('torch', 'numpy', 'cv2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_worker_for_a_process_ends_with_it(tmp_path: Path) -> None:
    owner = subprocess.Popen(["sleep", "600"])
    with Worker(tmp_path, f"--for-process={owner.pid}", FAKE_ENGINE_UPKEEP="0.05") as worker:
        with worker.raw() as client:
            assert state(client) in ("starting", "loading", "ready")
        owner.kill()  # not waited for: a zombie until the worker has ended
        assert worker.process.wait(HANG_SECONDS) == 0
        assert not worker.file.exists()
        assert f"process {owner.pid}, for which it ran, has ended" in worker.log
    owner.wait()
    assert Owner(owner.pid).gone() and not Owner(os.getpid()).gone()


@pytest.mark.skipif(os.name != "posix", reason="Windows does not remove open files")
def test_a_worker_whose_folder_was_removed_stays_the_only_one(tmp_path: Path) -> None:
    """It takes its place again; where another was quicker, it ends instead of quarrelling."""
    import shutil

    from face_restore_shared.connection import Connection
    from face_restore_worker.server.lock import InstanceLock
    from face_restore_worker.server.process import _keep_place

    folder = tmp_path / "state"
    file = folder / "worker.json"
    first, second = InstanceLock(folder / "lock"), InstanceLock(folder / "lock")
    one, two = (
        Connection("tcp://127.0.0.1:1", digit * 64, os.getpid(), 1, "1", 0.0, "") for digit in "12"
    )
    reasons: list[str] = []
    assert first.acquire()
    shutil.rmtree(folder)
    _keep_place(file, one, first, reasons.append)
    assert connection.read(file) == one and not second.acquire()

    shutil.rmtree(folder)
    assert second.acquire()
    _keep_place(file, one, first, reasons.append)  # the other has not said yet where it listens
    assert reasons == [] and connection.read(file) is None
    connection.write(file, two)
    _keep_place(file, one, first, reasons.append)
    assert len(reasons) == 1 and "taken its place" in reasons[0]
    _keep_place(file, two, second, reasons.append)
    assert connection.read(file) == two and len(reasons) == 1
    first.release()
    second.release()
