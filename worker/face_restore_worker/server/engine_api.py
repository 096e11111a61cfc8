"""The only thing the server knows of inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from face_restore_shared.schema import DetectRequest, DetectResult, RestoreRequest, RestoreResult
from face_restore_shared.wire import Buffer

Request = DetectRequest | RestoreRequest
Result = DetectResult | RestoreResult

# stage (one of schema.STAGES), face counted from 1, number of faces, fraction of the job 0 to 1
ProgressCallback = Callable[[str, int, int, float], None]


class Engine(Protocol):
    """What restores faces. Making one is cheap and imports nothing heavy.

    `warm_up`, `run`, `rest` and `unload` are called from one thread, the engine thread; `describe`
    and `models` from others too, at any time.
    """

    def describe(self) -> dict[str, Any]:
        """{"device": {kind, name, memory_total, memory_free}, "models_loaded": [name, ...]}.

        Quick: no waiting for a running job.
        """
        ...

    def models(self) -> list[dict[str, Any]]:
        """The models known, as maps of schema.ModelInfo; may look at the disk."""
        ...

    def warm_up(self) -> None:
        """Load the default models and run them once; raises what a job would raise."""
        ...

    def run(
        self,
        request: Request,
        buffers: Sequence[Buffer],
        *,
        progress: ProgressCallback,
        cancelled: Callable[[], bool],
    ) -> tuple[Result, list[Any]]:
        """Do one job.

        buffers: the picture's bytes and, when request.selection, the selection's; `take()` them.
        cancelled: asked before each face, and often in a search; when true raise an error with
            code "cancelled".
        Returns the result and its pixel buffers (bytes-like, C-contiguous), whose sizes are
        `result.buffers`. An exception with code, message and hint becomes the job's error.
        """
        ...

    def rest(self) -> None:
        """Let go of memory that the next job takes anew by itself; the models stay."""
        ...

    def unload(self) -> None:
        """Let go of the models; the next job loads them again."""
        ...
