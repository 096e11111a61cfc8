"""Sizes are checked before anything is allocated: nothing small makes the program large."""

from __future__ import annotations

import io
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
from face_restore_shared import zmtp_frames
from face_restore_shared.connection import USERNAME
from face_restore_shared.zmtp import ZmtpClient, ZmtpError
from face_restore_worker.checkpoints.onnx_file import read_onnx
from face_restore_worker.errors import CheckpointError, ImageError
from face_restore_worker.images.read import read_image
from fuzz_common import MB, at_most, in_file
from image_target import bomb
from model_targets import _model
from onnx import helper
from picture_files import photo
from PIL import Image
from worker_process import Worker, state, untouched_worker

TAKE = 100 * MB


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with untouched_worker(tmp_path_factory.mktemp("home")) as running:
        yield running


def peak(worker: Worker) -> int:
    """The worker's largest resident size since the last reset, in bytes."""
    text = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def reset(worker: Worker) -> int:
    Path(f"/proc/{worker.process.pid}/clear_refs").write_text("5")
    return peak(worker)


def header(body: bytes, kind: bytes = b"restore") -> bytes:
    """A message's header of which the body is given as it stands on the wire."""
    start = b"\x84\xa1v\x01\xa4type" + msgpack.packb(kind.decode()) + b"\xa2id\xa11\xa4body"
    return start + body


def frame(data: bytes, more: bool = False) -> bytes:
    return zmtp_frames.encode_header(len(data), more=more) + data


def image(width: int, height: int, dtype: str, buffers: list[int]) -> bytes:
    spec = {"width": width, "height": height, "channels": 3, "dtype": dtype}
    return header(msgpack.packb({"image": spec, "buffers": buffers}))


LONG = {
    "frame of 16 MiB": b"\x02" + struct.pack(">Q", 16 * MB) + b"short",
    "frame of 1 TiB": b"\x02" + struct.pack(">Q", 1 << 40) + b"short",
    "frame of 2^63": b"\x02" + struct.pack(">Q", 1 << 63) + b"short",
    "more frames of 16 MiB": b"\x01\x00" + b"\x03" + struct.pack(">Q", 16 * MB) + b"short",
    "command of 4 GiB": b"\x06" + struct.pack(">Q", 1 << 32) + b"short",
    "array of 2^32": frame(header(b"\xdd\xff\xff\xff\xff")),
    "map of 2^32": frame(header(b"\xdf\xff\xff\xff\xff")),
    "array of 65,536": frame(header(b"\xdd\x00\x01\x00\x00")),
    "arrays in arrays": frame(header(b"\xdd\x00\x00\xff\xff" * 10)),
    "bytes of 2^32": frame(header(b"\xc6\xff\xff\xff\xff")),
    "text of 2^32": frame(header(b"\xdb\xff\xff\xff\xff")),
    "extension of 2^32": frame(header(b"\xc9\xff\xff\xff\xff\x05")),
    "nesting": frame(header(b"\x91" * 60_000)),
    "picture of 2^28 pixels": frame(image(65_536, 4_096, "float32", [65_536 * 4_096 * 12])),
    "another size than declared": frame(image(2, 2, "uint8", [8 << 30])),
    "4,001 buffers": frame(image(2, 2, "uint8", [8 << 20] * 1000)),
}


@pytest.mark.parametrize("name", LONG)
def test_no_length_in_a_message_is_believed(worker: Worker, name: str) -> None:
    with worker.raw() as client:
        assert state(client) == "ready"
        before = reset(worker)
        where = worker.connection
        for _ in range(3):
            with ZmtpClient("127.0.0.1", where.port, USERNAME, where.token) as hostile:
                try:
                    hostile._send_all(LONG[name])
                    hostile.send([header(b"\x80", b"status")])
                    while hostile.receive(0.2):  # an error, or nothing while it waits for more
                        pass
                except ZmtpError:
                    pass
        assert state(client) == "ready"
        assert peak(worker) - before < TAKE


def test_a_large_message_is_seen(worker: Worker) -> None:
    """The test above proves something only if memory that is taken shows."""
    size = 6_000
    with worker.raw() as client:
        assert state(client) == "ready"
        before = reset(worker)
        client.restore("1", width=size, height=size)
        client.receive_final()
        assert peak(worker) - before > size * size * 3 // 2


def test_lengths_before_authentication(worker: Worker) -> None:
    """Forty connections that announce 16 MiB each and send nothing take nothing."""
    before = reset(worker)
    start = zmtp_frames.greeting()
    peers = []
    for kind in (b"\x06", b"\x02"):
        for _ in range(20):
            peer = socket.create_connection(("127.0.0.1", worker.connection.port))
            peer.sendall(start + kind + struct.pack(">Q", 16 * MB))
            peers.append(peer)
    with worker.raw() as client:
        assert state(client) == "ready"
    assert peak(worker) - before < TAKE
    for peer in peers:
        peer.close()
    assert psutil.pid_exists(worker.process.pid)


# --- pictures ------------------------------------------------------------------------------------


def encoded(kind: str, **options: object) -> bytearray:
    buffer = io.BytesIO()
    Image.fromarray(photo(32, 32)).save(buffer, kind, **options)
    return bytearray(buffer.getvalue())


def jpeg_bomb() -> bytes:
    data = encoded("JPEG")
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">2H", 65_500, 65_500)
    return bytes(data)


def tiff_bomb(tags: dict[int, int]) -> bytes:
    """A TIFF whose numbers for these tags are replaced."""
    data = encoded("TIFF")
    (offset,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, offset)
    for i in range(count):
        place = offset + 2 + 12 * i
        (tag,) = struct.unpack_from("<H", data, place)
        if tag in tags:
            struct.pack_into("<HII", data, place + 2, 4, 1, tags[tag])
    return bytes(data)


def gif_bomb() -> bytes:
    data = encoded("GIF")
    data[6:10] = struct.pack("<2H", 65_535, 65_535)
    return bytes(data)


def webp_bomb() -> bytes:
    data = encoded("WEBP", lossless=True)
    place = data.index(b"VP8L") + 9
    data[place : place + 4] = struct.pack("<I", 0x0FFFFFFF)  # 16384 x 16384
    return bytes(data)


PICTURES = {
    "PNG": bomb(100_000, 100_000),
    "PNG of 2^31": bomb(2**31 - 1, 2**31 - 1),
    "PNG below the limit": bomb(9_000, 9_000),
    "JPEG": jpeg_bomb(),
    "TIFF": tiff_bomb({256: 1 << 20, 257: 1 << 20}),
    "TIFF of 2^32": tiff_bomb({256: 0xFFFFFFFF, 257: 0xFFFFFFFF}),
    "TIFF with a huge strip": tiff_bomb({278: 0xFFFFFFFF, 279: 0xFFFFFFFF}),
    "GIF": gif_bomb(),
    "WebP": webp_bomb(),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_declare_more_than_they_hold(name: str) -> None:
    in_file(bytes(encoded("PNG")), ".png")
    read_image(in_file(bytes(encoded("PNG")), ".png"))  # what libvips loads once is no bomb
    with at_most(TAKE):
        try:
            picture = read_image(in_file(PICTURES[name], ".bin"))
        except ImageError as error:
            assert error.code in ("too-large", "damaged", "unsupported")
        else:
            assert picture.pixels.size <= 32 * 32 * 3


def png_with(kind: bytes, body: bytes) -> bytes:
    """A small PNG with a chunk of this kind behind its header."""
    data = bytes(encoded("PNG"))
    chunk = struct.pack(">I", len(body)) + kind + body
    return data[:33] + chunk + struct.pack(">I", zlib.crc32(kind + body)) + data[33:]


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_metadata_that_unpacks_to_a_quarter_of_a_gigabyte(kind: bytes) -> None:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(16 * MB)) for _ in range(16)) + packer.flush()
    assert len(packed) < 2 * MB
    start = b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
    path = in_file(png_with(kind, start + packed), ".png")
    with at_most(TAKE):
        try:
            assert read_image(path).pixels.shape == (32, 32, 3)
        except ImageError as error:
            assert error.code == "damaged"


def test_the_limit_on_pixels_can_be_moved(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bytes(encoded("PNG")))
    with pytest.raises(ImageError, match="the limit") as caught:
        read_image(path, max_pixels=1023)
    assert caught.value.code == "too-large" and "--max-pixels" in str(caught.value.hint)
    assert read_image(path, max_pixels=1024).width == 32


# --- model files ---------------------------------------------------------------------------------


def graph(nodes: Sequence[Any], constants: dict[str, Any]) -> bytes:
    """An ONNX file whose output does not depend on these nodes."""
    return _model([*nodes, helper.make_node("Identity", ["x"], ["y"])], constants)


def grown(op: str, *inputs: np.ndarray) -> bytes:
    """A file in which the constant "c" is what the operator makes of these inputs."""
    constants = {f"i{i}": value for i, value in enumerate(inputs)}
    return graph([helper.make_node(op, list(constants), ["c"])], constants)


ROW, COLUMN = np.zeros((1, 30_000), np.float32), np.zeros((30_000, 1), np.float32)
ONE = np.ones(1, np.float32)
ONNX = {
    "ConstantOfShape": grown("ConstantOfShape", np.array([1 << 12, 1 << 13])),
    "Expand": grown("Expand", ONE, np.array([1 << 30])),
    "Tile": grown("Tile", ONE, np.array([1 << 26])),
    "Range": grown("Range", np.int64(0), np.int64(1 << 40), np.int64(1)),
    "Add": grown("Add", ROW, COLUMN),
    "Where": grown("Where", ROW, COLUMN, ONE),
    "MatMul": grown("MatMul", COLUMN, ROW),
    "Gather": grown("Gather", np.ones((2, 10_000), np.float32), np.zeros(20_000, np.int64)),
}


def computed(data: bytes) -> None:
    read_onnx(in_file(data, ".onnx")).constant("c")


@pytest.mark.parametrize("op", ONNX)
def test_constants_of_a_model_do_not_outgrow_its_file(op: str) -> None:
    computed(grown("Tile", ONE, np.array([5])))
    with at_most(TAKE), pytest.raises(CheckpointError, match="in the way"):
        computed(ONNX[op])


def test_many_results_together_do_not_outgrow_the_file() -> None:
    """Each is within the limit, but there are hundreds of them."""
    names = ["a", *(f"c{i}" for i in range(400)), "c"]
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["a"])]
    nodes += [helper.make_node("Add", [a, a], [b]) for a, b in pairwise(names)]
    data = graph(nodes, {"s": np.array([1 << 16])})
    with at_most(TAKE), pytest.raises(CheckpointError, match="other values"):
        computed(data)
