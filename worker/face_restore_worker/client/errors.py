"""What can be wrong between a client and the worker."""

from __future__ import annotations

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.errors import WorkerLost

START = "Start it: face-restore worker start."
RESTART = "Restart it: face-restore worker restart."


class WorkerNotRunning(FaceRestoreError):
    """There is no worker to talk to."""

    default_code = "worker-not-running"


class WorkerNotAnswering(FaceRestoreError):
    """A worker's process is there but says nothing in time."""

    default_code = "worker-not-answering"


class TokenRefused(FaceRestoreError):
    """The worker does not accept the token."""

    default_code = "wrong-token"


class WorkerStartFailed(FaceRestoreError):
    """A worker was started and ended, or did not get ready in time."""

    default_code = "worker-start"


__all__ = [
    "RESTART",
    "START",
    "TokenRefused",
    "WorkerLost",
    "WorkerNotAnswering",
    "WorkerNotRunning",
    "WorkerStartFailed",
]
