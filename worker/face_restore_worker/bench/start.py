"""How soon commands and imports answer: each in a fresh process, nothing kept warm but the disk."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

#: What is timed: name for people, arguments of Python.
_COMMANDS = {
    "face-restore --help": ["-m", "face_restore_worker.cli", "--help"],
    "face-restore status": ["-m", "face_restore_worker.cli", "status"],
}
_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
_IMPORTS = {
    "import face_restore_shared": "face_restore_shared",
    "import all that a client needs of it": "face_restore_shared.schema, "
    "face_restore_shared.wire, face_restore_shared.connection, face_restore_shared.zmtp",
}


def measure(rounds: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of {"what", "median", "fastest", "slowest"}, seconds; imports without Python's start."""
    from face_restore_worker.client.launch import environment

    environ = environment()
    rows = []
    for what, arguments in _COMMANDS.items():
        tell(what)
        seconds = []
        for _ in range(rounds):
            begin = time.perf_counter()
            # "No worker is running" is status 3.
            subprocess.run([sys.executable, *arguments], env=environ, capture_output=True)
            seconds.append(time.perf_counter() - begin)
        rows.append(_row(what, seconds))
    for what, modules in _IMPORTS.items():
        tell(what)
        code = _IMPORT.format(modules)
        seconds = []
        for _ in range(rounds):
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=environ,
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(float(done.stdout))
        rows.append(_row(what, seconds))
    return rows


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "median": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
    }
