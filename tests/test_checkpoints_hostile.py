"""Hostile model files: nothing runs, nothing huge is allocated, the reason is said."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from face_restore_worker import load_gpen
from face_restore_worker.checkpoints.onnx_file import read_onnx
from face_restore_worker.errors import CheckpointError
from face_restore_worker.network.architecture import GpenArchitecture
from gpen_factory import random_state, refused, tiny
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

STATE = random_state(tiny(16))


class Bomb:
    """Unpickling it creates a file: what must never happen."""

    def __init__(self, target: Path, call: Callable = exec) -> None:
        self.target, self.call = target, call

    def __reduce__(self) -> tuple:
        if self.call is os.mkdir:
            return os.mkdir, (str(self.target),)
        return self.call, (f"open({str(self.target)!r}, 'w').close()",)


def hides_bomb(where: str, bomb: Bomb) -> object:
    return {
        "top": bomb,
        "value": {**STATE, "ecd9": bomb},
        "nested": {"g_ema": STATE, "args": bomb},
        "key": [STATE, {("a", 1): bomb}],
    }[where]


@pytest.mark.parametrize("call", [exec, eval, os.mkdir])
@pytest.mark.parametrize("where", ["top", "value", "nested", "key"])
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_pickle_bombs_do_not_go_off(
    tmp_path: Path, container: str, where: str, call: Callable
) -> None:
    target, path = tmp_path / "exploded", tmp_path / "model.pth"
    bomb = hides_bomb(where, Bomb(target, call))
    if container == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=container == "zip")
    refused(path, "unsafe")
    assert not target.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pth"]


def test_the_bomb_is_live(tmp_path: Path) -> None:
    """The test above proves something only if the same pickle does explode when it is opened."""
    target = tmp_path / "exploded"
    pickle.loads(pickle.dumps(Bomb(target)))  # noqa: S301
    assert target.exists()


def test_the_unsafe_name_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": Bomb(tmp_path / "x", os.mkdir)}, path)
    module = os.mkdir.__module__
    refused(path, "unsafe", f"{module}.mkdir")


def zip_with(path: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write a torch file again with some records replaced."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            tail = entry.filename.split("/", 1)[1]
            new.writestr(entry.filename, changes.get(tail, old.read(entry)))


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    zip_with(path, {"data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    refused(path, "format", "compressed")


def test_ordinary_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gpen/readme.txt", "hello")
    refused(path, "format", "ZIP archive")


def test_storage_larger_than_its_record(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    zip_with(path, {"data/0": b"\0" * 4})
    refused(path, "truncated")


def test_entry_sizes_beyond_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(content)
    refused(path, "truncated")


def test_huge_storage_is_not_allocated(tmp_path: Path) -> None:
    """A legacy file that declares a terabyte of values in a few hundred bytes."""
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(77)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x4d") >= 1
    path.write_bytes(content.replace(b"K\x4d", b"\x8a\x05\x00\x00\x00\x00\x40", 1))
    refused(path, "truncated", "declares")


def test_strides_of_zero_do_not_multiply_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    huge = GpenArchitecture.from_parameters(16, 2, 4)
    value = torch.zeros(1)
    torch.save({name: value.expand(shape) for name, shape in huge.shapes().items()}, path)
    refused(path, "truncated", "declares")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda h: h["ecd0.0.1.bias"].update(data_offsets=[0, 2**60]), "truncated"),
        (lambda h: h["ecd0.0.1.bias"].update(data_offsets=[-4, 28]), "truncated"),
        (lambda h: h["ecd0.0.1.bias"].update(shape=[2**40, 2**40]), "truncated"),
        (lambda h: h["ecd0.0.1.bias"].update(shape=[-8]), "truncated"),
        (lambda h: h["ecd0.0.1.bias"].update(shape=[True]), "truncated"),
        (lambda h: h["ecd0.0.1.bias"].update(dtype="F8_E4M3"), "truncated"),
        (lambda h: h["ecd0.0.1.bias"].update(dtype=["F32"]), "truncated"),
        (lambda h: h["ecd0.0.1.bias"].pop("shape"), "truncated"),
        (lambda h: h.update({"ecd0.0.1.bias": 5}), "truncated"),
        (
            lambda h: h["ecd0.0.1.bias"].update(data_offsets=h["ecd1.0.2.bias"]["data_offsets"]),
            "truncated",
        ),
    ],
)
def test_hostile_safetensors_headers(tmp_path: Path, change: Callable, code: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    refused(path, code)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9])
def test_huge_safetensors_header(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a": 1}')
    refused(path, "truncated", str(length))


def test_deeply_nested_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    text = b'{"a":' * 200_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(path, "truncated")


def test_reading_imports_nothing_new(tmp_path: Path) -> None:
    """A pickle may name any module; a refused one is not even imported."""
    path = tmp_path / "model.pth"
    path.write_bytes(b"")
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = b"\x80\x02cantigravity\nfly\n)R."
            new.writestr(entry.filename, content)
    refused(path, "unsafe", "antigravity.fly")
    assert "antigravity" not in sys.modules


def _onnx(path: Path, nodes: list, **constants: np.ndarray) -> Path:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    known = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [image], [out], known)
    onnx.save(helper.make_model(graph), path)
    return path


def test_onnx_operands_of_wrong_kinds(tmp_path: Path) -> None:
    """Found by fuzzing: each led to another exception than a CheckpointError."""
    kernel, many = np.ones((3, 3, 3, 3), np.float32), np.ones(36, np.int64)
    grouped = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=[1, 2])
    nothing = helper.make_node("Shape", [], ["y"])
    deep = helper.make_node("Expand", ["x", "w"], ["y"])
    for node, constant in [(grouped, kernel), (nothing, kernel), (deep, many)]:
        path = _onnx(tmp_path / "model.onnx", [node], w=constant)
        with pytest.raises(CheckpointError):
            read_onnx(path)
        with pytest.raises(CheckpointError):
            load_gpen(path)


def test_onnx_tensors_of_unusual_types_and_sizes(tmp_path: Path) -> None:
    """Found by fuzzing: the onnx package itself fails on packed types of sizes beside a zero."""
    for kind, dims in [
        (TensorProto.UINT4, [2, 2**62, 0]),
        (TensorProto.FLOAT, [2, 2**62, 0]),
        (TensorProto.FLOAT, [-1]),
        (TensorProto.INT4, [2, 3]),
        (TensorProto.FLOAT8E4M3FN, [2, 3]),
        (TensorProto.STRING, [2]),
        (99, [2, 3]),
    ]:
        path = _onnx(tmp_path / "model.onnx", [helper.make_node("Identity", ["w"], ["y"])])
        model = onnx.load(path)
        model.graph.initializer.append(TensorProto(name="w", data_type=kind, dims=dims))
        model.graph.initializer[0].raw_data = bytes(6)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError) as refusal:
            read_onnx(path).constant("y")
        assert "'w'" in str(refusal.value)
        with pytest.raises(CheckpointError):
            load_gpen(path)
