"""A ZMTP 3.1 client: DEALER over TCP with PLAIN authentication, standard library only.

GIMP's own Python cannot load binary pyzmq on Windows and macOS, so the plug-in talks to the
worker's ROUTER through this. One connection, no reconnecting: a broken one is an error
the caller decides about. Not for use from several threads at once.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from face_restore_shared import zmtp_frames as wire
from face_restore_shared.zmtp_frames import (
    AuthenticationRefused,
    FrameHeader,
    ProtocolViolation,
    ZmtpError,
)

Buffer = bytes | bytearray | memoryview
Frame = bytes | bytearray

_TIME_TO_LIVE = 30.0  # seconds of silence after which the worker may take us for gone
_SMALL = 64 * 1024  # frames up to this are gathered into one send
_SLICE = 4 * 1024 * 1024  # one send() of a large body
_LARGE = 256 * 1024  # bodies above are read into memory of their own
_KERNEL_WAITS = sys.platform != "win32"  # for a whole body, with a time-out of its own


class PeerLost(ZmtpError):
    """The worker closed the connection or has been silent for too long."""

    default_code = "worker-lost"


class ReceiveTimeout(ZmtpError):
    """No message arrived in the time given; the connection still stands."""

    default_code = "timeout"


@dataclass
class Streamed:
    """A frame to send whose bytes are made meanwhile: `nbytes` in all, in pieces of any size."""

    nbytes: int
    pieces: Iterable[Buffer]


class ZmtpClient:
    """A connected, authenticated DEALER.

    Heartbeats: while waiting, a PING goes out every `heartbeat` seconds, PINGs of the peer are
    answered, and `PeerLost` is raised when a PING stays without any sign of life for `patience`
    seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        username: str,
        password: str,
        *,
        timeout: float = 5.0,
        heartbeat: float = 1.0,
        patience: float = 3.0,
        max_frame: int = 17 * 1024 * 1024,
        max_parts: int = 65536,
        max_message: int = 2 * 1024**3,
    ) -> None:
        """Connect and shake hands within `timeout` seconds.

        Raises:
            PeerLost: nothing listens there, or it hung up.
            AuthenticationRefused: the token is not the worker's.
            ProtocolViolation: what listens there is not a ZMTP 3 server with PLAIN.
        """
        self._heartbeat, self._patience = heartbeat, patience
        self._max_frame, self._max_parts, self._max_message = max_frame, max_parts, max_message
        self._buffer = bytearray()
        self._parts: list[Frame] = []
        self._total = 0
        self._next_ping = 0.0
        self._unanswered_since: float | None = None
        self._ready = False
        deadline = time.monotonic() + timeout
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout)
        except OSError as error:
            raise PeerLost(f"Nothing answers on {host}:{port} ({error}).") from error
        try:
            self._prepare()
            self._handshake(username.encode(), password.encode(), deadline)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Set the socket's options; macOS refuses that when the peer has hung up already."""
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
            if _KERNEL_WAITS:
                beat = struct.pack("@ll", int(self._heartbeat), int(self._heartbeat % 1 * 1e6))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, beat)
        except OSError as error:
            raise PeerLost(f"The worker closed the connection ({error}).") from error

    def __enter__(self) -> ZmtpClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what was sent and not yet read by the peer may be lost."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, to wait for in a main loop."""
        return self._socket.fileno()

    # --- sending -------------------------------------------------------------------

    def send(self, frames: Sequence[Buffer | Streamed]) -> None:
        """Send one multipart message; large frames go out without a copy.

        Raises:
            PeerLost: the peer hung up, or took nothing for `patience` seconds.
            ValueError: no frame, or a Streamed one whose pieces are not of its size: then the
                connection is closed, since half a frame went out.
        """
        if not frames:
            raise ValueError("a message has at least one frame")
        gathered = bytearray()
        for index, frame in enumerate(frames):
            more = index < len(frames) - 1
            if isinstance(frame, Streamed):
                self._send_all(gathered + wire.encode_header(frame.nbytes, more=more))
                gathered = bytearray()
                self._send_pieces(frame)
                continue
            view = memoryview(frame).cast("B")
            gathered += wire.encode_header(view.nbytes, more=more)
            if view.nbytes <= _SMALL:
                gathered += view
                continue
            self._send_all(gathered)
            gathered = bytearray()
            self._send_all(view)
        self._send_all(gathered)

    def _send_pieces(self, frame: Streamed) -> None:
        left = frame.nbytes
        for piece in frame.pieces:
            view = memoryview(piece).cast("B")
            left -= view.nbytes
            if left < 0:
                break
            self._send_all(view)
        if left != 0:
            self.close()
            raise ValueError(f"a frame's pieces are not of its {frame.nbytes} bytes")

    def _send_all(self, data: Buffer) -> None:
        view = memoryview(data)
        while view.nbytes:
            try:
                view = view[self._socket.send(view[:_SLICE]) :]
            except (BlockingIOError, InterruptedError):
                if not select.select([], [self._socket], [], self._patience)[1]:
                    raise PeerLost(
                        f"The worker took no data for {self._patience:g} seconds."
                    ) from None
            except OSError as error:
                raise PeerLost(f"The worker closed the connection ({error}).") from error

    # --- receiving -----------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> list[Frame]:
        """Wait for the next whole message.

        Args:
            timeout: seconds to wait for it to begin and end; None waits while the peer lives.

        Returns:
            its frames; each is its own buffer, at most `max_frame` bytes.

        Raises:
            ReceiveTimeout: it did not arrive in time; what has come so far is kept.
            PeerLost: the peer hung up or fell silent.
            ProtocolViolation: a frame that ZMTP or the limits do not allow.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            header, body = self._read_frame(deadline)
            if header.command:
                self._on_command(bytes(body))
                continue
            self._total += len(body)
            if len(self._parts) >= self._max_parts or self._total > self._max_message:
                raise ProtocolViolation("The peer's message is larger than is accepted.")
            self._parts.append(body)
            if not header.more:
                message, self._parts, self._total = self._parts, [], 0
                return message

    def _on_command(self, payload: bytes) -> None:
        name, data = wire.decode_command(payload)
        if name == b"PING":
            self._send_all(wire.pong_for(data))
        elif name == b"ERROR":
            raise PeerLost(f"The worker ended the conversation: {wire.error_reason(data)}.")
        # PONG has done its work by being heard; unknown commands are ignored, as the RFC asks.

    def _read_frame(self, deadline: float | None) -> tuple[FrameHeader, Frame]:
        """Read one frame. Nothing is consumed before it is whole, so a timeout loses nothing."""
        self._fill(2, deadline)
        length = wire.header_length(self._buffer[0])
        self._fill(length, deadline)
        header = wire.decode_header(self._buffer, self._max_frame)
        if header.size > _LARGE:
            self._buffer.clear()  # it held the header and no more
            return header, self._read_large(header.size)
        self._fill(length + header.size, deadline)
        body = self._buffer[length:]
        self._buffer.clear()
        return header, body

    def _read_large(self, size: int) -> Frame:
        """Read a large body into memory of its own; the peer's silence is the only limit.

        Where the kernel can wait for all of it, that is one call for the whole body, into memory
        that nobody has filled with zeros before.
        """
        start = b""
        if _KERNEL_WAITS:
            start = self._receive_all(size)
            if len(start) == size:
                return start
        body = bytearray(size)
        body[: len(start)] = start
        have = len(start)
        with memoryview(body) as view:
            while have < size:
                have += self._receive_into(view[have:], None)
        return body

    def _receive_all(self, size: int) -> bytes:
        """`size` bytes, or what came before the peer paused for a heartbeat's time."""
        self._socket.setblocking(True)
        try:
            data = self._socket.recv(size, socket.MSG_WAITALL)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            raise PeerLost(f"The worker closed the connection ({error}).") from error
        finally:
            self._socket.setblocking(False)
        if data:
            self._unanswered_since = None
        return data  # an end of the stream is told by the next read

    def _fill(self, size: int, deadline: float | None) -> None:
        """Read until the buffer holds `size` bytes, and never more."""
        while len(self._buffer) < size:
            chunk = bytearray(size - len(self._buffer))
            count = self._receive_into(memoryview(chunk), deadline)
            self._buffer += memoryview(chunk)[:count]

    def _receive_into(self, view: memoryview, deadline: float | None) -> int:
        while True:
            try:
                count = self._socket.recv_into(view)
            except (BlockingIOError, InterruptedError):
                self._wait(deadline)
                continue
            except OSError as error:
                raise PeerLost(f"The worker closed the connection ({error}).") from error
            if count == 0:
                raise PeerLost("The worker closed the connection.")
            self._unanswered_since = None
            return count

    def _wait(self, deadline: float | None) -> None:
        """Wait until there is something to read, keeping the heartbeat going."""
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise ReceiveTimeout("No answer came in the time given.")
        until = [now + self._heartbeat] if deadline is None else [deadline]
        if self._ready:
            silent_since = self._unanswered_since
            if silent_since is not None and now - silent_since > self._patience:
                raise PeerLost(f"Nothing was heard from the worker for {self._patience:g} seconds.")
            if now >= self._next_ping:
                self._next_ping = now + self._heartbeat
                # A program that is busy elsewhere for a while is not gone; a frozen one is.
                self._send_all(wire.ping(_TIME_TO_LIVE))
                if silent_since is None:
                    self._unanswered_since = now
            until += [self._next_ping]
        select.select([self._socket], [], [], max(min(until) - now, 0.001))

    # --- handshake -----------------------------------------------------------------

    def _handshake(self, username: bytes, password: bytes, deadline: float) -> None:
        self._send_all(wire.greeting())
        self._fill_or_lost(wire.GREETING_SIZE, deadline)
        wire.check_greeting(bytes(self._buffer[: wire.GREETING_SIZE]))
        del self._buffer[: wire.GREETING_SIZE]
        self._send_all(wire.hello(username, password))
        self._expect(b"WELCOME", deadline)
        self._send_all(wire.initiate({"Socket-Type": b"DEALER", "Identity": b""}))
        metadata = wire.decode_metadata(self._expect(b"READY", deadline))
        kind = metadata.get("socket-type", b"")
        if kind not in (b"ROUTER", b"REP", b"DEALER"):
            raise ProtocolViolation(f"The peer's socket is of type {kind!r}, not ROUTER.")
        self._ready = True

    def _fill_or_lost(self, size: int, deadline: float) -> None:
        try:
            self._fill(size, deadline)
        except ReceiveTimeout:
            raise PeerLost("The worker's port is open but nothing answers there.") from None

    def _expect(self, wanted: bytes, deadline: float) -> bytes:
        """Read the next command of the handshake and return its data."""
        try:
            header, body = self._read_frame(deadline)
        except ReceiveTimeout:
            raise PeerLost("The worker did not finish the handshake in time.") from None
        if not header.command:
            raise ProtocolViolation("The peer sent a message before the handshake was done.")
        name, data = wire.decode_command(body)
        if name == b"ERROR":
            raise AuthenticationRefused(
                f"The worker refused the token ({wire.error_reason(data)}).",
                hint="The worker was restarted meanwhile, or its port is another's now; try again.",
            )
        if name != wanted:
            raise ProtocolViolation(f"The peer sent {name!r} where {wanted!r} belongs.")
        return data
