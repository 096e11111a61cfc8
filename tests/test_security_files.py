"""What SECURITY.md promises about the worker's files: private, and none of others is trusted."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from face_restore_shared import connection
from other_user import NOBODY, as_nobody, public_folder, root_only
from worker_process import FAKE, Worker, eventually, state, untouched_worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with public_folder() as folder, untouched_worker(folder) as running:
        yield running


@root_only
def test_another_user_gets_nothing(worker: Worker) -> None:
    """Neither the files, nor anything on the port, nor the process's environment."""
    opened = "print([os.access(p, os.R_OK | os.X_OK) for p in sys.argv[1:]])"
    state_folder = worker.home / "state"
    done = as_nobody(opened, worker.home, state_folder, worker.file, worker.log_file)
    assert done.stdout.strip() == "[True, False, False, False]", done
    done = as_nobody("print(open(f'/proc/{sys.argv[1]}/environ').read())", worker.process.pid)
    assert "PermissionError" in done.stderr
    ask = """
s = zmq.Context().socket(zmq.DEALER)
s.linger = 0
s.plain_username, s.plain_password = b"face-restore", b"0" * 64
s.connect(sys.argv[1])
s.send(wire.encode_header("shutdown", "1", {}))
print(s.poll(500))
"""
    done = as_nobody(ask, worker.connection.endpoint)
    assert done.stdout.strip() == "0", done
    with worker.raw() as client:
        assert state(client) == "ready"


def _sample(**changes: Any) -> str:
    values = {
        "endpoint": "tcp://127.0.0.1:4711",
        "token": "ab" * 32,
        "pid": 1,
        "protocol": 1,
        "version": "1",
        "started": 1.0,
        "log": "",
        **changes,
    }
    return json.dumps(values)


@root_only
def test_a_file_of_somebody_else_is_refused() -> None:
    code = "from pathlib import Path\nprint(connection.read(Path(sys.argv[1])))"
    with public_folder() as folder:
        file = folder / "worker.json"
        file.write_text(_sample())
        file.chmod(0o644)
        done = as_nobody(code, file)
        assert "belongs to another user" in done.stderr, done
        file.chmod(0o600)
        os.chown(file, NOBODY, NOBODY)
        with pytest.raises(connection.ConnectionFileError, match="belongs to another user"):
            connection.read(file)


def _refused_to_start(home: Path, why: str) -> None:
    done = subprocess.run(
        [*FAKE, "--quiet"],
        env={**os.environ, "FACE_RESTORE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1 and why in done.stderr, done
    assert "Traceback" not in done.stderr


@root_only
def test_a_worker_does_not_use_a_folder_of_somebody_else(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o777)
    os.chown(folder, NOBODY, NOBODY)
    _refused_to_start(tmp_path, "belongs to another user")
    assert list(folder.iterdir()) == []


def test_a_worker_does_not_follow_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "state").symlink_to(elsewhere)
    _refused_to_start(tmp_path, "symbolic link")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["worker.lock", "worker.json"])
def test_links_inside_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "home" / "state"
    folder.mkdir(parents=True, mode=0o700)
    (folder / name).symlink_to(victim)
    if name == "worker.lock":
        _refused_to_start(tmp_path / "home", "cannot be taken")
    else:
        with pytest.raises(connection.ConnectionFileError, match="symbolic link"):
            connection.read(folder / name)
        worker = Worker(tmp_path / "home")
        try:
            eventually(lambda: not worker.file.is_symlink() and worker.file.exists(), "a new file")
        finally:
            worker.end()
    assert victim.read_text() == "mine"


def test_open_folders_are_closed(tmp_path: Path) -> None:
    """A folder others could enter, and a umask that lets everybody in."""
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    before = os.umask(0)
    try:
        with Worker(tmp_path) as worker, worker.raw() as client:
            assert state(client)
            modes = {path: path.stat().st_mode for path in (tmp_path / "state").rglob("*")}
            modes[tmp_path / "state"] = (tmp_path / "state").stat().st_mode
    finally:
        os.umask(before)
    for path, mode in modes.items():
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path


def test_modes_of_everything_a_command_leaves(worker: Worker) -> None:
    paths: Sequence[Path] = list((worker.home / "state").rglob("*"))
    assert len(paths) >= 3
    for path in paths:
        assert path.stat().st_mode & 0o077 == 0, path
