"""Starting: rivals, full and read-only disks, no locks, no inodes, other versions, wrong clocks."""

from __future__ import annotations

import collections
import fcntl
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import face_restore_worker
import pytest
from face_restore_shared import connection
from face_restore_worker.client import launch
from face_restore_worker.errors import ModelError
from face_restore_worker.models.store import ModelStore
from harness import FaultHome, Tell, eventually, parallel

SLOW = pytest.mark.slow
# Where the disk fails, what the user reads, and whether the worker runs all the same.
DISK = [
    ("open:ENOSPC:worker.lock", "worker.lock cannot be taken: No space left", False),
    ("open:EROFS:worker.lock", "worker.lock cannot be taken: Read-only file system", False),
    ("flock:ENOLCK:worker.lock", "worker.lock cannot be taken: No locks available", False),
    ("open:ENOSPC:worker.json.", "worker.json cannot be written: No space left", False),
    ("fsync:ENOSPC:worker.json", "worker.json cannot be written: No space left", False),
    ("fsync:EDQUOT:worker.json", "worker.json cannot be written: Disk quota exceeded", False),
    ("replace:EROFS:worker.json", "worker.json cannot be written: Read-only file system", False),
    ("open:ENOSPC:worker.log", "", True),
    ("write:ENOSPC:worker.lock", "", True),
]


def check_disk(home: FaultHome, rule: str, says: str, runs: bool) -> None:
    """Start a worker on a disk that fails there."""
    process = home.worker(ready=runs, FAULT_ERRNO=rule)
    if runs:
        home.check_next_job()
        home.stop_and_check_nothing_stays()
        return
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 1
    assert says in said and "FACE_RESTORE_HOME" in said and "Traceback" not in said, said
    assert not list(home.state.glob("worker.json*"))


def test_a_disk_that_fails_at_the_start(home: FaultHome, tell: Tell) -> None:
    for rule, says, runs in (DISK[0], DISK[2], DISK[4], DISK[7]):
        check_disk(home, rule, says, runs)
    tell("disk full, no inodes, no locks (NFS) at the start", 4, "a sentence, or it runs without")


@pytest.mark.long
@pytest.mark.parametrize(("rule", "says", "runs"), DISK)
def test_every_disk_fault_at_the_start(
    home: FaultHome, tell: Tell, rule: str, says: str, runs: bool
) -> None:
    check_disk(home, rule, says, runs)
    tell(f"at the start: {rule}", 1, "it runs without" if runs else f"“{says}”")
    if not runs:  # and through the command line
        done = home.run_cli("worker", "start", FAULT_ERRNO=rule)
        assert done.returncode == 3, done.stderr
        assert says in done.stderr and "Traceback" not in done.stderr
    done = home.run_cli("worker", "start")
    assert done.returncode == 0, done.stderr
    home.stop_and_check_nothing_stays()


def rivals(home: FaultHome, trials: int) -> None:
    """Start three workers at once, again and again: exactly one stays and answers."""
    for _ in range(trials):
        processes = [home.worker(ready=False) for _ in range(3)]
        eventually(lambda p=processes: sum(q.poll() is None for q in p) == 1, "one stays")
        (winner,) = [process for process in processes if process.poll() is None]
        assert [p.returncode for p in processes if p is not winner] == [0, 0]
        assert home.listening() == winner.pid
        home.check_next_job()
        assert home.listening() == winner.pid
        winner.terminate()
        assert winner.wait(120) == 0
        assert not home.file.exists()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fifty_starts_at_once(home: FaultHome, tell: Tell) -> None:
    rivals(home, 50)
    home.stop_and_check_nothing_stays()
    tell("three workers started at once", 50, "exactly one stayed each time")


@pytest.mark.slow
def test_commands_at_once_share_one_worker(home: FaultHome, tell: Tell) -> None:
    source = home.picture()

    def one(number: int) -> subprocess.CompletedProcess[str]:
        return home.run_cli("restore", source, "-o", home.folder / f"{number}.png")

    done = parallel([lambda n=n: one(n) for n in range(6)])
    assert [d.returncode for d in done] == [0] * 6, [d.stderr for d in done]
    assert home.log.count(", process ") == 1
    home.stop_and_check_nothing_stays()
    tell("six commands at once, no worker yet", 6, "one worker, six results")


def test_a_rival_that_dies_is_replaced(home: FaultHome, tell: Tell) -> None:
    """A start that made way for another worker takes over when that one dies."""
    first = home.worker(ready=False, FAULT_HOLD="locked", FAULT_SECONDS="600")
    eventually(lambda: "held locked" in home.trace, "it has the lock")
    command = home.cli("worker", "start")
    eventually(lambda: len(home.our_processes()) >= 3, "the command has started another")
    first.kill()
    assert command.wait(120) == 0
    assert home.listening() not in (None, first.pid)
    tell("killed while another start waits for it", 1, "the other takes over")


@pytest.mark.parametrize(
    ("version", "says"),
    [("2", "update it"), pytest.param("0", "The worker is older: update it", marks=SLOW)],
)
def test_other_versions_get_a_sentence(
    home: FaultHome, tell: Tell, version: str, says: str
) -> None:
    worker = home.worker(FAULT_PROTOCOL=version)
    done = home.run_cli("restore", home.picture(), "-o", home.folder / "out.png")
    assert done.returncode == 3
    assert says in done.stderr and f"version {version}" in done.stderr
    assert "Traceback" not in done.stderr
    # The same when only the messages tell.
    values = json.loads(home.file.read_text()) | {"protocol": 1}
    home.file.write_text(json.dumps(values))
    done = home.run_cli("status")
    assert done.returncode == 3 and says in done.stderr, done.stderr
    assert worker.poll() is None
    tell(f"this program, a worker of protocol {version}", 2, "a sentence, exit status 3")


def test_a_clock_that_was_set_does_not_lose_the_worker(home: FaultHome, tell: Tell) -> None:
    """`started` is wall-clock time: after a jump the system tells the process's start otherwise."""
    worker = home.worker(FAULT_CLOCK="1")
    found = connection.read(home.file)
    assert found is not None and found.born is not None
    for jump in (-86400.0, 86400.0):
        connection.write(home.file, replace(found, started=found.started + jump))
        known = launch.find()
        assert known is not None and known.pid == worker.pid
    home.check_next_job()
    assert home.listening() == worker.pid
    connection.write(home.file, replace(found, born=found.born + 1))
    assert launch.find() is None  # another process with that number
    connection.write(home.file, found)
    home.stop_and_check_nothing_stays()
    tell("clock set by a day, and jumping in the worker", 2, "nothing is lost")


def test_no_deadline_hangs_on_the_clock() -> None:
    """Only the connection file's `started` may come from the clock."""
    package = Path(str(face_restore_worker.__file__)).parent
    uses: collections.Counter[str] = collections.Counter()
    for folder in ("server", "client", "engine", "pipeline"):
        for file in (package / folder).rglob("*.py"):
            count = len(re.findall(r"time\.time\(|datetime\.\w*now|utcnow", file.read_text()))
            if count:
                uses[file.relative_to(package).as_posix()] = count
    assert uses == {"server/loop.py": 1}


def test_a_model_folder_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(ModelError, match="No locks available") as caught,
        ModelStore(tmp_path / "models").locked(timeout=5),
    ):
        pass
    assert "FACE_RESTORE_MODELS" in caught.value.hint
