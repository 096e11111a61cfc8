"""A connection file that its worker left behind: the plug-in starts another one."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import plugin_path  # noqa: F401
import pytest
from face_restore_shared import connection
from face_restore_shared.connection import Connection
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.wire import ProtocolMismatch
from restore_faces import status
from restore_faces.bundled import Paths
from restore_faces.worker import Worker

HERE = os.getpid()


def web_server(peer: socket.socket) -> None:
    peer.recv(10)
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + b"-" * 80)


@contextmanager
def another_program(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A program that is no worker listens at the port this gives."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(20)

    def serve() -> None:
        while True:
            try:
                peer, _address = listener.accept()
            except OSError:
                return
            with peer:
                answer(peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def left_behind(home: Path, port: int, born: int | None, protocol: int = 1) -> Worker:
    """The plug-in's worker, whose file names this port and this process."""
    endpoint = f"tcp://127.0.0.1:{port}"
    file = Connection(endpoint, "0" * 64, HERE, protocol, "0.1.0", time.time(), "", born)
    connection.write(home / "state" / "worker.json", file)
    return Worker(Paths((), home / "state"))


@pytest.mark.parametrize("answer", [web_server, socket.socket.close], ids=["talks", "hangs up"])
def test_a_dead_workers_port_that_is_anothers_now(
    tmp_path: Path, answer: Callable[[socket.socket], object]
) -> None:
    with another_program(answer) as port:
        worker = left_behind(tmp_path, port, born=1)
        assert worker.connect() is None
        assert "not running" in status.text(worker)


@pytest.mark.parametrize("born", [connection.birth(HERE), None], ids=["alive", "not known"])
def test_another_program_in_place_of_a_worker_is_told(tmp_path: Path, born: int | None) -> None:
    with another_program(web_server) as port:
        worker = left_behind(tmp_path, port, born)
        with pytest.raises(FaceRestoreError) as error:
            worker.connect()
    assert error.value.code == "worker-foreign"
    assert "face-restore worker restart" in str(error.value)


def test_a_sandbox_does_not_see_whether_a_worker_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATPAK_ID", "org.gimp.GIMP")
    with another_program(web_server) as port, pytest.raises(FaceRestoreError):
        left_behind(tmp_path, port, born=1).connect()


def test_a_port_that_refuses_slowly_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows asks three times: that nothing listens there is known after two seconds only."""

    def create_connection(_address: object, timeout: float) -> socket.socket:
        raise ConnectionRefusedError if timeout > 2.5 else TimeoutError

    monkeypatch.setattr(socket, "create_connection", create_connection)
    worker = left_behind(tmp_path, 9, born=None)
    assert worker.connect() is None
    assert "not running" in status.text(worker)


def test_a_dead_worker_of_another_version_asks_for_no_update(tmp_path: Path) -> None:
    with another_program(web_server) as port:
        assert left_behind(tmp_path, port, born=1, protocol=99).connect() is None
        with pytest.raises(ProtocolMismatch):
            left_behind(tmp_path, port, connection.birth(HERE), protocol=99).connect()
    assert left_behind(tmp_path, port, born=None, protocol=99).connect() is None
