"""What the worker does with requests and with news from the engine; one thread, no waiting."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from face_restore_shared import paths, wire
from face_restore_shared.errors import FaceRestoreError, SchemaError
from face_restore_shared.schema import (
    PROTOCOL_VERSION,
    Accepted,
    CancelRequest,
    DetectRequest,
    DeviceInfo,
    ErrorReply,
    Hello,
    HelloReply,
    ModelInfo,
    ModelsReply,
    Progress,
    RestoreRequest,
    StatusReply,
)
from face_restore_shared.version import __version__

from face_restore_worker.server import memory, runner
from face_restore_worker.server.background import Background
from face_restore_worker.server.complaints import Complaints
from face_restore_worker.server.engine_api import Engine
from face_restore_worker.server.idle import REST, UNLOAD, Idle
from face_restore_worker.server.jobs import Job, JobQueue, Limits, Tally
from face_restore_worker.server.transport import Transport

log = logging.getLogger(__name__)

PULSE_SECONDS = 0.5
HELD_RETRY_SECONDS = 0.05


class Service:
    """The queue, the engine and the answers.

    post: runs a callable or event in the loop's thread, from any thread (see `handle_event`).
    stop: ends the loop. idle: seconds without work after which models are let go, or None.
    """

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        *,
        post: Callable[[Any], None],
        stop: Callable[[str], None],
        idle: float | None,
        limits: Limits,
        log_path: str,
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._post = post
        self._stop = stop
        self._idle_unload = idle
        self._idle = Idle(idle)
        self._log_path = log_path
        self._queue = JobQueue(limits)
        self._runner = runner.EngineThread(engine, post)
        self._background = Background()
        self._started = time.monotonic()
        self._next_pulse = self._started
        self._phase = "starting"
        self._stopping: FaceRestoreError | None = None
        self._device = DeviceInfo()
        self._models_loaded: tuple[str, ...] = ()
        self._problem: str | None = None
        self._tally = Tally()
        self._complaints = Complaints()

    def start(self) -> None:
        """Start the threads and load the default models."""
        self._runner.start()
        self._background.start()
        self._runner.warm_up()

    def finish(self, reason: str) -> None:
        """Answer every open job with "stopping", new ones too, and let the threads end."""
        self._phase = "stopping"
        self._stopping = FaceRestoreError(
            f"The worker is stopping ({reason}).",
            hint="Start it again: face-restore worker start.",
            code="stopping",
        )
        for job in list(self._queue):
            self._fail(job, ErrorReply.of(self._stopping, job.id))
        self._runner.finish()
        self._background.finish()
        self._transport.flush()

    def engine_ended(self, timeout: float) -> bool:
        """Wait for the engine thread after `finish`; False when it is still at work."""
        self._runner.join(timeout)
        return not self._runner.is_alive()

    # -- time -----------------------------------------------------------------------------------

    def wait_seconds(self) -> float:
        """How long nothing is to be done unless something comes in."""
        now = time.monotonic()
        due = now + 60
        if self._transport.holding:
            due = now + HELD_RETRY_SECONDS
        if any(True for _ in self._queue):
            due = min(due, self._next_pulse)
        idle_at = self._idle.next_at()
        if idle_at is not None and not self._is_busy():
            due = min(due, idle_at)
        return max(0.0, due - now)

    def tick(self) -> None:
        """Whatever is due: pulses, held answers, the next job, letting go of idle models."""
        now = time.monotonic()
        for client in self._transport.flush():
            self._client_gone(client)
        if now >= self._next_pulse:
            self._next_pulse = now + PULSE_SECONDS
            for job in list(self._queue):
                self._pulse(job)
        self._dispatch()
        step = None if self._is_busy() else self._idle.due()
        if step == UNLOAD:
            log.info("No work for %.0f s: letting go of the models", self._idle.seconds)
            self._runner.unload(None)
        elif step == REST:
            self._runner.rest()

    def _is_busy(self) -> bool:
        waits = self._queue.running is not None or bool(self._queue.waiting)
        return waits or self._phase != "ready"

    def _dispatch(self) -> None:
        while (job := self._queue.next()) is not None:
            job.position = 0
            if self._send_job(job, "accepted", Accepted(job.id, 0).to_wire()):
                self._idle.work_begins()
                self._runner.submit(job)
            else:  # its client went away while it waited
                self._queue.running = None
        for waiting in self._queue.moved():
            body = Accepted(waiting.id, waiting.position).to_wire()
            self._send_job(waiting, "accepted", body)

    # -- news from other threads ----------------------------------------------------------------

    @functools.singledispatchmethod
    def handle_event(self, event: Any) -> None:
        """Take in an event of the engine thread, or call a callable of the background's."""
        event()

    @handle_event.register
    def _(self, event: runner.Described) -> None:
        self._problem = event.problem
        try:
            self._device = DeviceInfo.from_wire(event.description.get("device", {}))
            self._models_loaded = tuple(map(str, event.description.get("models_loaded", ())))
        except SchemaError:
            log.exception("The engine described itself wrongly")

    @handle_event.register
    def _(self, event: runner.WarmingUp) -> None:
        self._phase = "loading"

    @handle_event.register
    def _(self, event: runner.WarmedUp) -> None:
        self._phase = "ready"
        self._idle.work_ended()

    @handle_event.register
    def _(self, event: runner.JobProbe) -> None:
        if not event.job.answered:
            self._pulse(event.job)
        event.answered.set()

    @handle_event.register
    def _(self, event: runner.JobProgress) -> None:
        job = event.job
        job.stage, job.faces = event.stage, event.faces
        if not job.answered:
            body = Progress(job.id, event.stage, event.face, event.faces, event.fraction)
            self._send_job(job, "progress", body.to_wire())

    @handle_event.register
    def _(self, event: runner.JobDone) -> None:
        job = event.job
        if self._queue.running is job:
            self._queue.running = None
        self._idle.work_ended()
        if job.answered:
            return
        if event.error is not None:
            self._fail(job, dataclasses.replace(event.error, job=job.id))
            return
        job.answered = True
        self._tally.done += 1
        sending = Progress(job.id, "sending", job.faces, job.faces, 1.0).to_wire()
        self._transport.send(job.client, "progress", job.id, sending)
        self._transport.send_result(job.client, event.frames)

    @handle_event.register
    def _(self, event: runner.Unloaded) -> None:
        if event.asked is not None:
            client, request = event.asked
            self._transport.send(client, "ok", request, {"when": "now"}, final=True)

    # -- jobs and clients -----------------------------------------------------------------------

    def _send_job(self, job: Job, kind: str, body: dict[str, Any]) -> bool:
        there = self._transport.send(job.client, kind, job.id, body)
        if not there:
            self._client_gone(job.client)
        return there

    def _pulse(self, job: Job) -> bool:
        return self._send_job(job, "pulse", {"job": job.id})

    def _fail(self, job: Job, error: ErrorReply) -> None:
        """End the job with an error, once."""
        if job.answered:
            return
        job.drop()
        self._queue.remove(job)
        job.answered = True
        self._tally.count_error(error.code)
        self._transport.send(job.client, "error", job.id, error.to_wire(), final=True)

    def _client_gone(self, client: bytes) -> None:
        jobs = self._queue.of_client(client)
        for job in jobs:
            job.drop()
            self._queue.remove(job)
            job.answered = True  # nobody is left to answer
        self._tally.cancelled += len(jobs)
        if jobs:
            log.info("A client went away: dropped %d job(s)", len(jobs))
            self._background.do(memory.trim)

    # -- requests -------------------------------------------------------------------------------

    def handle_message(self, client: bytes, frames: list[Any]) -> None:
        """Answer one message; whatever is wrong with it becomes an error reply."""
        if self._transport.is_deaf(client):
            return
        request = ""
        try:
            if not frames:
                raise SchemaError("The message is empty.")
            header = wire.decode_header(frames[0])
            request = header.id
            wire.check_version(header, peer="client")
            handler = self._handlers().get(header.type)
            if handler is None:
                raise SchemaError(f"There is no request of type {header.type!r}.")
            if not request:
                raise SchemaError("The request has no id.")
            handler(client, header, frames[1:])
        except FaceRestoreError as error:
            if error.code in ("bad-request", "protocol-mismatch"):
                self._complaints.log(client, str(error))
            self._refuse(client, request, ErrorReply.of(error, request or None))
        except Exception as error:
            log.exception("A request failed")
            reply = ErrorReply(
                "internal",
                f"The worker failed on this request ({type(error).__name__}).",
                "The worker's log says more: face-restore worker logs.",
                request or None,
            )
            self._refuse(client, request, reply)

    def _refuse(self, client: bytes, request: str, error: ErrorReply) -> None:
        self._transport.send(client, "error", request, error.to_wire(), final=True)

    def _handlers(self) -> dict[str, Callable[[bytes, wire.Header, list[Any]], None]]:
        return {
            "hello": self._on_hello,
            "status": self._on_status,
            "models": self._on_models,
            "detect": self._on_job,
            "restore": self._on_job,
            "cancel": self._on_cancel,
            "unload": self._on_unload,
            "shutdown": self._on_shutdown,
        }

    def _on_hello(self, client: bytes, header: wire.Header, frames: list[Any]) -> None:
        hello = Hello.from_wire(wire.body_alone(header, frames))
        log.debug("Hello from %r", hello.client)
        limits = self._queue.limits
        reply = HelloReply(
            version=__version__,
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            state=self._state(),
            max_jobs=limits.jobs_per_client,
            max_bytes=limits.queued_bytes,
        )
        self._transport.send(client, "hello", header.id, reply.to_wire())

    def _on_status(self, client: bytes, header: wire.Header, frames: list[Any]) -> None:
        wire.nothing_more(header, frames)
        self._transport.send(client, "status", header.id, self._status().to_wire())

    def _on_models(self, client: bytes, header: wire.Header, frames: list[Any]) -> None:
        wire.nothing_more(header, frames)

        def ask() -> None:  # in the background thread: a disk may be slow
            try:
                infos = tuple(ModelInfo.from_wire(model) for model in self._engine.models())
                kind, body = "models", ModelsReply(infos).to_wire()
            except Exception as error:
                log.exception("The models could not be listed")
                kind, body = "error", ErrorReply.of(error).to_wire()
            self._post(lambda: self._transport.send(client, kind, header.id, body, final=True))

        self._background.do(ask)

    def _on_job(self, client: bytes, header: wire.Header, frames: list[Any]) -> None:
        if self._stopping is not None:
            raise self._stopping
        body, declared = wire.take_sizes(header.body)
        cls = RestoreRequest if header.type == "restore" else DetectRequest
        request = cls.from_wire(body)
        payload = wire.collect(frames, declared, request.buffers)
        if self._queue.find(client, header.id) is not None:
            # Refused without an id: an error with it would end the job that has it.
            text = f"A job with the id {header.id!r} is open already."
            self._refuse(client, "", ErrorReply("bad-request", text))
            return
        job = Job(client, header.id, request, payload, sum(declared))
        self._queue.add(job, *self._transport.untaken(client))
        self._next_pulse = min(self._next_pulse, time.monotonic() + PULSE_SECONDS)

    def _on_cancel(self, client: bytes, header: wire.Header, frames: list[Any]) -> None:
        wanted = CancelRequest.from_wire(wire.body_alone(header, frames))
        job = self._queue.find(client, wanted.job)
        if job is not None:
            self._fail(job, ErrorReply("cancelled", "The job was cancelled.", "", job.id))
            self._background.do(memory.trim)
        body = {"job": wanted.job, "found": job is not None}
        self._transport.send(client, "ok", header.id, body, final=True)

    def _on_unload(self, client: bytes, header: wire.Header, frames: list[Any]) -> None:
        wire.nothing_more(header, frames)
        busy = self._queue.running is not None or self._phase != "ready"
        self._idle.unloaded()
        self._runner.unload(None if busy else (client, header.id))
        if busy:
            self._transport.send(client, "ok", header.id, {"when": "later"}, final=True)

    def _on_shutdown(self, client: bytes, header: wire.Header, frames: list[Any]) -> None:
        wire.nothing_more(header, frames)
        self._transport.send(client, "ok", header.id, {}, final=True)
        self._stop("a client asked for it")

    def _state(self) -> str:
        running = self._queue.running
        if running is None or self._phase != "ready":
            return self._phase
        return "loading" if running.stage == "loading-model" else "busy"

    def _status(self) -> StatusReply:
        import psutil

        return StatusReply(
            version=__version__,
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            uptime=time.monotonic() - self._started,
            device=self._device,
            state=self._state(),
            models_loaded=self._models_loaded,
            queue=len(self._queue.waiting),
            jobs_done=self._tally.done,
            jobs_failed=self._tally.failed,
            jobs_cancelled=self._tally.cancelled,
            rss=psutil.Process().memory_info().rss,
            idle_unload=self._idle_unload,
            problem=self._problem,
            log=self._log_path,
            models_dir=paths.shown(paths.models_dir()),
        )
