"""Who is let in: nothing without the token, nothing of other protocols, nothing shown."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator

import psutil
import pytest
import zmq
from face_restore_shared import wire
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_process import Worker, state, untouched_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all tests that leave it as it was."""
    with untouched_worker(tmp_path_factory.mktemp("home")) as running:
        yield running


def are_let_in(worker: Worker, sockets: list[dict[str, object]]) -> int:
    """How many requests through sockets with these options are answered soon."""
    context, poller = zmq.Context(), zmq.Poller()
    try:
        for options in sockets:
            probe = context.socket(zmq.DEALER)
            probe.linger = 0
            for name, value in options.items():
                setattr(probe, name, value)
            probe.connect(worker.connection.endpoint)
            probe.send(wire.encode_header("shutdown", "1", {}))
            poller.register(probe, zmq.POLLIN)
        return len(poller.poll(1000))
    finally:
        context.destroy()


def test_nobody_without_the_token_is_let_in(worker: Worker) -> None:
    token = worker.connection.token.encode()
    name = b"face-restore"
    logins = [
        (name, b"0" * 64),
        (name, token[:-1]),
        (name, token + b"0"),
        (name, token.upper() if token.upper() != token else b"X"),
        (b"root", token),
        (name, bytes(range(128, 255))),
    ]
    sockets: list[dict[str, object]] = [{}]  # mechanism NULL
    sockets += [{"plain_username": user, "plain_password": word} for user, word in logins]
    public, secret = zmq.curve_keypair()
    keys = {"curve_serverkey": public, "curve_publickey": public, "curve_secretkey": secret}
    assert are_let_in(worker, [*sockets, keys]) == 0
    with worker.raw() as client:  # none of the shutdown requests above got through
        assert state(client) == "ready"


GREETING_3 = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
PAGES = [
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nshutdown!",
    b"\x01\x00\x09\x01shutdown",  # ZMTP 1.0
    b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00",  # ZMTP 2.0
    GREETING_3 + b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER",
    GREETING_3.replace(b"NULL\0", b"PLAIN") + b"\x04\xff" + b"\xff" * 8,
    GREETING_3.replace(b"NULL\0", b"PLAIN") + b"\x02\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(99),
    GREETING_3.replace(b"NULL\0", b"PLAIN") + b"\x00\x05hello",
]


def poke(worker: Worker, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", worker.connection.port)) as peer:
        peer.settimeout(0.05)
        try:
            peer.sendall(data)
            while peer.recv(4096):
                pass
        except OSError:  # closed on us, or nothing more to come
            pass


@pytest.mark.parametrize("data", PAGES)
def test_other_protocols_have_no_effect(worker: Worker, data: bytes) -> None:
    lines = len(worker.log.splitlines())
    poke(worker, data)
    with worker.raw() as client:
        assert state(client) == "ready"
    assert len(worker.log.splitlines()) == lines


@settings(max_examples=40, deadline=None)
@given(
    start=st.sampled_from([b"", GREETING_3, GREETING_3.replace(b"NULL\0", b"PLAIN")]),
    rest=st.binary(max_size=200),
)
def test_garbage_on_the_port_is_harmless(worker: Worker, start: bytes, rest: bytes) -> None:
    poke(worker, start + rest)
    with worker.raw() as client:
        assert state(client) == "ready"


def test_only_loopback_listens(worker: Worker) -> None:
    listening = [
        c.laddr.ip
        for c in psutil.Process(worker.process.pid).net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_the_token_shows_nowhere(worker: Worker) -> None:
    token = worker.connection.token
    process = psutil.Process(worker.process.pid)
    assert token not in " ".join(process.cmdline())
    assert token not in json.dumps(process.environ())
    assert token not in worker.log
    assert len(token) == 64


def test_files_are_private(worker: Worker) -> None:
    for path in (worker.home / "state").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
