"""Model files of every container, as the import and the worker read them."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import torch
from face_restore_worker.checkpoints.onnx_file import read_onnx
from face_restore_worker.errors import CheckpointError
from face_restore_worker.models.importer import recognise
from face_restore_worker.network.architecture import GpenArchitecture
from fuzz_common import MB, Finding, Target, in_file, no_side_effects
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from wire_targets import _change

torch.set_num_threads(1)


def _read(data: bytes, suffix: str) -> None:
    path = in_file(data, suffix)
    with no_side_effects():
        try:
            found = recognise(path)
        except CheckpointError as error:
            if not error.hint or not error.code.startswith("checkpoint-"):
                raise Finding(f"a refusal without code or hint: {error!r}") from error
            return
    for name, tensor in found.tensors.items():
        if not bool(torch.isfinite(tensor.double()).all()):
            raise Finding(f"{name} is not finite")


def _state() -> dict[str, torch.Tensor]:
    architecture = GpenArchitecture.from_parameters(8, 2, 1 / 64, 8, 1)
    return {name: torch.full(shape, 0.5) for name, shape in architecture.shapes().items()}


# --- PyTorch -------------------------------------------------------------------------------------


def check_torch(data: bytes) -> None:
    """The first byte: even, a whole file; odd, the pickle inside an otherwise sound archive."""
    if not data:
        return
    _read(_archive(data[1:]) if data[0] % 2 else data[1:], ".pth")


def _archive(pickle: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", b"little")
        for key in range(3):
            archive.writestr(f"archive/data/{key}", bytes(64))
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def torch_seeds() -> list[bytes]:
    few = {"a": torch.ones(4, 4), "b.weight": torch.ones(3, dtype=torch.float16)}
    odd = {"params_ema": few, "step": 5, "none": None, "p": torch.nn.Parameter(torch.ones(2))}
    seeds = []
    for content in (few, odd, _state()):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            seeds.append(b"\0" + buffer.getvalue())
        with zipfile.ZipFile(io.BytesIO(seeds[-2][1:])) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            seeds.append(b"\1" + archive.read(name))
    calls = [b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.", b"\x80\x02}q\0."]
    return seeds + [b"\1" + call for call in calls]


# --- safetensors ---------------------------------------------------------------------------------


def check_safetensors(data: bytes) -> None:
    """The first byte: even, a whole file; odd, the header's JSON before 64 bytes of data."""
    if not data:
        return
    body = data[1:]
    if data[0] % 2:
        body = struct.pack("<Q", len(body)) + body + bytes(64)
    _read(body, ".safetensors")


def safetensors_seeds() -> list[bytes]:
    files = [save({"a": torch.ones(2, 3)}), save(_state()), save({"b": torch.ones(1).half()})]
    head = json.dumps({"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    huge = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    lengths = [struct.pack("<Q", n) + b'{"a":1}' for n in (7, 2**63, 2**24, 2**64 - 1)]
    return (
        [b"\0" + f for f in files]
        + [b"\1" + head, b"\1" + huge.encode()]
        + [b"\0" + text for text in lengths]
    )


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """Change one value of the header, where the input is one."""
    if not data or not data[0] % 2:
        return data
    try:
        return data[:1] + json.dumps(_change(json.loads(data[1:]), rng)).encode()
    except (ValueError, TypeError, RecursionError):
        return data


# --- ONNX ----------------------------------------------------------------------------------------


def check_onnx(data: bytes) -> None:
    """The whole file; and every tensor of its graph that can be computed is computed."""
    _read(data, ".onnx")
    with no_side_effects():
        try:
            graph = read_onnx(in_file(data, ".onnx"))
            for node in graph.nodes[:20]:
                if graph.is_constant(node.output):
                    graph.constant(node.output)
        except CheckpointError:
            return


def _model(nodes: list[Any], constants: dict[str, Any] | None = None) -> bytes:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    known = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants or {}).items()
    ]
    graph = helper.make_graph(nodes, "g", [image], [out], known)
    return bytes(helper.make_model(graph).SerializeToString())


def _folded(op: str, inputs: dict[str, Any], **attributes: Any) -> bytes:
    """A graph in which a constant is computed by this operator."""
    node = helper.make_node(op, list(inputs), ["c"], **attributes)
    return _model([node, helper.make_node("Add", ["x", "c"], ["y"])], inputs)


#: Found by fuzzing: a picture with more pixels than numpy can count, whose shape is asked for.
_UNCOUNTABLE = (
    "CA46pAEKDwoBYgoBeBIBYyIEQ29udgoSCgF4CgFjCgASAXkiBVNoYXBlEgFnKiMIwIQ9EAFCAWFKGAAAAAAAAIA/AAAA"
    "QAAAQEAAAIABAAAAQCotCICABAgACICU69wDCICAgICAgICAQBAHQgFiShACAAAAAAAAAAMAAAAAAAAAWhsKAXgSFgoU"
    "CAESEAoCCAEK"
)


def onnx_seeds() -> list[bytes]:
    row, grid = np.arange(6, dtype=np.float32), np.ones((2, 3), np.float32)
    one, shape = np.array([1], np.int64), np.array([2, 3], np.int64)
    kernel = np.ones((3, 3, 3, 3), np.float32)
    return [
        _folded("ConstantOfShape", {"a": shape}),
        _folded("Expand", {"a": one.astype(np.float32), "b": shape}),
        _folded("Tile", {"a": grid, "b": shape}),
        _folded("Range", {"a": np.int64(0), "b": np.int64(9), "d": np.int64(1)}),
        _folded("Pad", {"a": grid, "b": np.array([1, 1, 1, 1], np.int64)}),
        _folded("Reshape", {"a": row, "b": shape}),
        _folded("Transpose", {"a": grid}, perm=[1, 0]),
        _folded("Slice", {"a": row, "b": one, "d": one * 4}),
        _folded("Gather", {"a": grid, "b": one}, axis=0),
        _folded("MatMul", {"a": grid, "b": grid.T.copy()}),
        _folded("Gemm", {"a": grid, "b": grid, "d": row[:2]}, transB=1),
        _folded("Pow", {"a": row, "b": np.float32(2)}),
        _folded("Concat", {"a": row, "b": row}, axis=0),
        _folded("ReduceSum", {"a": grid, "b": one}, keepdims=1),
        _folded("Unsqueeze", {"a": row, "b": one}),
        _folded("Resize", {"a": grid, "r": row[:0], "b": row[1:3]}),
        _folded("Einsum", {"a": grid, "b": grid}, equation="ij,ij->i"),
        _folded("Where", {"a": np.array([True, False]), "b": row[:2], "d": row[1:3]}),
        _model([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": kernel}),
        _model([helper.make_node("ConvTranspose", ["x", "w"], ["y"])], {"w": kernel}),
        _model(
            [
                helper.make_node("Shape", ["x"], ["s"]),
                helper.make_node("ConstantOfShape", ["s"], ["c"]),
                helper.make_node("Add", ["x", "c"], ["y"]),
            ]
        ),
        base64.b64decode(_UNCOUNTABLE),
    ]


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """Change a number, an operator or a name inside the graph."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # no ONNX any more
        return data
    changes: list[Callable[[Any, random.Random], None]] = [_constant, _operator, _wire]
    try:
        if model.graph.node:
            rng.choice(changes)(model.graph, rng)
    except ValueError:  # names that are no UTF-8, numbers that do not fit
        return data
    return bytes(model.SerializeToString())


_SIZES = [-1, 0, 1, 2, 3, 7, 255, 65_536, 10**6, 10**9, 2**31, 2**62, -(2**63)]


def _constant(graph: Any, rng: random.Random) -> None:
    if not graph.initializer:
        return
    tensor = rng.choice(graph.initializer)
    if rng.random() < 0.4:
        tensor.dims[:] = [rng.choice(_SIZES) for _ in range(rng.randint(0, 4))]
    elif tensor.data_type == TensorProto.INT64 and len(tensor.raw_data) >= 8:
        raw = bytearray(tensor.raw_data)
        struct.pack_into("<q", raw, 8 * rng.randrange(len(raw) // 8), rng.choice(_SIZES))
        tensor.raw_data = bytes(raw)
    else:
        tensor.data_type = rng.randint(0, 24)


_OPERATORS = [
    *("Cast", "Concat", "ConstantOfShape", "Conv", "Einsum", "Expand", "Gather", "Gemm", "MatMul"),
    *("Pad", "Pow", "Range", "Reshape", "Resize", "Shape", "Slice", "Squeeze", "Tile", "Where"),
]


def _operator(graph: Any, rng: random.Random) -> None:
    node = rng.choice(graph.node)
    if rng.random() < 0.5:
        node.op_type = rng.choice(_OPERATORS)
    else:
        name = rng.choice(["axis", "perm", "axes", "group", "pads", "strides", "value", "to"])
        value: Any = rng.choice(_SIZES)
        if rng.random() < 0.5:
            value = [rng.choice(_SIZES) for _ in range(rng.randint(0, 4))]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value != []:
            node.attribute.append(helper.make_attribute(name, value))


def _wire(graph: Any, rng: random.Random) -> None:
    node = rng.choice(graph.node)
    names = [t.name for t in graph.initializer] + ["x", "", "c", "y", "s"]
    if node.input and rng.random() < 0.7:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    else:
        node.input.append(rng.choice(names))


TARGETS = [
    Target("torch-file", torch_seeds, check_torch, 64 * MB),
    Target("safetensors-file", safetensors_seeds, check_safetensors, 64 * MB, mutate_header),
    Target("onnx-file", onnx_seeds, check_onnx, 96 * MB, mutate_onnx),
]
