"""Frames: round trips without copies, and hostile ones refused before anything is allocated."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from face_restore_shared import wire
from face_restore_shared.errors import FaceRestoreError, SchemaError
from hypothesis import given
from hypothesis import strategies as st

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=20).filter(lambda t: t.isprintable()),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip
bodies = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), plain, max_size=4)


def header_with(body: bytes, version: int = 1) -> bytes:
    """A header frame around an already packed body."""
    start = b"\x84" + b"".join(
        msgpack.packb(v) for v in ("v", version, "type", "status", "id", "1", "body")
    )
    return start + body


@given(st.sampled_from(["hello", "x"]), st.text("01ab", max_size=64), bodies)
def test_header_round_trip(kind: str, request: str, body: dict[str, Any]) -> None:
    header = wire.decode_header(wire.encode_header(kind, request, body))
    assert (header.type, header.id, header.version) == (kind, request, 1)
    assert header.body == body


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 17))
def test_buffers_round_trip_over_frames(sizes: list[int], chunk: int) -> None:
    buffers = [bytes((i * 7 + n) % 256 for n in range(size)) for i, size in enumerate(sizes)]
    original = wire.CHUNK
    wire.CHUNK = chunk
    try:
        frames = wire.message("result", "1", {"a": 1}, buffers)
        assert all(len(frame) <= chunk for frame in frames[1:])
        body, declared = wire.take_sizes(wire.decode_header(frames[0]).body)
        assert body == {"a": 1}
        collected = wire.collect(frames[1:], declared, sizes)
        assert [bytes(buffer.take()) for buffer in collected] == buffers
    finally:
        wire.CHUNK = original


def test_pixels_are_not_copied() -> None:
    array = np.arange(3 * wire.CHUNK // 2, dtype=np.uint8).reshape(-1, 1024)
    frames = wire.message("restore", "1", {}, [array])
    assert [memoryview(f).nbytes for f in frames[1:]] == [wire.CHUNK, wire.CHUNK // 2]
    for number, frame in enumerate(frames[1:]):
        view = np.frombuffer(frame, np.uint8)
        assert np.shares_memory(view, array)
        assert view[5] == array.reshape(-1)[number * wire.CHUNK + 5]
    one = wire.collect([b"12345678"], [8], [8])[0]
    assert one.take().obj == b"12345678"


def test_a_buffer_is_let_go_once_taken() -> None:
    buffer = wire.Buffer([bytes(4), bytes(4)], 8)
    assert buffer.take(bytearray).nbytes == 8
    assert buffer._frames == []


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        header = wire.decode_header(data)
    except SchemaError:
        return
    assert isinstance(header.type, str)
    assert isinstance(header.id, str)


@given(st.data())
def test_a_damaged_header_is_refused_or_still_one(data: st.DataObject) -> None:
    good = bytearray(wire.encode_header("restore", "1", {"image": {"width": 5}, "x": [1, 2.5]}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    test_any_bytes_are_a_header_or_refused.hypothesis.inner_test(bytes(good))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        msgpack.packb([1, 2]),
        msgpack.packb({"type": "hello"}),
        msgpack.packb({"v": True, "type": "hello", "id": "1"}),
        msgpack.packb({"v": 1, "type": 5, "id": "1"}),
        msgpack.packb({"v": 1, "type": "", "id": "1"}),
        msgpack.packb({"v": 1, "type": "hello", "id": "x" * 65}),
        msgpack.packb({"v": 1, "type": "hello", "id": "1", "body": [1]}),
        msgpack.packb({"v": 1, "type": "hello", "id": "1", "body": {1: 2}}),
        header_with(msgpack.packb({"t": msgpack.Timestamp(1)})),
        header_with(msgpack.packb({"t": msgpack.ExtType(5, b"")})),
        header_with(b"\x81\xa1a" + b"\x91" * 100 + b"\x01"),
        header_with(b"\x81\xa1a" + b"\x91" * 60_000 + b"\x01"),
        header_with(b"\x81\xa1a\xa2\xff\xfe"),
        header_with(b"\x80") + b"trailing",
        header_with(b"\x81\xa1a\xdd\xff\xff\xff\xff"),  # an array of 2**32 - 1 items
        header_with(b"\x81\xa1a\xc6\xff\xff\xff\xff"),  # 4 GiB of bytes
        header_with(b"\xdf\xff\xff\xff\xff"),
        bytes(wire.MAX_HEADER + 1),
    ],
)
def test_hostile_headers_are_refused_without_allocating(frame: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SchemaError):
            wire.decode_header(frame)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_sizes_are_checked_before_anything_is_allocated() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SchemaError, match="frames"):
            wire.collect([b"1234"], [8 << 30], [8 << 30])
        with pytest.raises(SchemaError, match="declares"):
            wire.collect([b"1234"], [4], [5])
        with pytest.raises(SchemaError, match="GiB"):
            wire.take_sizes({"buffers": [8 << 30, 1]})
        for wrong in ([-1], [True], [1.5], "8", [1] * (wire.MAX_BUFFERS + 1), [2**70]):
            with pytest.raises(SchemaError):
                wire.take_sizes({"buffers": wrong})
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(0, 50), max_size=5), st.lists(st.integers(0, 50), max_size=5))
def test_frames_must_be_exactly_those_declared(frames: list[int], sizes: list[int]) -> None:
    payload = [bytes(n) for n in frames]
    if [n for n in sizes if n] == frames:
        assert [b.nbytes for b in wire.collect(payload, sizes, sizes)] == sizes
    else:
        with pytest.raises(SchemaError):
            wire.collect(payload, sizes, sizes)


@pytest.mark.parametrize(
    ("theirs", "peer", "outdated"),
    [
        (2, "client", "worker is older"),
        (0, "client", "program .* is older"),
        (2, "worker", "program .* is older"),
        (0, "worker", "worker is older"),
    ],
)
def test_another_version_says_which_side_to_update(theirs: int, peer: str, outdated: str) -> None:
    frame = msgpack.packb({"v": theirs, "type": "novel", "id": "7", "body": ["unknown form"]})
    header = wire.decode_header(frame)
    assert (header.version, header.id) == (theirs, "7")
    with pytest.raises(wire.ProtocolMismatch) as caught:
        wire.check_version(header, peer=peer)
    assert caught.value.code == "protocol-mismatch"
    assert __import__("re").search(outdated, str(caught.value))


def test_what_cannot_be_sent_says_so() -> None:
    with pytest.raises(FaceRestoreError, match="cannot be written"):
        wire.encode_header("hello", "1", {"x": object()})
    with pytest.raises(FaceRestoreError, match="too large"):
        wire.encode_header("hello", "1", {"x": "a" * wire.MAX_HEADER})
    with pytest.raises(FaceRestoreError, match="contiguous"):
        wire.message("x", "1", {}, [np.zeros((4, 4), np.uint8)[:, ::2]])
