"""An engine without a network, and the real worker process around it (`python fake_engine.py`).

The restore option `model` scripts a job, e.g. "faces=3;delay=0.2": `faces` to restore when the
request names none, `delay` seconds for each, `until` a file without which no face gets done, so
that a test says when, however busy the machine is; `fail` an error code to raise at the second
face ("internal": an exception without a code), `spin=1` to burn Python bytecode, not to sleep.
Each face's start is appended to the file named by FAKE_ENGINE_TRACE. The worker looks after its
connection file every FAKE_ENGINE_UPKEEP seconds, by default not: tests put other files there.
Loading takes FAKE_ENGINE_START_DELAY seconds, and lasts until there is FAKE_ENGINE_START_UNTIL.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import (
    DetectRequest,
    DetectResult,
    FaceReport,
    PatchSpec,
    RestoreResult,
)

LANDMARKS = ((3, 4), (9, 4), (6, 7), (4, 10), (8, 10))
SIDE = 12
UNTIL_SECONDS = 120.0  # for a test that hangs


def _script(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(";") if "=" in part)


def _trace(text: str) -> None:
    name = os.environ.get("FAKE_ENGINE_TRACE")
    if name:
        with Path(name).open("a") as file:
            file.write(text + "\n")


def _work(seconds: float, spin: bool, until: Path | None) -> None:
    deadline = time.monotonic() + UNTIL_SECONDS
    while until is not None and not until.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    end = time.monotonic() + seconds
    if spin:
        count = 0
        while time.monotonic() < end:
            count += 1
    else:
        time.sleep(seconds)


class FakeEngine:
    """Gives back a piece of the picture for each face."""

    def __init__(self, start_delay: float = 0.0, start_fails: bool = False) -> None:
        self._loaded: list[str] = []
        self._start_delay = start_delay
        self._start_fails = start_fails

    def describe(self) -> dict[str, Any]:
        device = {"kind": "cpu", "name": "Fake", "memory_total": 1000, "memory_free": 500}
        return {"device": device, "models_loaded": list(self._loaded)}

    def models(self) -> list[dict[str, Any]]:
        return [
            {
                "id": "fake",
                "name": "Fake",
                "kind": "restorer",
                "installed": True,
                "builtin": True,
                "licence": "MIT",
                "size": 1,
                "purpose": "tests",
                "default": True,
            }
        ]

    def warm_up(self) -> None:
        until = os.environ.get("FAKE_ENGINE_START_UNTIL")
        _work(self._start_delay, False, Path(until) if until else None)
        if self._start_fails:
            more = " x" * int(os.environ.get("FAKE_ENGINE_WORDS", "0"))
            raise FaceRestoreError(
                f"The model is broken.{more}", hint=f"Get it again.{more}", code="checkpoint"
            )
        self._loaded = ["Fake"]
        _trace("loaded")

    def rest(self) -> None:
        _trace("rested")

    def unload(self) -> None:
        self._loaded = []
        _trace("unloaded")

    def run(self, request: Any, buffers: Any, *, progress: Any, cancelled: Any) -> Any:
        pixels = buffers[0].take()
        if not self._loaded:
            progress("loading-model", 0, 0, 0.0)
            self.warm_up()
        progress("detecting", 0, 0, 0.0)
        if isinstance(request, DetectRequest):
            face = FaceReport((0, 0, SIDE, SIDE), LANDMARKS, 0.9)
            return DetectResult((face,), "fake", {"detecting": 0.0}), []
        return self._restore(request, pixels, progress, cancelled)

    def _restore(self, request: Any, pixels: memoryview, progress: Any, cancelled: Any) -> Any:
        script = _script(request.restore.model)
        count = int(script.get("faces", "1")) if request.faces is None else len(request.faces)
        whole = script.get("echo") == "1"
        until = Path(script["until"]) if "until" in script else None
        reports, out = [], []
        for number in range(1, count + 1):
            if cancelled():
                _trace("cancelled")
                raise FaceRestoreError("The job was cancelled.", code="cancelled")
            _trace(f"face {number}")
            progress("restoring", number, count, (number - 1) / count)
            _work(float(script.get("delay", "0")), script.get("spin") == "1", until)
            if number == 2 and "fail" in script:
                if script["fail"] == "internal":
                    raise ZeroDivisionError("as the script says")
                raise FaceRestoreError("It failed.", hint="Try again.", code=script["fail"])
            width = request.image.width if whole else min(SIDE, request.image.width)
            height = request.image.height if whole else min(SIDE, request.image.height)
            spec = PatchSpec(0, 0, width, height, "uint8")
            reports.append(
                FaceReport(
                    (0, 0, width, height),
                    LANDMARKS,
                    0.9,
                    matrix=((1, 0, 0), (0, 1, 0)),
                    crop_size=64,
                    patch=spec,
                    strength=request.restore.strength,
                )
            )
            rgb = pixels if whole else bytes(width * height * 3)
            out += [rgb, b"\xff" * (width * height)]
        progress("pasting", count, count, 1.0)
        return RestoreResult(tuple(reports), "Fake", "fake", "fake", "Fake"), out


def main() -> int:
    """The worker process around a FakeEngine."""
    from face_restore_worker.server import loop
    from face_restore_worker.server.process import main as worker_main

    loop.UPKEEP_SECONDS = float(os.environ.get("FAKE_ENGINE_UPKEEP", "3600"))
    delay = float(os.environ.get("FAKE_ENGINE_START_DELAY", "0"))
    fails = os.environ.get("FAKE_ENGINE_START_FAILS") == "1"
    if os.environ.get("FAKE_ENGINE_CRASH") == "1":
        raise RuntimeError("this worker cannot start")
    if "FAKE_ENGINE_REST" in os.environ:
        from face_restore_worker.server import idle

        idle.REST_SECONDS = float(os.environ["FAKE_ENGINE_REST"])
    return worker_main(sys.argv[1:], lambda args: FakeEngine(delay, fails))


if __name__ == "__main__":
    sys.exit(main())
