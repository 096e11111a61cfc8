"""Raw bytes for the worker's port: a real server loop and sockets, no network in the engine."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from face_restore_shared import wire, zmtp_frames
from face_restore_shared.connection import USERNAME
from face_restore_shared.zmtp import ZmtpClient, ZmtpError
from face_restore_worker.server.loop import Server
from fake_engine import FakeEngine
from fuzz_common import MB, Finding, Target
from wire_targets import EXAMPLES, cut_frames, mutate_message, pack_frames

_SILENCE = 60.0  # seconds after which a worker that says nothing hangs


class _Lasting(Server):
    """A server that nobody can stop, and that counts who was let in and who was heard."""

    def __init__(self) -> None:
        super().__init__(FakeEngine(), idle=None)
        self.messages = 0
        self.let_in = 0
        self.heard: set[bytes] = set()
        self._allowed = self._zap._allowed
        self._zap._allowed = self._count  # type: ignore[method-assign]

    def _count(self, question: list[bytes]) -> bool:
        allowed = self._allowed(question)
        self.let_in += allowed
        return allowed

    def stop(self, reason: str) -> None:
        pass

    def _receive(self) -> None:
        for _ in range(16):
            received = self._transport.receive()
            if received is None:
                return
            self.messages += 1
            self.heard.add(received[0])
            self._service.handle_message(*received)


class _Port:
    """The server in a thread of this process, and a well-behaved client beside the hostile one."""

    def __init__(self) -> None:
        self.server = _Lasting()
        self.where = self.server.bind()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.client = self.connect()
        self.asked = 0

    def _run(self) -> None:
        try:
            self.server.run()
        except BaseException as error:
            self.failure = error
            raise

    def connect(self) -> ZmtpClient:
        return ZmtpClient(
            "127.0.0.1", self.where.port, USERNAME, self.where.token, patience=_SILENCE
        )

    def poke(self, data: bytes) -> None:
        """Send bytes on a connection of their own, and wait until the worker closed it."""
        with socket.create_connection(("127.0.0.1", self.where.port)) as peer:
            peer.settimeout(_SILENCE)
            try:
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65536):
                    pass
            except TimeoutError:
                raise Finding("the worker keeps a connection that the peer has closed") from None
            except OSError:  # closed on us
                return

    def after_login(self, data: bytes) -> None:
        """Send bytes on a connection that is let in, and wait until the worker closed it."""
        with self.connect() as peer, contextlib.suppress(ZmtpError, OSError):
            peer._send_all(data)
            peer._socket.shutdown(socket.SHUT_WR)
            while True:
                peer.receive(_SILENCE)

    def tell(self, frames: list[bytes]) -> None:
        """Send a message, then ask for the status: the answer says that the message was heard."""
        with self.connect() as peer:
            if frames:
                peer.send(frames)
            peer.send([wire.encode_header("status", "probe", {})])
            try:
                while wire.decode_header(peer.receive(_SILENCE)[0]).id != "probe":
                    pass
            except ZmtpError as error:
                raise Finding("the worker hung up on a message of allowed size") from error

    def alive(self) -> None:
        """The other client must be served, whatever the hostile one did."""
        self.asked += 1
        self.client.send([wire.encode_header("status", str(self.asked), {})])
        reply = wire.decode_header(self.client.receive(_SILENCE)[0])
        if self.failure is not None or not self.thread.is_alive():
            raise Finding("the server's loop ended") from self.failure
        if (reply.type, reply.id) != ("status", str(self.asked)):
            raise Finding(f"another client got {reply.type} {reply.id}")


_port: _Port | None = None


def check_port(data: bytes) -> None:
    """The first byte: 0 bytes before authentication, 1 frames' bytes after it, 2 whole messages."""
    global _port
    if not data:
        return
    if _port is None:
        _port = _Port()
    mode, rest = data[0] % 3, data[1:]
    before = _port.server.let_in
    if mode == 0:
        _port.poke(rest)
    elif mode == 1:
        _port.after_login(rest)
    else:
        _port.tell(cut_frames(rest))
    _port.alive()
    if mode == 0 and _port.server.let_in != before:
        raise Finding("somebody without the token was let in")
    if len(_port.server.heard) > _port.server.let_in:
        raise Finding("a message without authentication reached the program")


def _greeting(mechanism: bytes, version: bytes = b"\x03\x01") -> bytes:
    return b"\xff" + bytes(8) + b"\x7f" + version + mechanism.ljust(20, b"\0") + bytes(32)


def _login(token: str) -> bytes:
    ready = zmtp_frames.initiate({"Socket-Type": b"DEALER", "Identity": b""})
    hello = zmtp_frames.hello(USERNAME.encode(), token.encode())
    return zmtp_frames.greeting() + hello + ready


def port_seeds() -> list[bytes]:
    null = zmtp_frames.encode_command(
        b"READY", zmtp_frames.encode_metadata({"Socket-Type": b"DEALER"})
    )
    message = wire.encode_header("shutdown", "1", {})
    frame = zmtp_frames.encode_header(len(message)) + message
    before = [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n\r\n",
        b"\x01\x00\x09\x01shutdown",
        b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00" + frame,
        _greeting(b"NULL") + null + frame,
        _greeting(b"CURVE") + zmtp_frames.encode_command(b"HELLO", bytes(194)),
        _greeting(b"PLAIN") + null + frame,
        _login("0" * 64) + frame,
        _greeting(b"PLAIN") + b"\x06" + struct.pack(">Q", 1 << 62),
        _greeting(b"PLAIN") + b"\x02" + struct.pack(">Q", 16 * MB) + bytes(20),
    ]
    after = [
        frame,
        zmtp_frames.ping(1.0, b"x") + frame,
        b"\x02" + struct.pack(">Q", 1 << 40),
        b"\x03" + struct.pack(">Q", 16 * MB) + bytes(20),
        b"\x01\x00\x00\x00",
    ]
    whole = []
    for kind, body, buffers in EXAMPLES:
        whole.append(pack_frames([bytes(f) for f in wire.message(kind, "1", body, buffers)]))
    return (
        [b"\0" + text for text in before]
        + [b"\1" + text for text in after]
        + [b"\2" + text for text in whole]
    )


def mutate_port(data: bytes, rng: random.Random) -> bytes:
    """As for messages, where the input is a whole message."""
    if data[:1] and data[0] % 3 == 2:
        return data[:1] + mutate_message(data[1:], rng)
    return data


def quiet() -> None:
    """Keep the worker's log of refused messages out of the fuzzer's output."""
    import logging

    logging.getLogger("face_restore_worker").setLevel(logging.CRITICAL)


TARGETS: list[Any] = [Target("worker-port", port_seeds, check_port, 64 * MB, mutate_port)]
quiet()
