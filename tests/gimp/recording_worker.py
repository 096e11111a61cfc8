"""The real worker, which also lets the checks inside GIMP see and steer what it does.

In the folder `suite` of FACE_RESTORE_HOME:
  last.json, last.bin  the last restore request and its answer, and their pixels
  trace                a line for each face begun, "dropped" where a job was cancelled while it
                       waited, "ended" for each job
  hold                 while it exists, a job waits where it begins a face, or until it is cancelled
  instant              while it exists, no face is looked for: the picture's middle comes back
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from face_restore_shared.schema import FaceReport, PatchSpec, RestoreRequest, RestoreResult
from face_restore_worker.engine.engine import RestorerEngine

FOLDER = Path(os.environ.get("FACE_RESTORE_HOME", ".")) / "suite"
LARGEST = 4_000_000  # pixels; larger pictures are not kept
HOLD_SECONDS = 600.0  # should nobody take it away


class RecordingEngine(RestorerEngine):
    """The real engine and pipeline; see above."""

    def run(self, request: Any, buffers: Sequence[Any], *, progress: Any, cancelled: Any) -> Any:
        """As RestorerEngine.run."""
        if not isinstance(request, RestoreRequest):
            return super().run(request, buffers, progress=progress, cancelled=cancelled)
        kept = [memoryview(buffer.take()) for buffer in buffers]
        if (FOLDER / "instant").exists():
            result, answer = _middle(request, kept)
        else:
            again, holding = [_Kept(view) for view in kept], _holding(progress, cancelled)
            try:
                result, answer = super().run(request, again, progress=holding, cancelled=cancelled)
            finally:
                _trace("ended")
        if request.image.width * request.image.height <= LARGEST:
            _record(request, kept, result, answer)
        return result, answer


class _Kept:
    """A buffer that was taken already; as wire.Buffer."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.nbytes = view.nbytes

    def take(self, _allocate: Any = None) -> memoryview:
        return self._view


def _trace(line: str) -> None:
    with (FOLDER / "trace").open("a") as file:
        file.write(line + "\n")


def _holding(progress: Any, cancelled: Any) -> Any:
    def report(stage: str, face: int, faces: int, fraction: float) -> None:
        progress(stage, face, faces, fraction)
        if stage != "aligning":
            return
        _trace(f"face {face} of {faces}")
        deadline = time.monotonic() + HOLD_SECONDS
        while (FOLDER / "hold").exists() and time.monotonic() < deadline:
            if cancelled():
                return _trace("dropped")
            time.sleep(0.01)

    return report


def _middle(request: RestoreRequest, kept: Sequence[memoryview]) -> tuple[RestoreResult, list[Any]]:
    """The picture's middle as a patch, at once."""
    import numpy as np

    spec = request.image
    shape = (spec.height, spec.width, spec.channels)
    picture = np.frombuffer(kept[0], spec.dtype).reshape(shape).astype(np.float32)
    if spec.dtype != "float32":
        picture /= np.iinfo(spec.dtype).max
    x, y, w, h = spec.width // 4, spec.height // 4, spec.width // 2, spec.height // 2
    rgb = np.ascontiguousarray(np.broadcast_to(picture[y : y + h, x : x + w], (h, w, 3)))
    mask = np.full((h, w), 0.5, np.float32)
    points = tuple((x + dx * w, y + dy * h) for dx, dy in
                   ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)))  # fmt: skip
    face = FaceReport(
        box=(x, y, x + w, y + h),
        landmarks=points,
        score=1.0,
        matrix=((1.0, 0.0, -float(x)), (0.0, 1.0, -float(y))),
        crop_size=w,
        patch=PatchSpec(x, y, w, h, "float32"),
    )
    return RestoreResult(faces=(face,), model="middle", model_id="middle"), [rgb, mask]


def _record(
    request: RestoreRequest, kept: Sequence[memoryview], result: RestoreResult, answer: list[Any]
) -> None:
    """The checks' Python has no numpy: plain bytes, and JSON that names their sizes."""
    parts = [bytes(view) for view in kept] + [bytes(memoryview(a).cast("B")) for a in answer]
    (FOLDER / "last.bin").write_bytes(b"".join(parts))
    told = {
        "request": request.to_wire(),
        "result": result.to_wire(),
        "sent": [view.nbytes for view in kept],
        "answered": [memoryview(a).nbytes for a in answer],
    }
    part = FOLDER / "last.json.part"
    part.write_text(json.dumps(told))
    part.replace(FOLDER / "last.json")


def main() -> int:
    """The worker process around it."""
    from face_restore_worker.server.process import main as worker_main

    FOLDER.mkdir(parents=True, exist_ok=True)
    return worker_main(sys.argv[1:], lambda args: RecordingEngine("cpu"))


if __name__ == "__main__":
    sys.exit(main())
