"""The engine thread: does one thing at a time and tells the I/O loop about it.

It never touches a ZeroMQ socket; what happened goes to `post`, which wakes the loop.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from face_restore_shared import wire
from face_restore_shared.errors import FaceRestoreError, SchemaError
from face_restore_shared.fields import MAX_TEXT
from face_restore_shared.schema import ErrorReply

from face_restore_worker.server import memory
from face_restore_worker.server.engine_api import Engine
from face_restore_worker.server.jobs import Job

log = logging.getLogger(__name__)

PROGRESS_INTERVAL = 0.05
PROBE_INTERVAL = 0.02
PROBE_WAIT = 0.25


@dataclass
class Described:
    """The engine's state has changed. problem: why it cannot work, None when it can."""

    description: dict[str, Any]
    problem: str | None = None


@dataclass
class WarmingUp:
    """The default models are being loaded."""


@dataclass
class WarmedUp:
    """The engine is ready for jobs (also when warming up failed; jobs then say why)."""


@dataclass
class JobProgress:
    """The running job has come further."""

    job: Job
    stage: str
    face: int
    faces: int
    fraction: float


@dataclass
class JobProbe:
    """Is the job's client still there? Set `answered` when job.cancelled is up to date."""

    job: Job
    answered: threading.Event = field(default_factory=threading.Event)


@dataclass
class JobDone:
    """The running job ended: with the frames of its result, or with an error."""

    job: Job
    frames: list[Any] = field(default_factory=list)
    error: ErrorReply | None = None


@dataclass
class Unloaded:
    """The models are gone from memory. asked: client and request to answer, if any."""

    asked: tuple[bytes, str] | None


class EngineThread(threading.Thread):
    """Runs the engine. post: takes the events above, from any thread, without blocking."""

    def __init__(self, engine: Engine, post: Callable[[Any], None]) -> None:
        super().__init__(name="engine", daemon=True)
        self._engine = engine
        self._post = post
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._problem: str | None = None

    def warm_up(self) -> None:
        """Load the default models."""
        self._tasks.put(self._warm_up)

    def submit(self, job: Job) -> None:
        """Do the job after everything submitted before."""
        self._tasks.put(lambda: self._run(job))

    def rest(self) -> None:
        """Let go of working memory after everything submitted before."""
        self._tasks.put(self._rest)

    def unload(self, asked: tuple[bytes, str] | None) -> None:
        """Let go of the models after everything submitted before."""
        self._tasks.put(lambda: self._unload(asked))

    def finish(self) -> None:
        """End the thread after the current task."""
        self._tasks.put(None)

    def run(self) -> None:
        """The thread's body."""
        while True:
            task = self._tasks.get()
            if task is None:
                return
            try:
                task()
            except BaseException:
                # The tasks catch their own; this keeps the thread whatever happens.
                log.exception("The engine thread's task failed")
            del task  # it holds the job and its pixels

    def _warm_up(self) -> None:
        self._post(WarmingUp())
        try:
            self._engine.warm_up()
        except BaseException as error:
            reply = self._failure(error, "warming up")
            self._problem = f"{reply.message} {reply.hint}".strip()[:MAX_TEXT]
        self._describe()
        self._post(WarmedUp())

    def _rest(self) -> None:
        try:
            self._engine.rest()
        except BaseException as error:
            self._failure(error, "resting")
        memory.trim()

    def _unload(self, asked: tuple[bytes, str] | None) -> None:
        try:
            self._engine.unload()
        except BaseException as error:
            self._failure(error, "unloading")
        memory.trim()
        self._describe()
        self._post(Unloaded(asked))

    def _run(self, job: Job) -> None:
        done = JobDone(job)
        started = time.monotonic()
        try:
            done.frames = self._result(job)
        except BaseException as error:  # SystemExit, too: whatever it is, it is this job's error
            done.error = self._failure(error, f"{job.kind} job {job.id}")
        else:
            self._problem = None
            log.info("%s job %s took %.2f s", job.kind, job.id, time.monotonic() - started)
        self._describe()
        self._post(done)
        del done
        memory.trim()

    def _result(self, job: Job) -> list[Any]:
        """Do the job; the frames of its result message."""
        if job.cancelled.is_set():
            raise FaceRestoreError("The job was cancelled.", code="cancelled")
        payload, job.payload = job.payload, []
        reporter = _Reporter(job, self._post, self._describe)
        result, buffers = self._engine.run(
            job.request, payload, progress=reporter.progress, cancelled=reporter.cancelled
        )
        sizes = [memoryview(buffer).nbytes for buffer in buffers]
        if sizes != result.buffers:
            raise RuntimeError(f"engine gave buffers of {sizes}, not {result.buffers}")
        return wire.message("result", job.id, {"job": job.id, **result.to_wire()}, buffers)

    def _failure(self, error: BaseException, what: str) -> ErrorReply:
        """The error for the client. Logged once: one nobody foresaw with its traceback."""
        if isinstance(error, FaceRestoreError) and not isinstance(error, SchemaError):
            reply = ErrorReply.of(error)
            if reply.code != "cancelled":
                cause = error if error.__cause__ is not None else None
                text = f"{reply.code}: {reply.message} {reply.hint}"
                log.warning("%s: %s", what, text, exc_info=cause)
            return reply
        log.error("%s failed", what, exc_info=error)
        text = type(error).__name__
        with contextlib.suppress(Exception):  # an exception may fail to say what it is
            text += f": {error}"
        return ErrorReply.of(
            FaceRestoreError(
                f"The worker failed ({what}: {text[:2000]}).",
                hint="The worker's log says more: face-restore worker logs.",
                code="out-of-memory" if isinstance(error, MemoryError) else "internal",
            )
        )

    def _describe(self) -> None:
        try:
            self._post(Described(dict(self._engine.describe()), self._problem))
        except Exception:
            log.exception("The engine could not describe itself")


class _Reporter:
    """The callbacks of one job."""

    def __init__(self, job: Job, post: Callable[[Any], None], refresh: Callable[[], None]) -> None:
        self._job = job
        self._post = post
        self._refresh = refresh
        self._last: tuple[str, int] = ("", -1)
        self._sent = 0.0
        self._probed = 0.0

    def progress(self, stage: str, face: int, faces: int, fraction: float) -> None:
        """Tell the client; more than twenty times a second within one face are left out."""
        now = time.monotonic()
        if (stage, face) == self._last and now - self._sent < PROGRESS_INTERVAL:
            return
        if self._last[0] == "loading-model" != stage:
            self._refresh()
        self._last, self._sent = (stage, face), now
        fraction = min(max(float(fraction), 0.0), 1.0)
        self._post(JobProgress(self._job, stage, int(face), int(faces), fraction))

    def cancelled(self) -> bool:
        """Whether to stop; asks the loop to look after the client first."""
        now = time.monotonic()
        if not self._job.cancelled.is_set() and now - self._probed >= PROBE_INTERVAL:
            probe = JobProbe(self._job)
            self._post(probe)
            probe.answered.wait(PROBE_WAIT)
            self._probed = time.monotonic()
        return self._job.cancelled.is_set()
