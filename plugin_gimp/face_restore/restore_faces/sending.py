"""Sending a picture while it is still being read: GIMP and the worker then work side by side."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from face_restore_shared import wire
from face_restore_shared.zmtp import Buffer, Streamed, ZmtpClient

AHEAD = 2  # strips that are read but not sent yet
LOOK_SECONDS = 0.5


class Strips:
    """A picture's bytes, read strip by strip while they are sent.

    nbytes: of all strips together. read: gives them in order; called anew for each sending.
    """

    def __init__(self, nbytes: int, read: Callable[[], Iterable[Buffer]]) -> None:
        self.nbytes = nbytes
        self.read = read


def send(
    client: ZmtpClient, kind: str, request: str, body: Mapping[str, Any], buffers: Sequence[Any]
) -> None:
    """Send a message whose first buffer may be Strips; the others are bytes-like.

    Strips are read by this thread, which alone may talk to GIMP, and sent by another. After an
    error in the middle the connection is of no more use. Raises PeerLost, and what reading raises.
    """
    if not buffers or not isinstance(buffers[0], Strips):
        client.send(wire.message(kind, request, body, buffers))
        return
    strips, others = buffers[0], buffers[1:]
    sizes = [strips.nbytes, *(memoryview(buffer).nbytes for buffer in others)]
    head = wire.encode_header(kind, request, {**body, "buffers": sizes})
    read: queue.Queue[Buffer | None] = queue.Queue(AHEAD)
    frames = [head, *_frames(strips.nbytes, iter(read.get, None))]
    frames += wire.message(kind, request, {}, others)[1:]
    sender = _Sender(client, frames)
    sender.start()
    try:
        for strip in strips.read():
            if not sender.hand(read, strip):
                break
    finally:
        sender.hand(read, None)  # where strips are missing this ends the sender with an error
        sender.join()
    if sender.error is not None:
        raise sender.error


class _Sender(threading.Thread):
    def __init__(self, client: ZmtpClient, frames: Sequence[Any]) -> None:
        super().__init__(name="sender", daemon=True)
        self.error: Exception | None = None
        self._client, self._frames = client, frames

    def run(self) -> None:
        try:
            self._client.send(self._frames)
        except Exception as error:
            self.error = error

    def hand(self, to: queue.Queue[Buffer | None], item: Buffer | None) -> bool:
        """Put a strip into the queue; False when nobody takes any more."""
        while self.is_alive():
            try:
                to.put(item, timeout=LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def _frames(nbytes: int, pieces: Iterator[Buffer]) -> list[Streamed]:
    """The protocol's frames of a buffer, all drawing from the same pieces."""
    left = memoryview(b"")

    def take(size: int) -> Iterator[memoryview]:
        nonlocal left
        while size > 0:
            if not left.nbytes:
                piece = next(pieces, None)
                if piece is None:
                    return
                left = memoryview(piece).cast("B")
            part, left = left[:size], left[size:]
            size -= part.nbytes
            yield part

    cuts = (min(wire.CHUNK, nbytes - start) for start in range(0, nbytes, wire.CHUNK))
    return [Streamed(size, take(size)) for size in cuts]
