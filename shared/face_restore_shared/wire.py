"""From messages to frames and back, without copying pixels.

A message is a header frame, a msgpack map {"v", "type", "id", "body"}, and the frames of its
pixel buffers one after the other: each buffer in frames of CHUNK bytes, the last one shorter.
The header says the buffers' sizes, so everything is checked before anything is allocated.
Nothing here knows sockets; pyzmq and the plug-in's own ZMTP client both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from face_restore_shared import fields as check
from face_restore_shared.errors import FaceRestoreError, SchemaError
from face_restore_shared.messages import MAX_ID
from face_restore_shared.schema import PROTOCOL_VERSION

CHUNK = 16 * 1024 * 1024
MAX_HEADER = 1024 * 1024
MAX_FRAME = CHUNK + 64 * 1024  # what sockets let through
MAX_BUFFERS = 4001  # four for each of the most faces a result may hold
MAX_DEPTH = 12
MAX_ITEMS = 65_536
MAX_TOTAL = 8 << 30


class ProtocolMismatch(FaceRestoreError):
    """Client and worker speak different versions of the protocol."""

    default_code = "protocol-mismatch"


@dataclass(frozen=True)
class Header:
    """A decoded header frame. body is not yet checked against the schema."""

    type: str
    id: str
    body: Mapping[str, Any] = field(default_factory=dict)
    version: int = PROTOCOL_VERSION


def encode_header(kind: str, request: str, body: Mapping[str, Any]) -> bytes:
    """The header frame. Raises SchemaError when it is too large or holds what msgpack cannot."""
    try:
        data: bytes = msgpack.packb(
            {"v": PROTOCOL_VERSION, "type": kind, "id": request, "body": dict(body)},
            use_bin_type=True,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"A {kind} message cannot be written: {error}.") from error
    if len(data) > MAX_HEADER:
        raise SchemaError(f"A {kind} message's header of {len(data)} bytes is too large.")
    return data


def decode_header(frame: Any) -> Header:
    """A header from any bytes-like object; raises SchemaError for whatever is not one.

    A header of another protocol version is returned with its `version` and whatever id and type
    it has; see `check_version`.
    """
    view = memoryview(frame)
    if view.nbytes > MAX_HEADER:
        raise SchemaError(f"The header of {view.nbytes} bytes is larger than {MAX_HEADER}.")
    try:
        data = msgpack.unpackb(
            view,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_str_len=MAX_HEADER,
            max_bin_len=MAX_HEADER,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
            ext_hook=_no_ext,
        )
    except SchemaError:
        raise
    except Exception as error:  # msgpack raises several unrelated classes
        why = type(error).__name__
        raise SchemaError(f"The header is not valid msgpack ({why}).") from error
    if not isinstance(data, dict) or type(data.get("v")) is not int:
        raise SchemaError("The header is not a map with a protocol version.")
    version = data["v"]
    kind, request, body = data.get("type"), data.get("id"), data.get("body", {})
    if version != PROTOCOL_VERSION:
        # Only v, type and id of another version can be relied on.
        return Header(_short(kind), _short(request), {}, version)
    _check_depth(body)
    check.name_text("type", kind, MAX_ID)
    check.text("id", request, MAX_ID)
    if not isinstance(body, dict):
        raise check.fail("body", "a map", body)
    return Header(str(kind), str(request), body, version)


def check_version(header: Header, *, peer: str) -> None:
    """Raise ProtocolMismatch when the header is of another version.

    peer: who sent it, "worker" or "client". The message says which side is to be updated.
    """
    raise_mismatch(header.version, peer=peer)


def raise_mismatch(theirs: int, *, peer: str) -> None:
    """As check_version, for a version known from elsewhere (the connection file)."""
    if theirs == PROTOCOL_VERSION:
        return
    worker, client = (theirs, PROTOCOL_VERSION) if peer == "worker" else (PROTOCOL_VERSION, theirs)
    message = f"The worker speaks protocol version {worker}, this program version {client}."
    if worker < client:
        hint = "The worker is older: update it, then run: face-restore worker restart."
    else:
        hint = "The program (plug-in or command line) is older than the worker: update it."
    raise ProtocolMismatch(message, hint=hint)


def message(
    kind: str, request: str, body: Mapping[str, Any], buffers: Sequence[Any] = ()
) -> list[Any]:
    """All frames of a message; the pixels are slices of the given buffers, not copies.

    buffers: C-contiguous bytes-like objects (arrays too), which must not change until sent.
    """
    views = [_flat(buffer) for buffer in buffers]
    if views:
        body = {**body, "buffers": [view.nbytes for view in views]}
    frames: list[Any] = [encode_header(kind, request, body)]
    for view in views:
        frames.extend(view[start : start + CHUNK] for start in range(0, view.nbytes, CHUNK))
    return frames


def take_sizes(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """The body without "buffers", and the sizes it declares; raises SchemaError."""
    rest = dict(body)
    declared = rest.pop("buffers", [])
    items = check.sequence("buffers", declared, 0, MAX_BUFFERS)
    sizes = [check.integer(f"buffers[{i}]", v, 0, MAX_TOTAL) for i, v in enumerate(items)]
    if sum(sizes) > MAX_TOTAL:
        raise SchemaError(f"The buffers hold more than {MAX_TOTAL >> 30} GiB.", code="too-large")
    return rest, sizes


class Buffer:
    """One received pixel buffer, still in the frames it came in."""

    def __init__(self, frames: list[Any], nbytes: int) -> None:
        self._frames = frames
        self.nbytes = nbytes

    def take(self, allocate: Callable[[int], Any] = bytearray) -> memoryview:
        """The bytes as one flat memoryview; afterwards this object holds nothing.

        A buffer of one frame is handed over as it is (read-only, no copy). A longer one is put
        together once, each frame let go as soon as it has been taken over.
        allocate: makes the writable bytes-like object to put it into.
        """
        frames, self._frames = self._frames, []
        if len(frames) == 1:
            return memoryview(frames[0])
        whole = memoryview(allocate(self.nbytes)).cast("B")
        start = 0
        frames.reverse()
        while frames:
            part = memoryview(frames.pop())
            whole[start : start + part.nbytes] = part
            start += part.nbytes
        return whole


def body_alone(header: Header, frames: Sequence[Any]) -> Any:
    """The body of a request that carries no pixels; raises SchemaError when frames came along."""
    if frames:
        raise SchemaError(f"A {header.type} request carries no pixels.")
    return header.body


def nothing_more(header: Header, frames: Sequence[Any]) -> None:
    """Raise SchemaError when a request that is complete by its type has a body or frames."""
    if body_alone(header, frames):
        raise SchemaError(f"A {header.type} request has an empty body.")


def collect(frames: Sequence[Any], declared: Sequence[int], wanted: Sequence[int]) -> list[Buffer]:
    """The buffers of a message, from its frames after the header.

    declared: sizes the header lists; wanted: sizes that follow from what the body describes.
    Raises SchemaError unless both are the same and the frames are exactly those the sizes ask
    for. Allocates nothing.
    """
    if list(declared) != list(wanted):
        raise SchemaError(
            f"The message declares buffers of {_list(declared)} bytes, "
            f"but what it describes takes {_list(wanted)}."
        )
    expected = [n for size in wanted for n in _cuts(size)]
    actual = [memoryview(frame).nbytes for frame in frames]
    if actual != expected:
        raise SchemaError(
            f"The message's pixels come in {len(actual)} frames of {sum(actual)} bytes, "
            f"expected {len(expected)} frames of {sum(expected)} bytes."
        )
    result, start = [], 0
    for size in wanted:
        count = len(_cuts(size))
        result.append(Buffer(list(frames[start : start + count]), size))
        start += count
    return result


def _cuts(size: int) -> list[int]:
    return [min(CHUNK, size - start) for start in range(0, size, CHUNK)]


def _flat(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise SchemaError("A pixel buffer must be C-contiguous.")
    return view.cast("B") if view.nbytes else memoryview(b"")


def _no_ext(code: int, data: bytes) -> Any:
    raise SchemaError(f"The header holds a msgpack extension ({code}).")


def _short(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= MAX_ID else ""


def _list(sizes: Sequence[int]) -> str:
    shown = ", ".join(map(str, sizes[:4])) + (", ..." if len(sizes) > 4 else "")
    return shown or "no"


def _check_depth(data: Any) -> None:
    level: Iterable[Any] = [data]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(v for v in item.values() if isinstance(v, dict | list))
            elif isinstance(item, list):
                below.extend(v for v in item if isinstance(v, dict | list))
        if not below:
            return
        level = below
    raise SchemaError(f"The header is nested deeper than {MAX_DEPTH}.")
