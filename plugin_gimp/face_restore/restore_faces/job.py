"""One conversation with the worker: short questions, and restoring one picture."""

from __future__ import annotations

import itertools
import sys
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from face_restore_shared import wire
from face_restore_shared.errors import FaceRestoreError, SchemaError
from face_restore_shared.schema import (
    Accepted,
    DetectOptions,
    ErrorReply,
    Hello,
    HelloReply,
    ImageSpec,
    ModelInfo,
    ModelsReply,
    Progress,
    RestoreOptions,
    RestoreRequest,
    RestoreResult,
    StatusReply,
)
from face_restore_shared.version import __version__
from face_restore_shared.zmtp import PeerLost, ReceiveTimeout, ZmtpClient

from restore_faces import sending
from restore_faces.blend import Patch
from restore_faces.geometry import Rect
from restore_faces.worker import Worker

ANSWER_SECONDS = 10.0
SILENCE_SECONDS = 3.0
PATIENT_SECONDS = 60.0  # loading can hold the worker's Python; a result may be gigabytes
SLOWEST_BYTES = 10e6
POLL_SECONDS = 0.25
IDLE_SECONDS = 1.0
_PATIENT = ("starting", "loading", "loading-model", "sending")

Listener = Callable[[str, int, int, float, str], None]
"""Called with stage, face, faces, fraction, detail (progress.text)."""


@dataclass
class Picture:
    """pixels: (height, width, channels) of dtype, sRGB-encoded, flat: bytes-like, or Strips that
    are read while they are sent. selection: one byte a pixel, or None."""

    width: int
    height: int
    channels: int
    dtype: str
    pixels: Any
    selection: Any = None


@dataclass
class Restored:
    """What came back for one picture; patches in the order to paste, in its coordinates."""

    patches: list[Patch] = field(default_factory=list)
    found: int = 0
    model: str = ""
    model_id: str = ""
    device: str = ""
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)


class Conversation:
    """A connected worker. Raises PeerLost when it is lost; not for several threads."""

    def __init__(self, client: ZmtpClient) -> None:
        self._client = client
        self._ids = itertools.count(1)
        hello = HelloReply.from_wire(
            self._ask("hello", Hello(f"gimp plug-in {__version__}").to_wire())
        )
        wire.raise_mismatch(hello.protocol, peer="worker")
        self._state = hello.state

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; the worker drops what it still does for it."""
        self._client.close()

    def status(self) -> StatusReply:
        """How the worker is."""
        return StatusReply.from_wire(self._ask("status"))

    def models(self) -> tuple[ModelInfo, ...]:
        """The models it knows."""
        return tuple(ModelsReply.from_wire(self._ask("models")).models)

    def restore(
        self, picture: Picture, detect: DetectOptions, restore: RestoreOptions, listener: Listener
    ) -> Restored:
        """Restore the faces of one picture. Raises FaceRestoreError as the worker tells it."""
        spec = ImageSpec(picture.width, picture.height, picture.channels, picture.dtype)
        request = RestoreRequest(spec, picture.selection is not None, detect, restore)
        buffers = [picture.pixels]
        if picture.selection is not None:
            buffers.append(picture.selection)
        job = str(next(self._ids))
        listener("sending-picture", 0, 0, 0.0, "")
        sending.send(self._client, "restore", job, request.to_wire(), buffers)
        body, frames = self._await(job, spec.nbytes, listener)
        rest, declared = wire.take_sizes(body)
        result = RestoreResult.from_wire(rest)
        return restored(result, wire.collect(frames, declared, result.buffers))

    def _ask(self, kind: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        request = str(next(self._ids))
        self._client.send(wire.message(kind, request, body or {}))
        deadline = time.monotonic() + ANSWER_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                header, _frames = self._receive(left)
            except ReceiveTimeout:
                break
            if header.id == request:
                if header.type == "error":
                    raise ErrorReply.from_wire(header.body).to_error()
                return header.body
        raise PeerLost(f"The worker did not answer {kind} within {ANSWER_SECONDS:g} seconds.")

    def _receive(self, timeout: float) -> tuple[wire.Header, Sequence[Any]]:
        frames = self._client.receive(timeout)
        header = wire.decode_header(frames[0])
        wire.check_version(header, peer="worker")
        return header, frames[1:]

    def _await(
        self, job: str, nbytes: int, listener: Listener
    ) -> tuple[Mapping[str, Any], Sequence[Any]]:
        """Wait for the job's end, however long it takes, while the worker shows signs of life."""
        silence, limit = 0.0, ANSWER_SECONDS + nbytes / SLOWEST_BYTES
        stage = self._state
        while True:
            before = time.monotonic()
            try:
                header, frames = self._receive(POLL_SECONDS)
            except ReceiveTimeout:
                # Counted in short steps, so that a pause of this process is not the worker's.
                silence += min(time.monotonic() - before, 2 * POLL_SECONDS)
                if silence >= limit:
                    raise PeerLost(f"The worker has said nothing for {silence:.0f} s.") from None
                continue
            silence = 0.0
            if header.id != job:
                if header.type == "error" and not header.id:
                    raise ErrorReply.from_wire(header.body).to_error()
                continue
            if header.type == "result":
                return header.body, frames
            if header.type == "error":
                raise ErrorReply.from_wire(header.body).to_error()
            if header.type == "progress":
                stage = self._state = Progress.from_wire(header.body).stage
            limit = PATIENT_SECONDS if stage in _PATIENT else SILENCE_SECONDS
            _tell(header, listener)


def _tell(header: wire.Header, listener: Listener) -> None:
    if header.type == "progress":
        told = Progress.from_wire(header.body)
        listener(told.stage, told.face, told.faces, told.fraction, told.text)
    elif header.type == "accepted":
        position = Accepted.from_wire(header.body).position
        if position:
            listener("queued", 0, 0, 0.0, str(position))
    elif header.type != "pulse":
        raise SchemaError(f"The worker sent a {header.type} message for a job.")


def restored(result: RestoreResult, buffers: Sequence[wire.Buffer]) -> Restored:
    """A result and its buffers as patches."""
    patches, rest = [], list(buffers)
    for face in result.faces:
        spec = face.patch
        if spec is None:
            continue
        rgb, mask = (floats(buffer, spec.dtype) for buffer in rest[:2])
        rest = rest[len(face.buffers) :]
        rect = Rect(spec.x, spec.y, spec.width, spec.height)
        patches.append(Patch(rect, rgb, mask, face.box, face.score, face.note))
    return Restored(
        patches,
        len(result.faces),
        result.model,
        result.model_id,
        result.device,
        result.notes,
        dict(result.timings),
    )


_CODES = {"uint8": ("B", 1 / 255), "uint16": ("H", 1 / 65535), "float32": ("f", 1.0)}


def floats(buffer: wire.Buffer, dtype: str) -> array[float]:
    """The buffer's values; float32 is what was asked for, integers are brought to [0, 1]."""
    code, scale = _CODES[dtype]
    values: array[float] = array(code)
    values.frombytes(buffer.take())
    if sys.byteorder == "big":
        values.byteswap()
    return values if code == "f" else array("f", map(scale.__mul__, values))


class Session:
    """Keeps a conversation over several pictures; a worker lost in the middle is replaced once."""

    def __init__(self, worker: Worker, listener: Listener) -> None:
        self._worker = worker
        self._listener = listener
        self._talk: Conversation | None = None
        self._used = 0.0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; the worker stays."""
        if self._talk is not None:
            self._talk.close()
            self._talk = None

    def open(self) -> Conversation:
        """The conversation; the worker is started when none runs.

        One that was idle is begun anew: meanwhile this process may have been too busy (reading
        the next layer) to answer the worker's heartbeats.
        """
        if self._talk is not None and time.monotonic() - self._used > IDLE_SECONDS:
            self.close()
        self._used = time.monotonic()
        if self._talk is None:
            client = self._worker.ensure(lambda stage: self._listener(stage, 0, 0, 0.0, ""))
            try:
                self._talk = Conversation(client)
            except BaseException:
                client.close()
                raise
        return self._talk

    def restore(self, picture: Picture, detect: DetectOptions, restore: RestoreOptions) -> Restored:
        """Conversation.restore, sent once more to a new worker when the first one is lost."""
        try:
            return self.open().restore(picture, detect, restore, self._listener)
        except PeerLost:
            pass
        except FaceRestoreError as error:
            if error.code != "stopping":
                raise
        finally:
            self._used = time.monotonic()
        self.close()
        self._listener("restarting", 0, 0, 0.0, "")
        time.sleep(POLL_SECONDS)
        return self.open().restore(picture, detect, restore, self._listener)
