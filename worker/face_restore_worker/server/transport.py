"""The ROUTER socket: who is there, what goes out, and what must not get lost on the way."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import zmq
from face_restore_shared import wire

from face_restore_worker.server.zap import DOMAIN

log = logging.getLogger(__name__)

RECEIVE_HWM = 4
SEND_HWM = 256
HEARTBEAT_MS = 3000
HEARTBEAT_TIMEOUT_MS = 15000
HANDSHAKE_MS = 5000
LINGER_MS = 1000


class Transport:
    """Sends to and receives from authenticated clients on a random port of 127.0.0.1."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        options = {
            zmq.LINGER: LINGER_MS,
            zmq.ROUTER_MANDATORY: 1,
            zmq.MAXMSGSIZE: wire.MAX_FRAME,
            zmq.RCVHWM: RECEIVE_HWM,
            zmq.SNDHWM: SEND_HWM,
            zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
            zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT_MS,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.PLAIN_SERVER: 1,
            zmq.ZAP_DOMAIN: DOMAIN,
            zmq.IPV6: 0,
        }
        for option, value in options.items():
            self.socket.setsockopt(option, value)
        # Final answers a client has not made room for yet; each must arrive once.
        self._held: dict[bytes, deque[list[Any]]] = {}

    def bind(self) -> str:
        """Listen; returns the endpoint."""
        self.socket.bind("tcp://127.0.0.1:*")
        endpoint: str = self.socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        return endpoint

    def receive(self) -> tuple[bytes, list[Any]] | None:
        """Routing id and frames (libzmq's own memory, no copies); None when there is nothing."""
        try:
            first, *rest = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return first.bytes, [frame.buffer for frame in rest]

    def send(
        self,
        client: bytes,
        kind: str,
        request: str,
        body: Mapping[str, Any],
        buffers: Sequence[Any] = (),
        *,
        final: bool = False,
    ) -> bool:
        """Send without waiting; False when the client is gone.

        final: keep it for later when the client takes nothing at present; others are left out.
        """
        frames = wire.message(kind, request, body, buffers)
        if final and client in self._held:
            self._held[client].append(frames)
            return True
        sent = self._try_send(client, frames)
        if sent is None and final:
            self._held.setdefault(client, deque()).append(frames)
        return sent is not False

    def flush(self) -> list[bytes]:
        """Try again what was held; returns clients found to be gone."""
        gone = []
        for client, messages in list(self._held.items()):
            while messages:
                sent = self._try_send(client, messages[0])
                if sent is None:
                    break
                messages.popleft()
                if sent is False:
                    gone.append(client)
                    messages.clear()
            if not messages:
                del self._held[client]
        return gone

    @property
    def holding(self) -> bool:
        """Whether final answers wait for room."""
        return bool(self._held)

    def close(self) -> None:
        """Close; what was sent still has LINGER_MS to arrive."""
        self._held.clear()
        self.socket.close()

    def _try_send(self, client: bytes, frames: list[Any]) -> bool | None:
        """True: sent; False: no such client; None: it takes nothing at present.

        libzmq decides at the first frame, so a message goes out whole or not at all.
        """
        try:
            self.socket.send_multipart([client, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True
