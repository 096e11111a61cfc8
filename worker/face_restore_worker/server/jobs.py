"""Jobs waiting and running, in order. Pure bookkeeping: no sockets, no threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.wire import Buffer

from face_restore_worker.server.engine_api import Request


@dataclass(frozen=True)
class Limits:
    """What one worker takes before it says "busy".

    jobs_per_client, jobs: waiting or running, for one client and in all.
    queued_bytes: of pixels in all jobs that have not ended; a job that comes while nothing waits
        or runs is always taken. Also of results that one client has not taken yet, of which there
        may be jobs_per_client.
    """

    jobs_per_client: int = 32
    jobs: int = 256
    queued_bytes: int = 2 << 30


@dataclass(eq=False)
class Job:
    """One detect or restore request.

    client: the connection's routing id. answered: its result or error has been sent.
    cancelled: set when nobody wants the result any more; the engine looks before each face.
    """

    client: bytes
    id: str
    request: Request
    payload: list[Buffer]
    nbytes: int
    position: int = -1
    stage: str = "queued"
    faces: int = 0
    answered: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def kind(self) -> str:
        """ "restore" or "detect"."""
        return "restore" if hasattr(self.request, "restore") else "detect"

    def drop(self) -> None:
        """Nobody wants it any more: stop before the next face and free the pixels."""
        self.cancelled.set()
        self.payload = []


@dataclass
class Tally:
    """How many jobs have ended how; cancelled are also those whose client went away."""

    done: int = 0
    failed: int = 0
    cancelled: int = 0

    def count_error(self, code: str) -> None:
        """A job ended with the error of this code."""
        if code in ("cancelled", "stopping"):
            self.cancelled += 1
        else:
            self.failed += 1


class JobQueue:
    """First come, first served; one runs at a time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.running: Job | None = None
        self.waiting: list[Job] = []

    def __iter__(self) -> Iterator[Job]:
        """All unanswered jobs, the running one first."""
        if self.running is not None and not self.running.answered:
            yield self.running
        yield from self.waiting

    def find(self, client: bytes, job_id: str) -> Job | None:
        """The client's unanswered job of that id."""
        return next((j for j in self if j.client == client and j.id == job_id), None)

    def of_client(self, client: bytes) -> list[Job]:
        """The client's unanswered jobs."""
        return [job for job in self if job.client == client]

    def add(self, job: Job, untaken: int = 0, untaken_bytes: int = 0) -> None:
        """Append; raises FaceRestoreError with code "busy" when a limit is reached.

        untaken, untaken_bytes: results under way to the client that it has not read.
        """
        own = sum(1 for other in self if other.client == job.client)
        total = sum(1 for _ in self)
        held = sum(other.nbytes for other in self.waiting)
        if self.running is not None:  # counts until the engine lets go of it, also when cancelled
            held += self.running.nbytes
        hint = "Wait for results before sending more pictures."
        if own >= self.limits.jobs_per_client:
            why = f"This client has {own} pictures waiting already"
        elif untaken >= self.limits.jobs_per_client or untaken_bytes > self.limits.queued_bytes:
            why = f"This client has left {untaken} results unread"
        elif total >= self.limits.jobs:
            why = f"The worker has {total} pictures waiting already"
        elif total and held + job.nbytes > self.limits.queued_bytes:
            why = f"The worker holds {held >> 20} MiB of waiting pictures already"
        else:
            self.waiting.append(job)
            return
        raise FaceRestoreError(f"{why}.", hint=hint, code="busy")

    def next(self) -> Job | None:
        """Make the first waiting job the running one; None when one runs or none waits."""
        if self.running is not None or not self.waiting:
            return None
        self.running = self.waiting.pop(0)
        return self.running

    def remove(self, job: Job) -> None:
        """Take a waiting job out; the running one stays until the engine lets go of it."""
        if job in self.waiting:
            self.waiting.remove(job)

    def moved(self) -> list[Job]:
        """Jobs whose number of jobs before them has changed since the last call."""
        changed = []
        ahead = 1 if self.running is not None else 0
        for position, job in enumerate(self.waiting, start=ahead):
            if job.position != position:
                job.position = position
                changed.append(job)
        return changed
