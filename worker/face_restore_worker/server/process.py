"""The worker process: one for each user, from start to clean end."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from face_restore_shared import connection, paths
from face_restore_shared.connection import Connection
from face_restore_shared.errors import ConnectionFileError, FaceRestoreError
from face_restore_shared.version import __version__

from face_restore_worker.server import memory
from face_restore_worker.server.engine_api import Engine
from face_restore_worker.server.lock import InstanceLock
from face_restore_worker.threads import share_processor

log = logging.getLogger("face_restore_worker.server")

IDLE_SECONDS = 600.0
OTHER_STARTS_SECONDS = 10.0
STOPPED_SECONDS = 1.0  # before a silent holder of the lock is looked at
ENGINE_END_SECONDS = 0.5


def parser() -> argparse.ArgumentParser:
    """The worker's options."""
    p = argparse.ArgumentParser(
        prog="python -m face_restore_worker.server",
        description="The worker that restores faces, in the foreground. One runs for each user.",
    )
    p.add_argument("--idle", type=_seconds, default=IDLE_SECONDS, metavar="SECONDS")
    p.add_argument("--keep", action="store_true", help="keep models in memory while idle")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    p.add_argument("--model", default="auto", help="the model to load at the start")
    p.add_argument("--threads", type=int, help="CPU threads, -1: leave one core free")
    p.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    p.add_argument("--quiet", action="store_true", help="log to the file only")
    p.add_argument("--for-process", type=int, metavar="PID", help="end when this process has ended")
    return p


def main(
    argv: Sequence[str] | None = None,
    engine_factory: Callable[[argparse.Namespace], Engine] | None = None,
) -> int:
    """Run a worker until it is stopped; returns the exit status.

    0: ended in order, or another worker runs already (its data is printed). 1: could not start.
    engine_factory: makes the engine from the parsed options; torch's is the default.
    """
    args = parser().parse_args(argv)
    os.umask(0o077)
    share_processor()
    # The engine's Python code hands over sooner: status answers within a few milliseconds.
    sys.setswitchinterval(0.0005)
    memory.prepare()
    with contextlib.suppress(Exception):  # stderr may be closed
        faulthandler.enable()
    lock = InstanceLock(paths.lock_file())
    try:
        other = _take(lock)
        if other is not None:
            print("A worker is running already:", json.dumps(other.public()), flush=True)
            return 0
        return _serve(args, engine_factory or _torch_engine, lock)
    except FaceRestoreError as error:
        print(f"The worker could not start: {error}", file=sys.stderr, flush=True)
        return 1


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError("must be 0 or more seconds")
    return seconds


def _torch_engine(args: argparse.Namespace) -> Engine:
    from face_restore_worker.engine.engine import RestorerEngine

    return RestorerEngine(device=args.device, model=args.model, threads=args.threads)


def _take(lock: InstanceLock) -> Connection | None:
    """Take the lock; or the running worker's data when another process has it."""
    begin = time.monotonic()
    while not lock.acquire():
        # The other may be between taking the lock and listening, or about to end.
        with contextlib.suppress(ConnectionFileError):
            found = connection.read(paths.connection_file())
            if found is not None:
                return found
        _check_holder(lock, time.monotonic() - begin)
        time.sleep(0.05)
    return None


def _check_holder(lock: InstanceLock, waited: float) -> None:
    """Raise when there is no hope in the process that has the lock. waited: seconds so far."""
    import psutil

    pid = lock.holder()
    stopped = False
    if waited > STOPPED_SECONDS and pid is not None:
        with contextlib.suppress(psutil.Error):
            stopped = psutil.Process(pid).status() == psutil.STATUS_STOPPED
    if not stopped and waited < OTHER_STARTS_SECONDS:
        return
    who = f"Another worker (process {pid})" if pid is not None else "Another process"
    why = "was stopped (SIGSTOP)" if stopped else "does not say where it listens"
    raise FaceRestoreError(
        f"{who} holds the lock {lock.path} and {why}.",
        hint="Look at its log (face-restore worker logs)"
        + (f"; kill -KILL {pid} ends it." if pid is not None else "."),
        code="locked",
    )


def _serve(
    args: argparse.Namespace,
    engine_factory: Callable[[argparse.Namespace], Engine],
    lock: InstanceLock,
) -> int:
    from face_restore_worker.server.logs import set_up
    from face_restore_worker.server.loop import Server

    log_path = paths.log_file()
    set_up(log_path, args.log_level, also_stderr=not args.quiet)
    file = paths.connection_file()
    file.unlink(missing_ok=True)  # of a worker that was killed: we have the lock
    for leftover in file.parent.glob(file.name + ".*.tmp"):
        leftover.unlink(missing_ok=True)
    idle = None if args.keep else args.idle
    check_owner = _owner_check(args.for_process)

    def keep_up() -> None:
        _keep_place(file, listening, lock, server.stop)
        check_owner(server.stop)

    server = Server(engine_factory(args), idle=idle, log_path=log_path, upkeep=keep_up)
    listening = server.bind()
    _handle_signals(server)
    status = 0
    try:
        _announce(file, listening)
        log.info("Worker %s, process %d, on %s", __version__, os.getpid(), listening.endpoint)
        server.run()
    except FaceRestoreError:
        raise
    except Exception:
        log.exception("The worker ends: its loop failed again and again")
        status = 1
    finally:
        with contextlib.suppress(OSError):
            connection.remove(file, listening.token)
    signal.set_wakeup_fd(-1)
    server.close()
    ended = server.engine_ended(ENGINE_END_SECONDS)
    log.info("Stopped")
    lock.release()
    if not ended:
        # In the middle of a face: nobody waits for it, and torch cannot be interrupted.
        logging.shutdown()
        os._exit(status)
    return status


def _owner_check(pid: int | None) -> Callable[[Callable[[str], None]], None]:
    """A function that stops a worker once the process it runs for has ended. pid: None: none."""
    if pid is None:
        return lambda stop: None
    from face_restore_worker.server.owner import Owner

    owner = Owner(pid)

    def check(stop: Callable[[str], None]) -> None:
        if owner.gone():
            stop(f"process {pid}, for which it ran, has ended")

    return check


def _announce(file: Path, listening: Connection) -> None:
    """Write the connection file."""
    try:
        connection.write(file, listening)
    except OSError as error:
        raise FaceRestoreError(
            f"The connection file {file} cannot be written: {error.strerror or error}.",
            hint="Make room on the disk, or set FACE_RESTORE_HOME to another folder.",
            code="connection-file",
        ) from error


def _keep_place(
    file: Path, listening: Connection, lock: InstanceLock, stop: Callable[[str], None]
) -> None:
    """Stay the one worker that is found, or end where another has become that.

    Lock and connection file may be removed, with their folder, while this worker runs.
    """
    with contextlib.suppress(FaceRestoreError):  # a full or read-only disk: the next time, perhaps
        if lock.keep():
            _keep_file(file, listening)
            return
        found = connection.read(file)
        if found is not None and found.token != listening.token:
            stop(f"another, process {found.pid}, has taken its place")


def _keep_file(file: Path, listening: Connection) -> None:
    """Write the connection file again when it was deleted or cannot be trusted any more.

    Without it nobody could reach or stop this worker, and no other could start.
    """
    with contextlib.suppress(ConnectionFileError):
        found = connection.read(file)
        if found is not None and found.token == listening.token:
            return
    with contextlib.suppress(OSError, FaceRestoreError):  # a full disk: the next time, perhaps
        connection.write(file, listening)
        log.warning("The connection file was missing or changed; it is there again")


def _handle_signals(server: object) -> None:
    from face_restore_worker.server.loop import Server

    assert isinstance(server, Server)

    def handle(number: int, _frame: FrameType | None) -> None:
        server.stop(signal.Signals(number).name)

    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handle)
    # A signal then wakes the loop's poll instead of waiting for its time-out.
    signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)
