"""The worker's client: pictures in, restored faces out."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_shared import connection as connection_module
from face_restore_shared import paths, wire
from face_restore_shared.connection import Connection
from face_restore_shared.errors import FaceRestoreError, SchemaError
from face_restore_shared.schema import (
    Accepted,
    CancelRequest,
    DetectOptions,
    DetectRequest,
    DetectResult,
    ErrorReply,
    FaceTarget,
    Hello,
    HelloReply,
    ModelInfo,
    ModelsReply,
    Progress,
    RestoreOptions,
    RestoreRequest,
    RestoreResult,
    StatusReply,
)
from face_restore_shared.version import __version__

from face_restore_worker.client.channel import Channel, lost
from face_restore_worker.client.errors import RESTART, START, WorkerNotAnswering, WorkerNotRunning

if TYPE_CHECKING:
    import numpy as np

    from face_restore_worker.client.arrays import DetectOutcome
    from face_restore_worker.pipeline.types import Face, RestoreOutcome

PULSE_LIMIT = 3.0
PATIENT_LIMIT = 60.0  # importing torch can hold Python's lock for seconds on a slow disk
POLL_SECONDS = 0.25
STATUS_SECONDS = 0.05
SLOWEST_BYTES = 10e6  # per second, for the time a request may take to arrive
# While models load, and while a result of perhaps gigabytes is on its way, no pulse need come;
# a worker that is stopped or dead is noticed by libzmq's pings then, too.
_PATIENT = ("starting", "loading", "loading-model", "sending")

ProgressListener = Callable[[Progress], None]


class WorkerClient:
    """A connection to the running worker. A context manager; not for use from several threads.

    One job at a time; make several clients for several jobs. Errors of a job are raised as
    FaceRestoreError with the code, message and hint the worker gave.
    """

    def __init__(self, connection: Connection, timeout: float = 10.0) -> None:
        self.connection = connection
        self._timeout = timeout
        self._ids = itertools.count(1)
        self._job: str | None = None
        self._channel = Channel(connection, timeout)

    @classmethod
    def connect(cls, connection: Connection | None = None, timeout: float = 10.0) -> WorkerClient:
        """Connect and say hello.

        connection: None reads the connection file. Raises WorkerNotRunning, WorkerNotAnswering,
        TokenRefused, wire.ProtocolMismatch or ConnectionFileError.
        """
        if connection is None:
            connection = connection_module.read(paths.connection_file())
            if connection is None:
                raise WorkerNotRunning("No worker is running.", hint=START)
        wire.raise_mismatch(connection.protocol, peer="worker")
        client = cls(connection, timeout)
        try:
            client.hello()
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the worker drops what it still does for it."""
        self._channel.close()

    # -- short requests -------------------------------------------------------------------------

    def hello(self) -> HelloReply:
        """Who the worker is; raises ProtocolMismatch when it speaks another version."""
        body = Hello(f"face-restore {__version__}").to_wire()
        reply = HelloReply.from_wire(self._ask("hello", body))
        wire.raise_mismatch(reply.protocol, peer="worker")
        self._state = reply.state
        return reply

    def status(self) -> StatusReply:
        """How the worker is; answered at once, also while it works."""
        return StatusReply.from_wire(self._ask("status"))

    def wait_until_loaded(self) -> StatusReply:
        """The status once the worker has loaded its first models, or failed to (its problem)."""
        while (status := self.status()).state in ("starting", "loading"):
            time.sleep(STATUS_SECONDS)
        return status

    def models(self) -> list[ModelInfo]:
        """The models the worker knows."""
        return list(ModelsReply.from_wire(self._ask("models")).models)

    def unload(self) -> bool:
        """Have the models leave memory; False when that waits for work at hand."""
        return self._ask("unload").get("when") == "now"

    def shutdown(self) -> None:
        """Have the worker end; jobs that are open get the error "stopping"."""
        self._ask("shutdown")

    def cancel(self, job: str | None = None) -> None:
        """Cancel a job of this client, by default the one at hand; for progress listeners.

        The job then ends with an error of code "cancelled".
        """
        job = job or self._job
        if job is not None:
            self._channel.send("cancel", self._next_id(), CancelRequest(job).to_wire())

    # -- jobs -----------------------------------------------------------------------------------

    def detect(
        self,
        image: np.ndarray[Any, Any],
        options: DetectOptions | None = None,
        selection: np.ndarray[Any, Any] | None = None,
        on_progress: ProgressListener | None = None,
    ) -> DetectOutcome:
        """Find faces.

        image: (H, W, 3) or (H, W), uint8, uint16 or float32 in [0, 1], sRGB-encoded.
        selection: (H, W) uint8, bool or float in [0, 1].
        """
        from face_restore_worker.client import arrays

        spec, buffers = arrays.pack(image, selection)
        options = _detect_paths(options or DetectOptions())
        request = DetectRequest(spec, selection is not None, options)
        body, frames = self._run("detect", request.to_wire(), buffers, on_progress)
        rest, declared = wire.take_sizes(body)
        result = DetectResult.from_wire(rest)
        return arrays.detect_outcome(result, wire.collect(frames, declared, result.buffers))

    def restore(
        self,
        image: np.ndarray[Any, Any],
        *,
        detect: DetectOptions | None = None,
        restore: RestoreOptions | None = None,
        faces: Sequence[Face | FaceTarget] | None = None,
        selection: np.ndarray[Any, Any] | None = None,
        on_progress: ProgressListener | None = None,
    ) -> RestoreOutcome:
        """Restore faces: those given, or all that are found. See `detect` for the arrays.

        The picture is sent from where it lies: leave it as it is until this returns. An exception
        in `on_progress` and Ctrl-C cancel the job and are passed on.
        """
        from face_restore_worker.client import arrays

        spec, buffers = arrays.pack(image, selection)
        request = RestoreRequest(
            spec,
            selection is not None,
            _detect_paths(detect or DetectOptions()),
            _restore_paths(restore or RestoreOptions()),
            None if faces is None else tuple(arrays.target(face) for face in faces),
        )
        body, frames = self._run("restore", request.to_wire(), buffers, on_progress)
        rest, declared = wire.take_sizes(body)
        result = RestoreResult.from_wire(rest)
        return arrays.restore_outcome(result, wire.collect(frames, declared, result.buffers))

    # -- underneath -----------------------------------------------------------------------------

    def _next_id(self) -> str:
        return str(next(self._ids))

    def _ask(self, kind: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        request = self._next_id()
        self._channel.send(kind, request, body or {})
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            received = self._channel.receive(left)
            if received is not None and received[0].id == request:
                header = received[0]
                if header.type == "error":
                    raise ErrorReply.from_wire(header.body).to_error()
                return header.body
        raise WorkerNotAnswering(
            f"The worker (process {self.connection.pid}) did not answer {kind} "
            f"within {self._timeout:g} s.",
            hint=RESTART,
        )

    def _run(
        self,
        kind: str,
        body: Mapping[str, Any],
        buffers: Sequence[Any],
        on_progress: ProgressListener | None,
    ) -> tuple[Mapping[str, Any], list[Any]]:
        """Send a job and wait for its end, however long it takes, while the worker lives."""
        job = self._next_id()
        self._channel.send(kind, job, body, buffers)
        self._job = job
        try:
            return self._await(job, sum(memoryview(b).nbytes for b in buffers), on_progress)
        except FaceRestoreError:
            raise
        except BaseException:
            # Ctrl-C or a failing listener: free the worker, then pass it on.
            self.cancel(job)
            raise
        finally:
            self._job = None

    def _await(
        self, job: str, nbytes: int, on_progress: ProgressListener | None
    ) -> tuple[Mapping[str, Any], list[Any]]:
        silence = 0.0
        limit = self._timeout + nbytes / SLOWEST_BYTES  # until it is accepted
        stage = self._state
        while True:
            before = time.monotonic()
            received = self._channel.receive(POLL_SECONDS)
            if received is None:
                # Counted in short steps, so that a pause of this process is not the worker's.
                silence += min(time.monotonic() - before, 2 * POLL_SECONDS)
                if silence >= limit:
                    raise lost(self.connection, f"The worker has said nothing for {silence:.0f} s")
                continue
            silence = 0.0
            header, frames = received
            if header.id != job:
                if header.type == "error" and not header.id:
                    raise ErrorReply.from_wire(header.body).to_error()
                continue
            if header.type == "result":
                return header.body, frames
            if header.type == "error":
                raise ErrorReply.from_wire(header.body).to_error()
            if header.type == "progress":
                stage = self._state = Progress.from_wire(header.body).stage
            limit = PATIENT_LIMIT if stage in _PATIENT else PULSE_LIMIT
            if on_progress is not None:
                _tell(header, on_progress)


def _detect_paths(options: DetectOptions) -> DetectOptions:
    return replace(options, detector=_absolute(options.detector))


def _restore_paths(options: RestoreOptions) -> RestoreOptions:
    return replace(options, model=_absolute(options.model))


def _absolute(model: str) -> str:
    """A model file's path made absolute: the worker lives in another folder.

    A model's id stays one, as everywhere, though a file of that name may lie here.
    """
    path = Path(model).expanduser()
    if not os.path.isfile(path) or model == "auto":  # noqa: PTH113 - does not raise
        return model
    from face_restore_worker.models.catalogue import load_catalogue

    return model if any(entry.id == model for entry in load_catalogue()) else str(path.absolute())


def _tell(header: wire.Header, listener: ProgressListener) -> None:
    if header.type == "progress":
        listener(Progress.from_wire(header.body))
    elif header.type == "accepted":
        accepted = Accepted.from_wire(header.body)
        if accepted.position:
            text = f"{accepted.position} before this one"
            listener(Progress(accepted.job, "queued", text=text))
    elif header.type != "pulse":
        raise SchemaError(f"The worker sent a {header.type} message for a job.")
