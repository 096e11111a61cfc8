"""The checks of ``face-restore doctor`` on models and the worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.cli.checks import FAIL, OK, WARN, Finding

if TYPE_CHECKING:
    from face_restore_shared.connection import Connection

RESTART = "Run: face-restore worker restart"


def check_models() -> Iterator[Finding]:
    """Which models "auto" takes, and whether the installed files are whole."""
    from face_restore_worker.models.store import ModelStore

    store = ModelStore()
    for kind, resolve in (
        ("restorer", store.resolve_restorer),
        ("detector", store.resolve_detector),
    ):
        try:
            model = resolve("auto")
        except FaceRestoreError as error:
            yield Finding(FAIL, "models", f"no {kind}: {error.message}", error.hint)
            continue
        if kind == "restorer" and model.builtin:
            yield Finding(
                WARN,
                "models",
                f"the {kind} is {model.id}: {model.name}",
                "Run: face-restore models download gpen-bfr-2048 (or models import FILE)",
            )
        else:
            yield Finding(OK, "models", f"the {kind} is {model.id}: {model.name}")
    if store.resolve_parser() is None:
        yield Finding(
            WARN,
            "models",
            "no face parser: masks are ovals",
            "Run: face-restore models download parsenet",
        )
    for name in store.present_ids():
        problems = store.verify(name)
        if problems:
            yield Finding(
                FAIL,
                "models",
                f"{name} is damaged: {'; '.join(problems)}",
                f"Run: face-restore models remove {name}, then get it again.",
            )
        else:
            yield Finding(OK, "models", f"{name} is whole")


def check_worker() -> Iterator[Finding]:
    """The connection file, and the worker behind it."""
    from face_restore_shared import connection, paths

    path = paths.connection_file()
    try:
        found = connection.read(path)
    except FaceRestoreError as error:
        mend = f"{error.hint} If it stays: end the worker, remove {path}, start it again.".strip()
        yield Finding(FAIL, "worker", error.message, mend)
        return
    if found is None:
        yield from _not_running()
        return
    yield Finding(OK, "connection file", f"{path} can be read by you alone")
    yield _answer(found)


def _not_running() -> Iterator[Finding]:
    from face_restore_shared import paths

    from face_restore_worker.server.lock import InstanceLock

    path = paths.lock_file()
    if path.exists():
        lock = InstanceLock(path)
        if not lock.acquire():
            yield Finding(
                FAIL,
                "worker",
                f"a process holds {path} but has not said where it listens",
                "Wait until it has started; else end it (face-restore worker logs shows more).",
            )
            return
        lock.release()
    yield Finding(OK, "worker", "not running (it is started when needed)")


def _answer(found: Connection) -> Finding:
    """How the worker that the connection file names is doing."""
    from face_restore_shared.version import __version__

    from face_restore_worker.client import launch
    from face_restore_worker.client.client import WorkerClient

    if not launch.process_alive(found):
        return Finding(
            WARN,
            "worker",
            f"process {found.pid} is gone and left its connection file",
            "Nothing to do: the next start clears it.",
        )
    try:
        begun = time.monotonic()
        with WorkerClient.connect(found, timeout=10.0) as client:
            status = client.status()
        taken = time.monotonic() - begun
    except FaceRestoreError as error:
        return Finding(FAIL, "worker", error.message, error.hint or RESTART)
    if status.version != __version__:
        return Finding(
            WARN,
            "worker",
            f"it runs version {status.version}, this is {__version__}",
            RESTART,
        )
    if status.problem:
        return Finding(FAIL, "worker", f"it can do no job: {status.problem}", RESTART)
    device = status.device.name or status.device.kind or "a device not chosen yet"
    text = f"process {status.pid} is {status.state} on {device}, answered in {taken * 1e3:.0f} ms"
    return Finding(OK, "worker", text)


def check_small_job() -> Iterator[Finding]:
    """Start the worker if need be and let it look for faces in a small gray picture."""
    import numpy as np

    from face_restore_worker.client.session import WorkerSession

    begun = time.monotonic()
    try:
        with WorkerSession() as session:
            outcome = session.detect(np.full((128, 128, 3), 128, np.uint8))
    except FaceRestoreError as error:
        mend = error.hint or "Look at: face-restore worker logs"
        yield Finding(FAIL, "small job", error.message, mend)
        return
    taken = time.monotonic() - begun
    yield Finding(OK, "small job", f"done in {taken:.1f} s with {outcome.detector}")
