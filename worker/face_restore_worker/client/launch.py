"""Starting, finding and stopping the worker's process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import face_restore_shared
from face_restore_shared import connection as connection_module
from face_restore_shared import paths, spawning, wire
from face_restore_shared.connection import Connection
from face_restore_shared.errors import ConnectionFileError, FaceRestoreError
from face_restore_shared.schema import StatusReply

import face_restore_worker
from face_restore_worker.client.channel import is_stopped
from face_restore_worker.client.client import WorkerClient
from face_restore_worker.client.errors import (
    START,
    WorkerNotAnswering,
    WorkerNotRunning,
    WorkerStartFailed,
)

_PACKAGES = (face_restore_worker, face_restore_shared)

START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 1.0  # with a worker that was stopped or made way for another
TAIL_LINES = 15


def find() -> Connection | None:
    """The running worker's connection, None when there is no file or its process is gone.

    Raises ConnectionFileError when the file cannot be trusted.
    """
    found = connection_module.read(paths.connection_file())
    return found if found is not None and process_alive(found) else None


def process_alive(connection: Connection) -> bool:
    """Whether the process that wrote the connection file still runs."""
    import psutil

    try:
        process = psutil.Process(connection.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if connection.born is not None:
            return connection_module.birth(connection.pid) == connection.born
        # A number used again belongs to a process started after the file was written.
        return bool(process.create_time() <= connection.started + 5)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def status(timeout: float = 10.0) -> StatusReply | None:
    """The running worker's status, None when none runs; raises when it does not answer."""
    found = find()
    if found is None:
        return None
    try:
        with WorkerClient.connect(found, timeout) as client:
            return client.status()
    except WorkerNotRunning:
        return None


def ensure_worker(
    start: bool = True,
    timeout: float = START_SECONDS,
    options: Sequence[str] = (),
    *,
    command: Sequence[str] | None = None,
    on_start: Callable[[], None] | None = None,
) -> Connection:
    """A worker that answers: the running one, or one started now as a process of its own.

    options: of the worker, as in `python -m face_restore_worker.server --help`; they count only
    when it is started here. command: what to run instead of the installed worker. on_start: called
    once before it is started. timeout: seconds it may take until it answers.
    Raises WorkerNotRunning (start=False), WorkerStartFailed with the end of its log,
    WorkerNotAnswering, ProtocolMismatch, ConnectionFileError.
    """
    deadline = time.monotonic() + timeout
    running = _connect(min(timeout, 10.0))
    if running is not None:
        return running
    if not start:
        raise WorkerNotRunning("No worker is running.", hint=START)
    if on_start is not None:
        on_start()
    return _Start([*(command or _command()), "--quiet", *options]).wait(deadline, timeout)


class _Start:
    """A worker being started."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._output = paths.output_file()
        self._offset = spawning.prepare_output(self._output)
        self._spawn()

    def _spawn(self) -> None:
        self._process = _spawn(self._command, self._output)
        self._since = time.monotonic()  # it was last seen in order

    def wait(self, deadline: float, timeout: float) -> Connection:
        """The worker's connection once one answers; raises WorkerStartFailed."""
        while time.monotonic() < deadline:
            running = _connect(max(0.5, deadline - time.monotonic()))
            if running is not None:
                return running
            self._check()
            time.sleep(POLL_SECONDS)
        raise WorkerStartFailed(
            f"The worker (process {self._process.pid}) was not ready within {timeout:g} s. "
            f"{_tail(self._output, self._offset)}".strip(),
            hint=f"Its logs lie in {self._output.parent}.",
        )

    def _check(self) -> None:
        """Raise when it ended or was stopped; start it again when it made way for another."""
        status, pid = self._process.poll(), self._process.pid
        if status not in (None, 0):
            raise WorkerStartFailed(
                f"The worker ended at its start with status {status}: "
                f"{_tail(self._output, self._offset) or 'it wrote nothing.'}",
                hint=f"Its logs lie in {self._output.parent}; face-restore doctor checks the "
                "set-up.",
            )
        if status is None and not is_stopped(pid):
            self._since = time.monotonic()
        elif time.monotonic() - self._since > PATIENCE_SECONDS:
            if status is None:
                raise WorkerStartFailed(
                    f"The worker (process {pid}) was stopped while it started.",
                    hint=f"Let it go on (kill -CONT {pid}) or end it (kill -KILL {pid}).",
                )
            # Status 0: it found another worker, started at the same moment, which has ended since.
            self._spawn()


def start(options: Sequence[str] = (), timeout: float = START_SECONDS) -> Connection:
    """As ensure_worker."""
    return ensure_worker(True, timeout, options)


def stop(timeout: float = STOP_SECONDS) -> bool:
    """End the running worker, by force when it does not end by itself; False when none runs.

    Raises FaceRestoreError (code "worker-stop") when it cannot be ended.
    """
    found = find()
    if found is None:
        return False
    with contextlib.suppress(FaceRestoreError):
        with WorkerClient.connect(found, timeout=min(timeout, 3.0)) as client:
            client.shutdown()
        if _wait_gone(found, timeout):
            return True
    kill(found)
    return True


def kill(connection: Connection, grace: float = 3.0) -> None:
    """End a worker that does not answer: SIGTERM, then SIGKILL; clears its connection file."""
    import psutil

    try:
        if process_alive(connection):
            process = psutil.Process(connection.pid)
            process.terminate()
            if not _wait_gone(connection, grace):
                process.kill()
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied as error:
        raise _not_stopped(connection) from error
    if not _wait_gone(connection, grace):
        raise _not_stopped(connection)
    connection_module.remove(paths.connection_file(), connection.token)


def restart(options: Sequence[str] = (), timeout: float = START_SECONDS) -> Connection:
    """Stop the worker if one runs, and start one."""
    try:
        stop()
    except ConnectionFileError:
        # Whose the file is cannot be told. A worker that still runs holds the lock and writes the
        # file anew: it is what a start then finds, and it can be stopped.
        paths.connection_file().unlink(missing_ok=True)
        ensure_worker(True, timeout, options)
        stop()
    return ensure_worker(True, timeout, options)


def environment() -> dict[str, str]:
    """The environment for a worker; see spawning.environment. In a checkout it finds its code."""
    env = spawning.environment()
    roots = [str(Path(module.__file__ or "").resolve().parents[1]) for module in _PACKAGES]
    checkout = [root for root in roots if "site-packages" not in Path(root).parts]
    if checkout:
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(checkout))
    return env


def _command() -> list[str]:
    # -P: a file torch.py in the home folder must not be taken for torch.
    return [sys.executable, "-P", "-m", "face_restore_worker.server"]


def _connect(timeout: float) -> Connection | None:
    """The running worker when it answers; None when there is none (or it is just ending)."""
    found = find()
    if found is None:
        return None
    wire.raise_mismatch(found.protocol, peer="worker")
    try:
        WorkerClient.connect(found, timeout).close()
    except WorkerNotRunning:
        return None
    except WorkerNotAnswering:
        if find() != found:  # it ended meanwhile
            return None
        raise
    return found


def _spawn(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    try:
        process = spawning.spawn(command, output, environment())
    except OSError as error:
        raise WorkerStartFailed(
            f"The worker could not be started: {error}.",
            hint="face-restore doctor checks the set-up.",
        ) from error
    # So that no zombie stays when the worker ends before this process does.
    threading.Thread(target=process.wait, name="reaper", daemon=True).start()
    return process


def _tail(path: Path, offset: int) -> str:
    return "\n".join(spawning.tail(path, offset, TAIL_LINES))


def _wait_gone(connection: Connection, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while process_alive(connection):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _not_stopped(connection: Connection) -> FaceRestoreError:
    return FaceRestoreError(
        f"The worker (process {connection.pid}) could not be ended.",
        hint="End this process with the system's own means.",
        code="worker-stop",
    )
