"""What SECURITY.md promises about a running worker, tried against real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import zmq
from face_restore_shared import connection, wire, zmtp_frames
from face_restore_shared.connection import USERNAME
from face_restore_shared.zmtp import ZmtpClient
from face_restore_worker.client import launch
from face_restore_worker.server import zap
from worker_process import FAKE, RawClient, Worker, eventually, state, untouched_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with untouched_worker(tmp_path_factory.mktemp("home")) as running:
        yield running


# --- the token -----------------------------------------------------------------------------------


def processes(pid: int) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Arguments and environment of a process and of those that started it."""
    for process in [psutil.Process(pid), *psutil.Process(pid).parents()]:
        try:
            yield " ".join(process.cmdline()), process.environ()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue


def test_the_token_shows_in_no_process_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started as the clients start it, talked to rightly and wrongly, at the most talkative log."""
    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    found = launch.ensure_worker(command=FAKE, options=["--log-level", "debug"])
    try:
        with RawClient(found) as client:
            assert client.ask("hello", body={"client": "test"}).type == "hello"
            client.socket.send_multipart([b"\xc1garbage"])
            client.restore("1")
            client.receive_final()
        with RawClient(found, found.token[:-1] + "x") as client:
            client.send("status", "1", {})
            assert not client.socket.poll(300)
        shown = [found.token, found.token[:32], found.token[32:]]
        for arguments, environment in [
            *processes(found.pid),
            (" ".join(sys.argv), os.environ),
        ]:
            text = arguments + json.dumps(dict(environment))
            assert not any(part in text for part in shown)
    finally:
        launch.stop()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"worker.log", "worker-output.log"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not any(part.encode() in content for part in shown), path
    assert found.token not in repr(found)


def test_user_name_and_token_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both comparisons are hmac.compare_digest, and both are made whatever the other says."""
    compared: list[tuple[bytes, bytes]] = []

    def watch(a: bytes, b: bytes) -> bool:
        compared.append((bytes(a), bytes(b)))
        return a == b

    monkeypatch.setattr(zap.hmac, "compare_digest", watch)
    handler = zap.ZapHandler(zmq.Context(), "0" * 64)
    right, name = b"0" * 64, USERNAME.encode()
    question = [b"1.0", b"1", zap.DOMAIN, b"127.0.0.1", b"", b"PLAIN"]
    for user, password, allowed in [
        (name, right, True),
        (name, b"0" * 63 + b"1", False),
        (b"other", right, False),
        (b"", b"", False),
        (name, right[:-1], False),
    ]:
        compared.clear()
        assert handler._allowed([*question, user, password]) is allowed
        assert (password, right) in compared and (user, name) in compared
    handler.close()


# --- other protocols, web pages ------------------------------------------------------------------


def _login(
    token: str, mechanism: bytes = b"PLAIN", version: bytes = b"\x03\x01", name: str = USERNAME
) -> list[bytes]:
    """Greeting, HELLO and INITIATE, as ZMTP 3 with PLAIN has them."""
    greeting = b"\xff" + bytes(8) + b"\x7f" + version + mechanism.ljust(20, b"\0") + bytes(32)
    metadata = {"Socket-Type": b"DEALER", "Identity": b""}
    hello = zmtp_frames.hello(name.encode(), token.encode())
    return [greeting, hello, zmtp_frames.initiate(metadata)]


def _shutdown() -> bytes:
    data = wire.encode_header("shutdown", "1", {})
    return zmtp_frames.encode_header(len(data)) + data


def _web(token: str) -> dict[str, bytes]:
    """What a page can make a browser send; it could not know the token, but here it does."""
    good = b"".join(_login(token)) + _shutdown()
    host = b"Host: rebound.example\r\nOrigin: http://rebound.example\r\n"
    upgrade = (
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ZWS2.0/PLAIN\r\n"
    )
    length = f"Content-Length: {len(good)}\r\n\r\n".encode()
    record = b"\x82" + bytes([0x80 | 126]) + len(good).to_bytes(2, "big") + bytes(4) + good
    preflight = b"OPTIONS / HTTP/1.1\r\nAccess-Control-Request-Method: PUT\r\n"
    return {
        "GET": b"GET /shutdown HTTP/1.1\r\n" + host + b"\r\n",
        "simple POST": b"POST / HTTP/1.1\r\n" + host + length + good,
        "preflight": preflight + host + b"\r\n",
        "PUT": b"PUT / HTTP/1.1\r\n" + host + length + good,
        "HTTP/1.0": b"POST / HTTP/1.0\r\n" + length + good,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + good,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + good,
        "WebSocket": b"GET / HTTP/1.1\r\n" + host + upgrade + b"\r\n" + record,
        "FTP": b"USER anonymous\r\nPASS x\r\n" + good,
        "TURN": b"\x00\x03\x00\x08\x21\x12\xa4\x42" + bytes(12) + good,
    }


def _peers(token: str) -> dict[str, list[bytes]]:
    """ZeroMQ peers of other kinds, most with the right token, each in steps."""
    metadata = zmtp_frames.encode_metadata({"Socket-Type": b"DEALER", "Identity": b""})
    ready = zmtp_frames.encode_command(b"READY", metadata)
    curve = zmtp_frames.encode_command(b"HELLO", bytes(194))
    data = wire.encode_header("shutdown", "1", {})
    greeting, hello, initiate = _login(token)
    end = _shutdown()
    old = b"\xff" + bytes(8) + b"\x7f"
    return {
        "NULL": [*_login(token, b"NULL"), end],
        "NULL, ready": [_login(token, b"NULL")[0], ready, end],
        "CURVE": [_login(token, b"CURVE")[0], curve, end],
        "GSSAPI": [*_login(token, b"GSSAPI"), end],
        "unknown mechanism": [*_login(token, b"XPLAIN"), end],
        "ZMTP 1.0": [b"\x01\x00", bytes([len(data) + 1, 0]) + data],
        "ZMTP 2.0": [old + b"\x01\x05", b"\x00\x00", bytes([0, len(data)]) + data],
        "ZMTP 2 with PLAIN": [*_login(token, version=b"\x01\x00"), end],
        "no HELLO": [greeting, end],
        "ready without HELLO": [greeting, ready, end],
        "INITIATE first": [greeting, initiate, end],
        "message before INITIATE": [greeting, hello, end],
        "another name": [*_login(token, name="root"), end],
        "no name": [*_login(token, name=""), end],
        "no token": [*_login(""), end],
        "another token": [*_login("f" * 64), end],
        "half a token": [*_login(token[:32]), end],
    }


# What a worker has answered after each step: its greeting, WELCOME, the beginning of READY.
ANSWERED = (64, 74, 75)


def converse(where: connection.Connection, parts: Sequence[bytes], patience: float) -> None:
    """Send one part after the other, each once the last is answered, or after `patience` s."""
    with socket.create_connection(("127.0.0.1", where.port)) as peer:
        peer.settimeout(patience)
        heard = 0
        for step, part in enumerate(parts):
            try:
                peer.sendall(part)
                while heard < ANSWERED[min(step, 2)]:
                    answer = len(peer.recv(65536))
                    if not answer:
                        return  # hung up
                    heard += answer
            except TimeoutError:
                continue
            except OSError:
                return


def test_web_pages_have_no_effect(worker: Worker) -> None:
    before = worker.log
    for name, start in _web(worker.connection.token).items():
        converse(worker.connection, [start, *_login(worker.connection.token), _shutdown()], 0.05)
        with worker.raw() as client:
            assert state(client) == "ready", name
    assert worker.log == before


def test_other_peers_have_no_effect(worker: Worker) -> None:
    before = worker.log
    for name, parts in _peers(worker.connection.token).items():
        converse(worker.connection, parts, 0.05)
        with worker.raw() as client:
            assert state(client) == "ready", name
    assert worker.log == before


def test_the_same_bytes_do_work_where_they_may(tmp_path: Path) -> None:
    """The two tests above prove something only if this login and this message are right."""
    with Worker(tmp_path) as worker:
        where = worker.connection
        converse(where, [*_login(where.token), _shutdown()], 30)
        eventually(lambda: worker.process.poll() is not None, "the shutdown")


def test_a_client_that_goes_away_in_the_middle_of_a_burst(worker: Worker) -> None:
    """Found by fuzzing: libzmq ended the worker where its unread messages were followed by a PING.

    The worker is stopped meanwhile, so that it meets all of it at once.
    """
    where = worker.connection
    data = wire.encode_header("status", "1", {})
    message = zmtp_frames.encode_header(len(data)) + data
    for _ in range(5):
        with ZmtpClient("127.0.0.1", where.port, USERNAME, where.token) as client:
            worker.process.send_signal(signal.SIGSTOP)
            try:
                client._send_all(message * 40 + zmtp_frames.ping(1.0) + message)
                client.close()
            finally:
                worker.process.send_signal(signal.SIGCONT)
        with worker.raw() as other:
            assert state(other) == "ready"


@pytest.mark.skipif(sys.platform != "linux", reason="sets another process's limit")
def test_more_connections_than_there_are_descriptors(tmp_path: Path) -> None:
    """While they last nobody else gets in; afterwards all is as before."""
    import resource

    with Worker(tmp_path) as worker:
        process = psutil.Process(worker.process.pid)
        before = process.num_fds()
        limit = before + 20
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        where = ("127.0.0.1", worker.connection.port)
        peers = [socket.create_connection(where, timeout=60) for _ in range(60)]
        eventually(lambda: process.num_fds() >= limit - 1, "no descriptor is left")
        for peer in peers:
            peer.close()
        eventually(lambda: process.num_fds() <= before + 2, "they are free again")
        with worker.raw() as client:
            assert state(client)
