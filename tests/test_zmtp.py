"""The project's own ZMTP client against libzmq, and against hostile bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from face_restore_shared import zmtp
from face_restore_shared import zmtp_frames as wire
from face_restore_shared.zmtp import PeerLost, ReceiveTimeout, ZmtpClient
from face_restore_shared.zmtp_frames import AuthenticationRefused, ProtocolViolation
from hypothesis import given
from hypothesis import strategies as st

TOKEN = "a" * 64
LONG = 60.0  # seconds; only reached where something hangs


class EchoServer(threading.Thread):
    """A libzmq ROUTER with PLAIN behind ZAP that sends every message back."""

    def __init__(self, *, heartbeat_ms: int = 0) -> None:
        super().__init__(daemon=True)
        self.context = zmq.Context()
        self.zap = self.context.socket(zmq.REP)
        self.zap.bind("inproc://zeromq.zap.01")
        self.router = self.context.socket(zmq.ROUTER)
        self.router.plain_server = True
        self.router.linger = 0
        if heartbeat_ms:
            self.router.heartbeat_ivl = heartbeat_ms
            self.router.heartbeat_timeout = heartbeat_ms
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.stop_flag = False
        self.answer = True

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.zap, zmq.POLLIN)
        poller.register(self.router, zmq.POLLIN)
        while not self.stop_flag:
            for ready, _ in poller.poll(50):
                if ready is self.zap:
                    request = self.zap.recv_multipart()
                    good = request[6:8] == [b"face-restore", TOKEN.encode()]
                    status = [b"200", b"OK"] if good else [b"400", b"no"]
                    self.zap.send_multipart([b"1.0", request[1], *status, b"", b""])
                else:
                    frames = self.router.recv_multipart(copy=False)
                    if self.answer:
                        self.router.send_multipart(frames, copy=False)
        self.router.close()
        self.zap.close()
        self.context.term()

    def client(self, **options: object) -> ZmtpClient:
        return ZmtpClient("127.0.0.1", self.port, "face-restore", TOKEN, **options)  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[EchoServer]:
    echo = EchoServer()
    echo.start()
    yield echo
    echo.stop_flag = True
    echo.join(5)


@pytest.mark.parametrize("kernel_waits", [True, False])
def test_messages_of_every_size_come_back(
    server: EchoServer, kernel_waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmtp, "_KERNEL_WAITS", kernel_waits)  # False: as on Windows
    with server.client() as client:
        for sizes in (
            [0],
            [1],
            [255],
            [256],
            [65536, 0, 65537],
            [300_000, 3, 9_000_000],
            [7] * 200,
        ):
            message = [os.urandom(size) for size in sizes]
            client.send(message)
            assert [bytes(part) for part in client.receive(LONG)] == message


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=12))
def test_any_multipart_message_comes_back(parts: list[bytes]) -> None:
    client = _shared_client()
    client.send(parts)
    assert [bytes(part) for part in client.receive(LONG)] == parts


_shared: list[ZmtpClient] = []


def _shared_client() -> ZmtpClient:
    if not _shared:
        echo = EchoServer()
        echo.start()
        _shared.append(echo.client())
    return _shared[0]


def test_several_messages_in_a_row_keep_their_order(server: EchoServer) -> None:
    with server.client() as client:
        for number in range(500):
            client.send([str(number).encode(), b"x" * number])
        got = [client.receive(LONG) for _ in range(500)]
    assert [int(parts[0]) for parts in got] == list(range(500))


def test_views_of_arrays_are_sent_as_bytes(server: EchoServer) -> None:
    data = memoryview(bytearray(os.urandom(400_000))).cast("f")
    with server.client() as client:
        client.send([b"head", data])
        assert bytes(client.receive(LONG)[1]) == data.tobytes()


def test_a_wrong_token_is_refused_with_the_status(server: EchoServer) -> None:
    with pytest.raises(AuthenticationRefused, match="400"):
        ZmtpClient("127.0.0.1", server.port, "face-restore", "b" * 64)


def test_a_timeout_loses_nothing(server: EchoServer) -> None:
    with server.client() as client:
        with pytest.raises(ReceiveTimeout):
            client.receive(0.2)
        client.send([b"still", b"here"])
        assert [bytes(part) for part in client.receive(LONG)] == [b"still", b"here"]


def at_some_pace(attempt: Callable[[float], None]) -> None:
    """Once in short times; where the machine is too busy for those, in longer ones.

    attempt: takes a factor for all its times. Raises PeerLost when it fails with all of them.
    """
    for pace in (1.0, 6.0):
        with contextlib.suppress(PeerLost):
            return attempt(pace)
    return attempt(20.0)


@pytest.mark.slow
def test_heartbeats_keep_a_quiet_connection_in_both_directions() -> None:
    def attempt(pace: float) -> None:
        echo = EchoServer(heartbeat_ms=int(150 * pace))
        echo.start()
        with echo.client(heartbeat=0.2 * pace, patience=1.0 * pace) as client:
            # Silent for many times either's patience: PING and PONG alone keep it up.
            with pytest.raises(ReceiveTimeout):
                client.receive(2.5 * pace)
            client.send([b"alive"])
            assert bytes(client.receive(LONG)[0]) == b"alive"
        echo.stop_flag = True
        echo.join(5)

    at_some_pace(attempt)


@pytest.mark.slow
def test_a_client_that_is_busy_elsewhere_keeps_its_connection(server: EchoServer) -> None:
    """It has sent PINGs before: the peer must not take them as a promise of more."""

    def attempt(pace: float) -> None:
        with server.client(heartbeat=0.1 * pace, patience=0.5 * pace) as client:
            with pytest.raises(ReceiveTimeout):
                client.receive(0.4 * pace)
            time.sleep(1.5 * pace)
            client.send([b"back again"])
            assert bytes(client.receive(LONG)[0]) == b"back again"

    at_some_pace(attempt)


def read_to_the_end(connection: socket.socket) -> None:
    """Wait for the client to hang up: closing on unread bytes of its throws away what was sent."""
    connection.settimeout(LONG)
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass


def test_a_pause_within_a_large_frame_is_no_end() -> None:
    body = os.urandom(3_000_000)
    halves = [body[:1_234_567], body[1_234_567:]]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.sendall(SERVER_GREETING + WELCOME + READY)
            connection.sendall(wire.encode_header(len(body)) + halves[0])
            time.sleep(0.6)
            connection.sendall(halves[1] + wire.encode_header(4) + b"next")
            read_to_the_end(connection)

    threading.Thread(target=serve, daemon=True).start()
    port = listener.getsockname()[1]
    with ZmtpClient("127.0.0.1", port, "face-restore", TOKEN, heartbeat=0.2, patience=20) as client:
        assert [bytes(part) for part in client.receive(LONG)] == [body]
        assert [bytes(part) for part in client.receive(LONG)] == [b"next"]


def test_short_waits_do_not_hide_a_dead_peer() -> None:
    """A stopped process keeps its TCP connection; only the heartbeat can tell."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_zmtp import EchoServer\n"
        "echo = EchoServer(); print(echo.port, flush=True); echo.run()"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout
        try:
            port = int(peer.stdout.readline())
            client = ZmtpClient(
                "127.0.0.1", port, "face-restore", TOKEN, heartbeat=0.2, patience=1.0
            )
            os.kill(peer.pid, signal.SIGSTOP)
            deadline = time.monotonic() + 30
            with client, pytest.raises(PeerLost):
                while time.monotonic() < deadline:
                    with contextlib.suppress(ReceiveTimeout):
                        client.receive(0.1)
        finally:
            peer.kill()


def test_a_closed_port_and_a_hang_up_are_said() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PeerLost):
        ZmtpClient("127.0.0.1", port, "face-restore", TOKEN)


def test_a_socket_that_takes_no_options_is_a_lost_peer(
    server: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS tells that the peer has hung up already."""

    class Refusing(socket.socket):
        def setsockopt(self, *_arguments: object) -> None:  # type: ignore[override]
            raise OSError(errno.EINVAL, "Invalid argument")

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        one = Refusing()
        one.connect(address)
        return one

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(PeerLost):
        ZmtpClient("127.0.0.1", server.port, "face-restore", TOKEN)


def serve_bytes(payload: bytes, ends: bool = False) -> int:
    """A port that answers a connection with `payload`. ends: and says nothing more."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.sendall(payload)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            read_to_the_end(connection)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


SERVER_GREETING = (
    b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"PLAIN".ljust(20, b"\0") + b"\x01" + bytes(31)
)
WELCOME = wire.encode_command(b"WELCOME")
READY = wire.encode_command(b"READY", wire.encode_metadata({"Socket-Type": b"ROUTER"}))


@pytest.mark.parametrize(
    "payload",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64),
        SERVER_GREETING.replace(b"PLAIN", b"CURVE"),
        SERVER_GREETING + b"\x08\x00",
        SERVER_GREETING + b"\x04\x00",
        SERVER_GREETING + b"\x06" + b"\xff" * 8,
        SERVER_GREETING + WELCOME + wire.encode_command(b"READY", b"\x05abc"),
        SERVER_GREETING + WELCOME + WELCOME,
        SERVER_GREETING + b"\x00\x03abc",
    ],
)
def test_a_hostile_handshake_is_a_violation(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        ZmtpClient("127.0.0.1", serve_bytes(payload), "face-restore", TOKEN, timeout=LONG)


def test_a_huge_announced_frame_is_refused_before_it_is_allocated() -> None:
    frame = b"\x02" + (2**62).to_bytes(8, "big")
    port = serve_bytes(SERVER_GREETING + WELCOME + READY + frame)
    client = ZmtpClient("127.0.0.1", port, "face-restore", TOKEN, timeout=LONG)
    with pytest.raises(ProtocolViolation, match="announced"):
        client.receive(LONG)


def test_a_cut_in_the_middle_of_a_frame_is_a_lost_peer() -> None:
    cut = SERVER_GREETING + WELCOME + READY + b"\x02" + (10**6).to_bytes(8, "big")
    port = serve_bytes(cut, ends=True)
    client = ZmtpClient("127.0.0.1", port, "face-restore", TOKEN, timeout=LONG)
    with pytest.raises(PeerLost):
        client.receive(LONG)


@given(st.binary(max_size=300))
def test_random_bytes_after_the_handshake_never_do_worse_than_an_error(noise: bytes) -> None:
    port = serve_bytes(SERVER_GREETING + WELCOME + READY + noise)
    client = ZmtpClient("127.0.0.1", port, "face-restore", TOKEN, timeout=LONG, max_frame=1000)
    with client, pytest.raises((ProtocolViolation, PeerLost, ReceiveTimeout)):
        while True:
            client.receive(0.02)


NAMES = st.text("abcXYZ019.-", min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=5))
def test_metadata_round_trip(metadata: dict[str, bytes]) -> None:
    decoded = wire.decode_metadata(wire.encode_metadata(metadata))
    assert decoded == {name.lower(): value for name, value in metadata.items()} or len(
        {name.lower() for name in metadata}
    ) < len(metadata)


@given(st.binary(max_size=200))
def test_decoders_accept_or_refuse_but_never_crash(data: bytes) -> None:
    for decode in (wire.decode_metadata, wire.decode_command, wire.error_reason, wire.pong_for):
        with contextlib.suppress(ProtocolViolation):
            decode(data)


@given(st.integers(0, 2**63), st.booleans())
def test_header_round_trip(size: int, more: bool) -> None:
    data = wire.encode_header(size, more=more)
    assert len(data) == wire.header_length(data[0])
    assert wire.decode_header(data, 2**63) == wire.FrameHeader(size, more, False)
