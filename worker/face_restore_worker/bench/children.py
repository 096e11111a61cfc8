"""The parent's side of the variants' processes: start, ask, end, and what went wrong."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from face_restore_shared.errors import FaceRestoreError

_LOG_LINES = 5


class ChildFailed(FaceRestoreError):
    """A variant's process cannot do what it was asked for."""

    default_code = "bench"


class Child:
    """A process that holds one variant. A context manager.

    job: what ``child.main`` takes. log: the file for what it prints. more: for its environment.
    busy: processor seconds it had used at its last answer.
    """

    def __init__(
        self, job: dict[str, Any], log: Path, more: Mapping[str, str] | None = None
    ) -> None:
        from face_restore_worker.client.launch import environment

        self.busy = 0.0
        self._log = log
        environ = environment() | dict(more or {})
        job = job | {"spawned": time.time()}
        command = [sys.executable, "-P", "-m", "face_restore_worker.bench.child", json.dumps(job)]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environ,
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> dict[str, Any]:
        """Wait until it is loaded; {"load_seconds", "since_start"}. Raises ChildFailed."""
        return self._receive()

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """The answer to a request of ``child``. Raises ChildFailed."""
        try:
            stream = _open(self._process.stdin)
            stream.write(json.dumps({"do": what} | values).encode() + b"\n")
            stream.flush()
        except OSError as error:
            raise self._ended() from error
        return self._receive()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # a request that it never read
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> dict[str, Any]:
        line = _open(self._process.stdout).readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        self.busy = answer.pop("busy")
        if "error" in answer:
            raise ChildFailed(answer["error"])
        return answer

    def _ended(self) -> ChildFailed:
        status = self._process.wait()
        if status == -9:
            return ChildFailed("its process was killed, probably for lack of memory")
        lines = self._log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:]
        return ChildFailed(f"its process ended with status {status}: {' / '.join(lines)}")


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
