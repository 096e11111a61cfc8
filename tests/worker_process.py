"""Real worker processes and raw clients for the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq
from face_restore_shared import connection, wire
from face_restore_shared.connection import USERNAME, Connection
from face_restore_shared.schema import StatusReply

FAKE = [sys.executable, str(Path(__file__).with_name("fake_engine.py"))]


HANG_SECONDS = 120.0  # what takes longer does not come: a busy machine is given time


def eventually(condition: Callable[[], Any], what: str, seconds: float = HANG_SECONDS) -> Any:
    """What `condition` returns once it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


class Worker:
    """A worker process with a FakeEngine and a home of its own."""

    def __init__(self, home: Path, *options: str, **env: str) -> None:
        self.home = home
        self.trace_file = home / "trace"
        self.env = {
            **os.environ,
            "FACE_RESTORE_HOME": str(home),
            "FAKE_ENGINE_TRACE": str(self.trace_file),
            **env,
        }
        self.options = options
        self.file = home / "state" / "worker.json"
        self.log_file = home / "state" / "logs" / "worker.log"
        self.process = self.spawn()

    def spawn(self) -> subprocess.Popen[bytes]:
        command = [*FAKE, "--quiet", *self.options]
        return subprocess.Popen(
            command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> Worker:
        try:
            eventually(self._is_this_one, "the connection file")
        except BaseException:
            self.end()
            raise
        return self

    def _is_this_one(self) -> bool:
        found = connection.read(self.file)
        return found is not None and found.pid == self.process.pid

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def connection(self) -> Connection:
        found = connection.read(self.file)
        assert found is not None
        return found

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def trace(self) -> list[str]:
        return self.trace_file.read_text().split("\n")[:-1] if self.trace_file.exists() else []

    def raw(self) -> RawClient:
        return RawClient(self.connection)


class RawClient:
    """A DEALER that says what it is told to."""

    def __init__(self, to: Connection, token: str | None = None, room: int = 1000) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = room
        if room == 1:
            self.socket.rcvbuf = 4096
        self.socket.plain_username = USERNAME.encode()
        self.socket.plain_password = (token or to.token).encode()
        self.socket.connect(to.endpoint)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        self.context.term()

    def send(
        self, kind: str, request: str, body: dict[str, Any], buffers: Sequence[Any] = ()
    ) -> None:
        self.socket.send_multipart(wire.message(kind, request, body, buffers))

    def receive(self, seconds: float = HANG_SECONDS) -> tuple[wire.Header, list[bytes]]:
        assert self.socket.poll(int(seconds * 1000)), "the worker said nothing"
        first, *rest = self.socket.recv_multipart()
        return wire.decode_header(first), rest

    def receive_final(self, seconds: float = HANG_SECONDS) -> tuple[wire.Header, list[bytes]]:
        """The next message that is no pulse, progress or accepted."""
        while True:
            header, frames = self.receive(seconds)
            if header.type not in ("pulse", "progress", "accepted"):
                return header, frames

    def receive_of(self, kinds: Sequence[str]) -> wire.Header:
        """The next message of one of these types."""
        while True:
            header, _ = self.receive()
            if header.type in kinds:
                return header

    def ask(self, kind: str, request: str = "q", body: Any = None) -> wire.Header:
        """The answer to a short request."""
        self.send(kind, request, body or {})
        while True:
            header, _ = self.receive()
            if header.id == request:
                return header

    def restore(self, request: str, script: str = "", width: int = 32, height: int = 24) -> None:
        """Send a restore job with a black picture; `script` is for the FakeEngine."""
        body = {
            "image": {"width": width, "height": height, "channels": 3, "dtype": "uint8"},
            "restore": {"model": script or "x", "patch_dtype": "uint8"},
        }
        self.send("restore", request, body, [bytes(width * height * 3)])


def state(client: RawClient) -> str:
    """What the worker says it does: "ready", "busy" and so on."""
    return StatusReply.from_wire(client.ask("status").body).state


def faces(worker: Worker) -> int:
    """How many faces the worker has begun."""
    return sum(line.startswith("face") for line in worker.trace)


def start_job(client: RawClient, worker: Worker, job: str, script: str, **size: int) -> None:
    """Send a job and wait until its first face is being restored."""
    before = faces(worker)
    client.restore(job, script, **size)
    eventually(lambda: faces(worker) > before, "the job runs")


@contextlib.contextmanager
def untouched_worker(home: Path) -> Iterator[Worker]:
    """One worker for many tests, all of which must leave it alive and without a job."""
    with Worker(home) as running:
        with running.raw() as client:
            eventually(lambda: state(client) == "ready", "the worker is ready")
        yield running
        with running.raw() as client:
            assert StatusReply.from_wire(client.ask("status").body).queue == 0
        assert running.process.poll() is None
