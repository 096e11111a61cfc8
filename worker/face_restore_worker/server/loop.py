"""The worker's I/O loop: it never waits for anything but its sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from face_restore_shared import paths
from face_restore_shared.connection import Connection, birth
from face_restore_shared.schema import PROTOCOL_VERSION
from face_restore_shared.version import __version__

from face_restore_worker.server.engine_api import Engine
from face_restore_worker.server.jobs import Limits
from face_restore_worker.server.service import Service
from face_restore_worker.server.transport import Transport
from face_restore_worker.server.zap import ZapHandler

log = logging.getLogger(__name__)

RECEIVE_BATCH = 16
UPKEEP_SECONDS = 5.0
MOST_FAILURES = 20  # in a row, before the worker ends


class Server:
    """One worker. Make it, `bind()`, `run()`; `stop()` from a signal handler or any thread.

    engine: what restores faces. idle: seconds without work after which its models are let go,
    None to keep them. log_path: told to clients.
    upkeep: called every few seconds in the loop's thread; must be quick.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        idle: float | None = 600.0,
        limits: Limits | None = None,
        log_path: Path | None = None,
        upkeep: Callable[[], None] | None = None,
    ) -> None:
        self._upkeep = upkeep
        self._next_upkeep = time.monotonic() + UPKEEP_SECONDS
        self._log_path = paths.shown(log_path) if log_path else ""
        self._token = secrets.token_hex(32)
        self._context: zmq.Context[Any] = zmq.Context()
        self._zap = ZapHandler(self._context, self._token)
        self._transport = Transport(self._context)
        self._events: deque[Any] = deque()
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._stop_reason = ""
        self._service = Service(
            engine,
            self._transport,
            post=self._post,
            stop=self.stop,
            idle=idle,
            limits=limits or Limits(),
            log_path=self._log_path,
        )

    def bind(self) -> Connection:
        """Listen on a random port of 127.0.0.1; returns what goes into the connection file."""
        return Connection(
            endpoint=self._transport.bind(),
            token=self._token,
            pid=os.getpid(),
            protocol=PROTOCOL_VERSION,
            version=__version__,
            started=time.time(),
            log=self._log_path,
            born=birth(os.getpid()),
        )

    @property
    def wake_fd(self) -> int:
        """For signal.set_wakeup_fd, so that a signal ends the wait at once."""
        return self._waker.fileno()

    def stop(self, reason: str) -> None:
        """End `run` soon; safe in a signal handler and from any thread."""
        self._stop_reason = self._stop_reason or reason
        self._wake()

    def run(self) -> None:
        """Serve until `stop`; then every open job is answered "stopping"."""
        poller = zmq.Poller()
        for source in (self._zap.socket, self._transport.socket, self._woken.fileno()):
            poller.register(source, zmq.POLLIN)
        self._service.start()
        failures = 0
        while not self._stop_reason:
            try:
                self._once(dict(poller.poll(int(self._wait_seconds() * 1000) + 1)))
                failures = 0
            except Exception:
                failures += 1  # what failed was taken out already: the next may be in order
                if failures == MOST_FAILURES:
                    self._service.finish("its loop failed")
                    raise
                log.exception("The loop failed and goes on")
        log.info("Stopping: %s", self._stop_reason)
        self._service.finish(self._stop_reason)
        self._receive()  # what came meanwhile is told, too

    def _once(self, ready: dict[Any, int]) -> None:
        """Do what there is to do. ready: the sockets that can be read."""
        if self._zap.socket in ready:
            self._zap.handle()
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        self._handle_events()
        if self._transport.socket in ready:
            self._receive()
        self._service.tick()
        self._keep_up()

    def close(self) -> None:
        """Close all sockets, giving the last answers a moment to arrive."""
        self._transport.close()
        self._zap.close()
        self._context.term()
        self._waker.close()
        self._woken.close()

    def engine_ended(self, timeout: float) -> bool:
        """After `run`: whether the engine thread has ended within `timeout` seconds."""
        return self._service.engine_ended(timeout)

    def _wait_seconds(self) -> float:
        wait = self._service.wait_seconds()
        if self._upkeep is not None:
            wait = min(wait, max(0.0, self._next_upkeep - time.monotonic()))
        return wait

    def _keep_up(self) -> None:
        if self._upkeep is None or time.monotonic() < self._next_upkeep:
            return
        self._next_upkeep = time.monotonic() + UPKEEP_SECONDS
        try:
            self._upkeep()
        except Exception:
            self._upkeep = None  # said once
            log.exception("The upkeep failed and is left alone from now on")

    def _receive(self) -> None:
        for _ in range(RECEIVE_BATCH):
            received = self._transport.receive()
            if received is None:
                return
            self._service.handle_message(*received)
            del received  # pixels of a refused message

    def _post(self, event: Any) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        # Full: a wake-up is pending already. Closed: the loop has ended.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def _handle_events(self) -> None:
        while self._events:
            event = self._events.popleft()
            self._service.handle_event(event)
            del event  # it may hold a result's pixels
