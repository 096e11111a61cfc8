"""One authenticated connection to the worker: frames in, frames out, and when it breaks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import zmq
from face_restore_shared import wire
from face_restore_shared.connection import USERNAME, Connection
from zmq.utils.monitor import recv_monitor_message

from face_restore_worker.client.errors import (
    RESTART,
    START,
    TokenRefused,
    WorkerLost,
    WorkerNotAnswering,
    WorkerNotRunning,
)

# libzmq's own pings, answered by its threads even while Python is busy: they find a worker that
# is stopped or frozen within three seconds. The worker's pulses find one whose loop hangs.
PING_MS = 500
PING_TIMEOUT_MS = 2400
LINGER_MS = 300
FLUSH_MS = 100
PATIENCE_SECONDS = 1.0  # before the system is asked whether a silent worker was stopped

_BROKEN = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_WATCHED = _BROKEN | _FAILED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_SUCCEEDED


class Channel:
    """Connected once and never again: a worker that goes away is gone for this channel.

    Not for use from several threads. Raises WorkerNotRunning, WorkerNotAnswering or TokenRefused
    when no connection comes about within `timeout` seconds.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.connection = connection
        self._lost = False
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        options: dict[int, int | bytes] = {
            zmq.PLAIN_USERNAME: USERNAME.encode(),
            zmq.PLAIN_PASSWORD: connection.token.encode(),
            # Never in practice. With -1, "do not", libzmq drops what was received but not yet read.
            zmq.RECONNECT_IVL: 24 * 3600 * 1000,
            zmq.LINGER: LINGER_MS,
            zmq.MAXMSGSIZE: wire.MAX_FRAME,
            zmq.SNDHWM: 0,
            zmq.RCVHWM: 0,
            zmq.HEARTBEAT_IVL: PING_MS,
            zmq.HEARTBEAT_TIMEOUT: PING_TIMEOUT_MS,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        try:
            self._socket.connect(connection.endpoint)
            self._shake_hands(timeout)
        except BaseException:
            self.close(linger_ms=0)
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def send(
        self, kind: str, request: str, body: Mapping[str, Any], buffers: Sequence[Any] = ()
    ) -> None:
        """Send a message; `buffers` are not copied and must stay as they are until answered."""
        frames = wire.message(kind, request, body, buffers)
        while not self._lost and self._monitor.poll(0):
            self._watch()
        if self._lost:
            raise self._lost_error()
        try:
            # Without a limit on what may wait, only a broken connection refuses.
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._lost = True
            raise self._lost_error() from None

    def receive(self, seconds: float) -> tuple[wire.Header, list[Any]] | None:
        """The next message and its pixel frames; None when none comes within `seconds`.

        Raises WorkerLost when the connection broke and everything that came before was received,
        and ProtocolMismatch or SchemaError for a message that cannot be understood.
        """
        deadline = time.monotonic() + seconds
        while True:
            frames = self._receive_now()
            if frames is not None:
                header = wire.decode_header(frames[0])
                wire.check_version(header, peer="worker")
                return header, frames[1:]
            if self._lost:
                raise self._lost_error()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            ready = dict(self._poller.poll(int(left * 1000) + 1))
            if self._monitor in ready:
                self._watch()
                if self._lost:
                    # libzmq tells the break before it hands over what arrived just before.
                    self._socket.poll(FLUSH_MS)

    def close(self, *, linger_ms: int = LINGER_MS) -> None:
        """Close; may be called twice."""
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0 if self._lost else linger_ms)
        self._context.term()

    def _watch(self) -> None:
        event = recv_monitor_message(self._monitor)["event"]
        self._lost = self._lost or bool(event & (_BROKEN | _FAILED))

    def _receive_now(self) -> list[Any] | None:
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return [frame.buffer for frame in frames]

    def _shake_hands(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        where = f"the worker (process {self.connection.pid}, {self.connection.endpoint})"
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerNotAnswering(
                    f"There was no answer from {where} within {timeout:g} s.", hint=RESTART
                )
            if not self._monitor.poll(int(min(left, PATIENCE_SECONDS) * 1000) + 1):
                self._check_stopped()
                continue
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise TokenRefused(f"The token was refused by {where}.", hint=RESTART)
            if event & _FAILED:
                raise WorkerNotRunning(
                    f"Something else than a worker listens on {self.connection.endpoint}.",
                    hint=START,
                )
            if event & _BROKEN:
                raise WorkerNotRunning(f"Nothing was reached of {where}.", hint=START)

    def _check_stopped(self) -> None:
        """Raise when the worker's process is stopped: then waiting does not help."""
        pid = self.connection.pid
        if is_stopped(pid):
            raise WorkerNotAnswering(
                f"The worker (process {pid}) does not answer: its process was stopped (SIGSTOP).",
                hint=f"Let it go on: kill -CONT {pid}. {RESTART}",
            )

    def _lost_error(self) -> WorkerLost:
        return lost(self.connection, "The connection to the worker broke")


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal, and will do nothing until it is continued."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def lost(connection: Connection, what: str) -> WorkerLost:
    """A WorkerLost that says where to look."""
    return WorkerLost(f"{what} (process {connection.pid}).", hint=f"Its log: {connection.log}.")
