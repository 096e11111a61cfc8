"""``face-restore worker``: start, stop, look at and run the worker."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from face_restore_worker.cli.exits import Exit
from face_restore_worker.cli.settings import add_threads_option, device_name, seconds, whole

if TYPE_CHECKING:
    from face_restore_shared.connection import Connection

FOLLOW_SECONDS = 0.3
_EXAMPLES = """\
examples:
  face-restore worker start              load the models and keep them loaded
  face-restore worker start --keep       never let them leave memory
  face-restore worker restart --device cpu
  face-restore worker restart --threads -1    leave one core to the editor
  face-restore worker status --format json
  face-restore worker logs --lines 50

`face-restore restore` starts the worker by itself. After 10 minutes without work the
models leave memory and come back with the next picture.
`worker status` ends with status 0 when a worker runs, else with 3.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``worker`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "worker",
        help="start, stop, look at and run the worker",
        description="The worker keeps the models loaded and restores for all programs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, words in (
        ("start", "start the worker and wait until it answers"),
        ("restart", "stop it if it runs, then start it"),
        ("run", "run the worker here, in the foreground"),
    ):
        _worker_options(actions.add_parser(name, help=words, description=words + "."))
    actions.add_parser("stop", help="end the worker")
    status = actions.add_parser("status", help="show what the worker does")
    status.add_argument("--format", choices=("text", "json"), default="text")
    logs = actions.add_parser("logs", help="show the worker's log")
    logs.add_argument("--lines", type=whole, default=40, metavar="N", help="last N lines (40)")
    logs.add_argument("--follow", "-f", action="store_true", help="go on as it grows")
    return parser


def add_status_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add ``face-restore status``, short for ``face-restore worker status``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "status", help="show what the worker does (short for worker status)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.set_defaults(run=run, action="status")
    return parser


def _worker_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device_name, help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--model", help="the model to load at the start")
    unload = parser.add_mutually_exclusive_group()
    unload.add_argument(
        "--idle",
        type=seconds,
        metavar="SECONDS",
        help="let models leave memory after this long (600)",
    )
    unload.add_argument("--keep", action="store_true", help="keep models in memory while idle")
    add_threads_option(parser)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))


def worker_options(args: argparse.Namespace) -> list[str]:
    """The arguments as the worker process takes them. ModelError: there is no such model."""
    from face_restore_worker.cli.settings import model_name

    if args.model is not None:
        from face_restore_worker.models.store import ModelStore

        ModelStore().resolve_restorer(model_name(args.model))  # said now, not at the first picture
    options: list[str] = []
    for name in ("device", "model", "idle", "threads", "log_level"):
        value = getattr(args, name)
        if value is not None:
            text = model_name(value) if name == "model" else str(value)
            options.append(f"--{name.replace('_', '-')}={text}")  # = for a value such as -1
    return [*options, "--keep"] if args.keep else options


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore worker ...``; returns the exit status."""
    return int(_ACTIONS[args.action](args))


def _run(args: argparse.Namespace) -> int:
    from face_restore_worker.server.process import main

    return Exit.OK if main(worker_options(args)) == 0 else Exit.CANNOT_WORK


def _start(args: argparse.Namespace) -> int:
    from face_restore_worker.client import launch

    options = worker_options(args)
    before = launch.find()
    found = launch.ensure_worker(True, options=options)
    if before is None or before.token != found.token:
        _require_work(args, found)
    if before is not None and before.token == found.token:
        print(f"The worker runs already (process {found.pid}).")
        if options:
            print("Its options stay; `face-restore worker restart` changes them.")
    else:
        print(f"The worker runs (process {found.pid}).")
    return Exit.OK


def _restart(args: argparse.Namespace) -> int:
    from face_restore_worker.client import launch

    found = launch.restart(worker_options(args))
    _require_work(args, found)
    print(f"The worker runs (process {found.pid}).")
    return Exit.OK


def _require_work(args: argparse.Namespace, found: Connection) -> None:
    """End a new worker that cannot use the device or model it was told to, and say why.

    Without such a wish nothing is waited for: whatever hinders it is in its status.
    """
    from face_restore_shared.errors import FaceRestoreError

    from face_restore_worker.client import launch
    from face_restore_worker.client.client import WorkerClient

    if args.device in (None, "auto") and args.model is None:
        return
    with WorkerClient.connect(found) as client:
        status = client.wait_until_loaded()
    if status.problem:
        launch.stop()
        raise FaceRestoreError(
            f"The worker cannot work with these options, so it was ended. {status.problem}",
            code="device" if args.model is None else "worker-start",
        )


def _stop(_args: argparse.Namespace) -> int:
    from face_restore_worker.client import launch

    print("The worker has ended." if launch.stop() else "No worker is running.")
    return Exit.OK


def _status(args: argparse.Namespace) -> int:
    from face_restore_shared import connection, paths

    found: Connection | None = connection.read(paths.connection_file())
    status = None if found is None else _ask_status(found)
    if found is None or status is None:
        if args.format == "json":
            print(json.dumps({"running": False}))
        else:
            print("No worker is running. `face-restore restore` starts it when needed.")
        return Exit.CANNOT_WORK
    if args.format == "json":
        print(
            json.dumps({"running": True, "endpoint": found.endpoint} | status.to_wire(), indent=2)
        )
    else:
        _show(status, found)
    return Exit.OK


def _ask_status(found: Connection) -> Any:
    """The worker's status, None when it is gone."""
    from face_restore_worker.client.client import WorkerClient
    from face_restore_worker.client.errors import WorkerNotRunning

    try:
        with WorkerClient.connect(found, timeout=5.0) as client:
            return client.status()
    except WorkerNotRunning:
        return None


def _show(status: Any, found: Connection) -> None:
    from face_restore_worker.cli.progress import show_time
    from face_restore_worker.models.files import show_bytes

    device = status.device
    memory = ""
    if device.memory_total:
        free = f", {show_bytes(device.memory_free)} free" if device.memory_free else ""
        memory = f" ({show_bytes(device.memory_total)}{free})"
    unload = status.idle_unload
    idle = "never" if unload is None else f"after {show_time(unload)}"
    rows = (
        ("state", status.state),
        ("device", f"{device.name or device.kind or 'not chosen yet'}{memory}"),
        ("models loaded", ", ".join(status.models_loaded) or "none"),
        ("jobs", _jobs(status)),
        ("memory", show_bytes(status.rss)),
        ("running for", show_time(status.uptime)),
        ("models unload", idle),
        ("process", f"{status.pid}, version {status.version}, protocol {status.protocol}"),
        ("address", found.endpoint),
        ("models from", status.models_dir or "unknown"),
        ("log", status.log),
    )
    for name, value in rows:
        print(f"{name + ':':<15} {value}")
    if status.problem:
        print(f"{'problem:':<15} {status.problem}")


def _jobs(status: Any) -> str:
    """How many jobs wait or have ended; of failed and cancelled ones only where there are any."""
    counts = [(status.queue, "waiting"), (status.jobs_done, "done")]
    others = ((status.jobs_failed, "failed"), (status.jobs_cancelled, "cancelled"))
    counts += [(count, word) for count, word in others if count]
    return ", ".join(f"{count} {word}" for count, word in counts)


def _logs(args: argparse.Namespace) -> int:
    from face_restore_shared import paths

    path = paths.log_file()
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
            print("".join(lines[-args.lines :] if args.lines > 0 else []), end="", flush=True)
            if args.follow:
                _follow(file, path)
    except FileNotFoundError:
        print(f"There is no log yet ({path}).", file=sys.stderr)
        return Exit.CANNOT_WORK
    return Exit.OK


def _follow(file: TextIO, path: Path) -> None:
    """Print what is added to the log, without end; a log that is rotated is followed into the new.

    file: the log, open; closed here when there is a new one.
    """
    while True:
        try:
            current = path.stat()
        except OSError:  # just being rotated, or removed: another will come
            current = None
        # Looked at before the last lines are read: whatever was written before the change is there.
        if text := file.read():
            print(text, end="", flush=True)
        if current is not None and not os.path.samestat(os.fstat(file.fileno()), current):
            file.close()
            file = path.open(encoding="utf-8", errors="replace")
            continue
        time.sleep(FOLLOW_SECONDS)


_ACTIONS = {
    "run": _run,
    "start": _start,
    "restart": _restart,
    "stop": _stop,
    "status": _status,
    "logs": _logs,
}
