"""A worker that is there when needed: started, found again, restarted once when it dies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.client import launch
from face_restore_worker.client.client import WorkerClient
from face_restore_worker.client.errors import WorkerLost, WorkerNotAnswering, WorkerNotRunning

if TYPE_CHECKING:
    import numpy as np

    from face_restore_worker.client.arrays import DetectOutcome
    from face_restore_worker.pipeline.types import RestoreOutcome

T = TypeVar("T")


class WorkerSession:
    """Keeps one connection over many pictures. A context manager; for one thread.

    options, command, timeout: as for launch.ensure_worker. start: whether a worker may be started.
    on_event: told in one sentence when a worker is started or was lost.
    """

    def __init__(
        self,
        *,
        start: bool = True,
        options: Sequence[str] = (),
        command: Sequence[str] | None = None,
        timeout: float = launch.START_SECONDS,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        self._start = start
        self._options = tuple(options)
        self._command = command
        self._timeout = timeout
        self._on_event = on_event or (lambda text: None)
        self._client: WorkerClient | None = None

    def __enter__(self) -> WorkerSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the worker stays."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def client(self) -> WorkerClient:
        """The connection, made when there is none."""
        if self._client is None:
            try:
                self._client = self._connect()
            except (WorkerLost, WorkerNotRunning):
                if not self._start:
                    raise
                self._client = self._connect()  # it ended just then
        return self._client

    def _connect(self) -> WorkerClient:
        found = launch.ensure_worker(
            self._start,
            self._timeout,
            self._options,
            command=self._command,
            on_start=lambda: self._on_event("Starting the worker."),
        )
        return WorkerClient.connect(found)

    def detect(self, image: np.ndarray[Any, Any], **arguments: Any) -> DetectOutcome:
        """WorkerClient.detect, with a lost worker replaced once."""
        return self._retried(lambda client: client.detect(image, **arguments))

    def restore(self, image: np.ndarray[Any, Any], **arguments: Any) -> RestoreOutcome:
        """WorkerClient.restore, with a lost worker replaced once."""
        return self._retried(lambda client: client.restore(image, **arguments))

    def _retried(self, job: Callable[[WorkerClient], T]) -> T:
        try:
            return job(self._connected())
        except (WorkerLost, WorkerNotAnswering) as error:
            if self._client is None and isinstance(error, WorkerNotAnswering):
                raise  # it was like that before: trying again only makes the user wait
            lost = error
        except FaceRestoreError as error:
            # A worker told to stop while it had our job; a job refused is not tried again.
            if error.code != "stopping":
                raise
            lost = WorkerLost(error.message, hint=error.hint)
        if not self._start:
            self.close()
            raise lost
        self._on_event(f"{lost.message} Starting it again, once.")
        self._clear()
        try:
            return job(self.client())
        except WorkerLost as error:
            self.close()
            raise WorkerLost(
                f"The worker was lost twice on this picture: {error.message}",
                hint=f"{error.hint} A smaller picture or --no-worker may help.",
            ) from error

    def _connected(self) -> WorkerClient:
        """The connection; a worker that ended since the last picture is just started anew."""
        if self._client is not None:
            try:
                self._client.hello()
            except (WorkerLost, WorkerNotRunning):
                self.close()
        return self.client()

    def _clear(self) -> None:
        """Leave nothing of a worker that is lost: one that hangs is ended."""
        client, self._client = self._client, None
        if client is None:
            return
        client.close()
        # Only a process that does not answer is ended; another client may have restarted it.
        with contextlib.suppress(FaceRestoreError):
            found = launch.find()
            if found is None or found != client.connection:
                return
            try:
                WorkerClient.connect(found, timeout=1.0).close()
            except WorkerNotAnswering:
                launch.kill(found, grace=1.0)


def restore_with_retry(
    image: np.ndarray[Any, Any],
    *,
    on_event: Callable[[str], None] | None = None,
    session: WorkerSession | None = None,
    **arguments: Any,
) -> RestoreOutcome:
    """Restore one picture through the worker, restarting a worker that dies in the middle once.

    on_event: told when a worker is started or was lost (with `session`, its own is used).
    arguments: those of WorkerClient.restore.
    """
    if session is not None:
        return session.restore(image, **arguments)
    with WorkerSession(on_event=on_event) as own:
        return own.restore(image, **arguments)
