"""The ROUTER socket: who is there, what goes out, and what must not get lost on the way."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from face_restore_shared import wire
from face_restore_shared.schema import ErrorReply

from face_restore_worker.server.zap import DOMAIN

log = logging.getLogger(__name__)

# libzmq 4.3.5 ends the whole process (assertion !_io_error) when it has stopped reading from a
# client because this many messages wait, the client goes away, and then a PING is due or is found
# among what it sent. So: more than any client sends at once, and no PINGs of the worker's own.
RECEIVE_HWM = 1000
SEND_HWM = 256
HANDSHAKE_MS = 5000
LINGER_MS = 1000
MOST_HELD = 1000


@dataclass
class _Peer:
    """What one client has not taken yet.

    held: final answers it has no room for; each must arrive once. results: those libzmq has taken
    but not handed to the system yet, with their bytes. deaf: it left too much unread.
    """

    held: deque[list[Any]] = field(default_factory=deque)
    results: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    deaf: bool = False

    def prune(self) -> None:
        """Forget the results that are on their way."""
        while self.results and self.results[0][0].done:
            self.results.popleft()


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
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.PLAIN_SERVER: 1,
            zmq.ZAP_DOMAIN: DOMAIN,
            zmq.IPV6: 0,
        }
        for option, value in options.items():
            self.socket.setsockopt(option, value)
        self._peers: dict[bytes, _Peer] = {}

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
        return self._send(client, frames, final=final)

    def send_result(self, client: bytes, frames: list[Any]) -> bool:
        """As `send`, for a finished job's message; counts as untaken until the client reads it."""
        # libzmq tells when it lets go of this frame, the last: everything is on its way then.
        tracked = zmq.Frame(frames[-1], copy=False, track=True)
        return self._send(client, [*frames[:-1], tracked], final=True)

    def untaken(self, client: bytes) -> tuple[int, int]:
        """How many results the client has not read yet, and their bytes."""
        peer = self._peers.get(client)
        if peer is None:
            return 0, 0
        peer.prune()
        sizes = [size for _, size in peer.results]
        sizes += [_nbytes(frames) for frames in peer.held if _is_result(frames)]
        return len(sizes), sum(sizes)

    def is_deaf(self, client: bytes) -> bool:
        """Whether the client left so many answers unread that it is listened to no longer."""
        peer = self._peers.get(client)
        return peer is not None and peer.deaf

    def flush(self) -> list[bytes]:
        """Try again what was held; returns clients found to be gone."""
        gone = []
        for client, peer in list(self._peers.items()):
            while peer.held:
                sent = self._try_send(client, peer.held[0])
                if sent is None:
                    break
                if sent is False:
                    gone.append(client)
                    del self._peers[client]
                    break
                peer.held.popleft()
            peer.prune()
            if not (peer.held or peer.results or peer.deaf):
                self._peers.pop(client, None)
        return gone

    @property
    def holding(self) -> bool:
        """Whether final answers wait for room."""
        return any(peer.held for peer in self._peers.values())

    def close(self) -> None:
        """Close; what was sent still has LINGER_MS to arrive."""
        self._peers.clear()
        self.socket.close()

    def _send(self, client: bytes, frames: list[Any], *, final: bool) -> bool:
        peer = self._peers.get(client)
        sent = None
        if not final or peer is None or not peer.held:
            sent = self._try_send(client, frames)
        if sent is None and final:
            peer = self._peers.setdefault(client, _Peer())
            if not peer.deaf:
                peer.held.append(frames)
            if len(peer.held) == MOST_HELD:
                self._give_up(peer)
        return sent is not False

    def _give_up(self, peer: _Peer) -> None:
        """Hold no more answers for a client that reads none."""
        peer.deaf = True
        error = ErrorReply(
            "busy",
            f"{MOST_HELD} answers were left unread: this connection is no longer listened to.",
            "Connect again, and read the answers.",
        )
        peer.held.append(wire.message("error", "", error.to_wire()))
        log.warning("A client left %d answers unread; it is listened to no longer", MOST_HELD)

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
        if _is_result(frames):
            peer = self._peers.setdefault(client, _Peer())
            peer.results.append((frames[-1].tracker, _nbytes(frames)))
        return True


def _is_result(frames: list[Any]) -> bool:
    return isinstance(frames[-1], zmq.Frame)


def _nbytes(frames: list[Any]) -> int:
    views = (frame.buffer if isinstance(frame, zmq.Frame) else frame for frame in frames)
    return sum(memoryview(view).nbytes for view in views)
