"""Bytes from peers: the protocol's messages, the ZMTP client, the connection file."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from face_restore_shared import connection, schema, wire, zmtp, zmtp_frames
from face_restore_shared.errors import ConnectionFileError, FaceRestoreError, SchemaError
from fuzz_common import MB, Finding, Target, in_file

# --- messages ------------------------------------------------------------------------------------

_IMAGE = {"width": 5, "height": 4, "channels": 3, "dtype": "uint8"}
_FACE = {
    "box": [1.0, 1.0, 4.0, 3.5],
    "landmarks": [[1, 1], [2, 1], [1.5, 2], [1, 3], [2, 3]],
    "score": 0.9,
    "strength": None,
}
_RESTORED = {
    **_FACE,
    "strength": 1.0,
    "note": None,
    "matrix": [[1, 0, 0], [0, 1, 0]],
    "crop_size": 64,
    "aligned": 0,
    "patch": {"x": 0, "y": 0, "width": 2, "height": 2, "dtype": "uint8"},
}
_STATUS = schema.StatusReply(
    version="1",
    protocol=1,
    pid=1,
    uptime=1.0,
    device=schema.DeviceInfo("cpu", "CPU", 1000, 500),
    state="ready",
).to_wire()
EXAMPLES: list[tuple[str, dict[str, Any], list[bytes]]] = [
    ("hello", {"client": "fuzz"}, []),
    ("status", {}, []),
    ("status", _STATUS, []),
    ("models", {}, []),
    ("cancel", {"job": "1"}, []),
    ("unload", {}, []),
    ("detect", {"image": _IMAGE, "detect": {"previews": 9, "region": [0, 0, 3, 3]}}, [bytes(60)]),
    ("detect", {"image": _IMAGE, "selection": True}, [bytes(60), bytes(20)]),
    ("restore", {"image": _IMAGE, "restore": {"strength": 0.5}, "faces": [_FACE]}, [bytes(60)]),
    ("accepted", {"job": "1", "position": 0}, []),
    (
        "progress",
        {"job": "1", "stage": "restoring", "face": 1, "faces": 2, "fraction": 0.5, "text": ""},
        [],
    ),
    ("error", {"code": "busy", "message": "Busy.", "hint": "", "job": None}, []),
    (
        "result",
        {
            "job": "1",
            "model": "M",
            "model_id": "m",
            "detector": "d",
            "device": "CPU",
            "notes": ["a"],
            "timings": {"detecting": 0.1},
            "faces": [_RESTORED],
        },
        [bytes(12), bytes(4)],
    ),
    (
        "result",
        {
            "job": "1",
            "faces": [_FACE],
            "detector": "d",
            "timings": {},
            "previews": [[2, 2]],
        },
        [bytes(12)],
    ),
]
_KINDS: dict[str, tuple[Any, ...]] = {
    "hello": (schema.Hello, schema.HelloReply),
    "status": (schema.StatusReply,),
    "models": (schema.ModelsReply,),
    "cancel": (schema.CancelRequest,),
    "detect": (schema.DetectRequest,),
    "restore": (schema.RestoreRequest,),
    "accepted": (schema.Accepted,),
    "progress": (schema.Progress,),
    "result": (schema.RestoreResult, schema.DetectResult),
    "error": (schema.ErrorReply,),
}


def pack_frames(frames: Sequence[Any]) -> bytes:
    """Frames in one text of bytes, each behind its length (4 bytes)."""
    return b"".join(struct.pack("<I", len(bytes(f))) + bytes(f) for f in frames)


def cut_frames(data: bytes) -> list[bytes]:
    """Inverse of `pack_frames`; takes anything."""
    frames, position = [], 0
    while position + 4 <= len(data) and len(frames) < 40:
        (length,) = struct.unpack_from("<I", data, position)
        frames.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    return frames


def check_message(data: bytes) -> None:
    """A message as worker and client take it in; only FaceRestoreErrors may come out."""
    frames = cut_frames(data)
    if not frames:
        return
    try:
        header = wire.decode_header(frames[0])
        wire.check_version(header, peer="client")
        body, sizes = wire.take_sizes(header.body)
    except FaceRestoreError:
        return
    for kind in _KINDS.get(header.type, ()):
        value = _same_again(kind, body)
        if value is not None and hasattr(value, "buffers"):
            _check_buffers(frames[1:], sizes, value.buffers)


def _check_buffers(frames: list[bytes], declared: list[int], wanted: list[int]) -> None:
    try:
        buffers = wire.collect(frames, declared, wanted)
    except SchemaError:
        return
    for buffer, size in zip(buffers, wanted, strict=True):
        if buffer.take().nbytes != size:
            raise Finding("a buffer holds something else than it said")


def _same_again(kind: Any, body: Any) -> Any:
    """What was understood must be understood the same way when it is sent on."""
    try:
        value = kind.from_wire(body)
    except SchemaError:
        return None
    again = kind.from_wire(value.to_wire())
    if again.to_wire() != value.to_wire():
        raise Finding(f"{kind.__name__} changes when it is sent on: {value} {again}")
    wire.encode_header("x", "1", value.to_wire())
    return value


def message_seeds() -> list[bytes]:
    return [
        pack_frames([bytes(f) for f in wire.message(kind, "1", body, buffers)])
        for kind, body, buffers in EXAMPLES
    ]


_ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    255,
    65_536,
    65_537,
    2**28,
    2**31,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "auto",
    "x" * 70,
    "\x00",
    b"",
    b"bytes",
    [],
    {},
    [[]],
    "float32",
    "../x",
]


def mutate_message(data: bytes, rng: random.Random) -> bytes:
    """Change one value, or take one away, inside the header's map."""
    frames = cut_frames(data)
    try:
        header = msgpack.unpackb(frames[0], strict_map_key=False)
    except Exception:  # not msgpack any more
        return data
    for _ in range(rng.randint(1, 3)):
        header = _change(header, rng)
    try:
        frames[0] = msgpack.packb(header)
    except (ValueError, OverflowError, TypeError):
        return data
    return pack_frames(frames)


def _change(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.92:
        key = rng.choice(list(value))
        if rng.random() < 0.06:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _change(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.1:
            return value[:index] + value[index + 1 :]
        if choice < 0.2:
            return [*value, value[index]]
        return [*value[:index], _change(value[index], rng), *value[index + 1 :]]
    if type(value) in (int, float) and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 0.5, 1e9])
    return rng.choice(_ODD)


# --- the project's own ZMTP client ---------------------------------------------------------------


class _Pipe(socket.socket):
    """One end of a local pair that lets itself be treated as a TCP socket."""

    def setsockopt(self, level: int, *rest: Any) -> None:  # type: ignore[override]
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *rest)


_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"PLAIN".ljust(20, b"\0") + b"\1" + bytes(31)
_WELCOME = zmtp_frames.encode_command(b"WELCOME")
_READY = zmtp_frames.encode_command(
    b"READY", zmtp_frames.encode_metadata({"Socket-Type": b"ROUTER", "Identity": b""})
)
_STARTS = (b"", _GREETING, _GREETING + _WELCOME, _GREETING + _WELCOME + _READY)


def check_zmtp(data: bytes) -> None:
    """The bytes as what a hostile server says; the first chooses after which step it turns."""
    if not data:
        return
    text = _STARTS[data[0] % 4] + data[1:60_000]
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    pipe = _Pipe(fileno=near.detach())
    with far, pipe:
        far.sendall(text)
        far.shutdown(socket.SHUT_WR)
        _talk(pipe)


def _talk(pipe: socket.socket) -> None:
    real = zmtp.socket.create_connection
    zmtp.socket.create_connection = lambda *_a, **_k: pipe  # type: ignore[assignment]
    try:
        # Small limits are reached sooner than 16 MiB and 2 GiB; the code is the same.
        client = zmtp.ZmtpClient(
            *("127.0.0.1", 1, "u", "p"),
            timeout=5,
            patience=0.05,
            max_frame=1 * MB,
            max_parts=200,
            max_message=2 * MB,
        )
    except zmtp_frames.ZmtpError:
        return
    finally:
        zmtp.socket.create_connection = real
    try:
        while True:
            frames = client.receive(5)
            if frames:
                check_message(pack_frames(frames[:40]))
    except zmtp.ReceiveTimeout:
        raise Finding("the client waits for a server that hung up") from None
    except zmtp_frames.ZmtpError:
        return


def zmtp_seeds() -> list[bytes]:
    hello = wire.encode_header("hello", "1", EXAMPLES[0][1])
    frame = zmtp_frames.encode_header(len(hello)) + hello
    more = zmtp_frames.encode_header(3, more=True) + b"abc"
    large = zmtp_frames.encode_header(300) + bytes(300)
    ping = zmtp_frames.ping(1.5, b"context")
    error = zmtp_frames.encode_command(b"ERROR", b"\x03400")
    odd = b"\x04\x08\x5eRROR\x03400"
    full = _GREETING + _WELCOME + _READY
    return [
        b"\0" + full + frame,
        b"\1" + _WELCOME + _READY,
        b"\1" + error,
        b"\1" + odd,
        b"\2" + _READY + frame,
        b"\3" + frame + more + frame,
        b"\3" + ping + large + zmtp_frames.encode_command(b"PONG", b"context") + frame,
        b"\3" + error,
        b"\3\x02" + struct.pack(">Q", 1 * MB) + b"short",
        b"\3\x02" + struct.pack(">Q", 1 * MB + 1) + b"short",
        b"\3" + b"\x01\x00" * 210,
        b"\0HTTP/1.1 400 Bad Request\r\n\r\n",
    ]


# --- the connection file -------------------------------------------------------------------------


def check_connection(data: bytes) -> None:
    """The bytes as the connection file."""
    try:
        found = connection.parse(data, Path("worker.json"))
    except ConnectionFileError:
        return
    if not found.endpoint.startswith("tcp://127.0.0.1:") or not 0 < found.port < 65_536:
        raise Finding(f"an address elsewhere is taken: {found.endpoint}")
    if found.token in repr(found) or found.token in json.dumps(found.public()):
        raise Finding("the token is shown")
    path = in_file(data, ".json")
    path.chmod(0o600)
    if len(data) <= connection.MAX_FILE and connection.read(path) != found:
        raise Finding("the file reads differently from its bytes")


def connection_seeds() -> list[bytes]:
    good = {
        "endpoint": "tcp://127.0.0.1:4711",
        "token": "0123456789abcdef" * 4,
        "pid": 12,
        "protocol": 1,
        "version": "0.1.0",
        "started": 1700000000.5,
        "log": "/home/x/worker.log",
    }
    variants = [good, {**good, "more": [1, {"a": None}]}, {**good, "pid": -1}, {**good, "log": 5}]
    return [json.dumps(v).encode() for v in variants] + [b"[" * 3000, b"{", b""]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change one value of a JSON text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    changed = _change(value, rng)
    try:
        return json.dumps(changed).encode()
    except (TypeError, ValueError):
        return data


TARGETS = [
    Target("protocol", message_seeds, check_message, 32 * MB, mutate_message),
    Target("zmtp-client", zmtp_seeds, check_zmtp, 64 * MB),
    Target("connection-file", connection_seeds, check_connection, 32 * MB, mutate_json),
]
