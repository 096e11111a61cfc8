"""An ONNX file as a graph that can be walked and partly evaluated; nothing of it is run."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from face_restore_worker.checkpoints.onnx_ops import (
    MIN_ELEMENTS,
    Array,
    UnsupportedOp,
    elements_at_most,
    evaluate_op,
)
from face_restore_worker.checkpoints.onnx_shapes import Shape, output_shape
from face_restore_worker.checkpoints.sniff import fail, truncated

#: Protobuf's own limit.
MAX_ONNX = 2 << 30
#: GPEN-BFR-2048 has about 1,500 nodes when nothing is folded.
MAX_NODES = 50_000
#: What operands and attributes of wrong types, ranks and ranges lead to.
DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError),
    RuntimeError,  # numpy's word for too many dimensions
)
#: TensorProto.DataType of plain numbers. FLOAT8 to FLOAT4 and INT4 are quantised weights.
_ELEMENTS = dict.fromkeys((1, 10, 11, 16), "floating") | dict.fromkeys(
    (2, 3, 4, 5, 6, 7, 9, 12, 13), "whole"
)
_SMALL = 64  # elements of constants that are kept once computed
_INTERMEDIATE = 32  # results of the largest size that one evaluation may hold together
_AGAIN = "Choose another export, or the model's .pth file."


@dataclass(eq=False)
class Node:
    """One operator: its place in the file's order, tensors in and out, attributes as numbers."""

    index: int
    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(repr=False)

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]


class Graph:
    """The nodes of a model, who makes and who uses which tensor, and what is constant.

    Attributes:
        path: the file.
        nodes: in topological order.
        producer: tensor -> node that makes it.
        users: tensor -> nodes that use it, except those that only ask for its shape.
        input_shape: of the one input; 0 where not fixed.
        output: name of the first output.
    """

    def __init__(self, path: Path, model: Any) -> None:
        self.path = path
        # A weight takes two bytes or more of the file: what is larger than all of it is a bomb.
        self._largest = max(MIN_ELEMENTS, path.stat().st_size)
        graph = model.graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._check_tensors(graph)
        self.nodes = [_node(path, i, node) for i, node in enumerate(graph.node)]
        self.producer: dict[str, Node] = {}
        self.users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if node.op != "Shape":
                    self.users.setdefault(name, []).append(node)
            for name in filter(None, node.outputs):
                if name in self.producer:
                    raise self.problem(f"two nodes make the tensor {name[:80]}")
                self.producer[name] = node
        inputs = [value for value in graph.input if value.name not in self._initializers]
        if len(inputs) != 1 or not graph.output:
            raise self.problem(f"it has {len(inputs)} inputs and {len(graph.output)} outputs")
        self.input_shape = _dims(inputs[0])
        self.output = graph.output[0].name
        self._small: dict[str, Array] = {}
        self._shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
        if len(self.input_shape) == 4:  # a free batch size: one face is as good as any
            self._shapes[inputs[0].name] = (self.input_shape[0] or 1, *self.input_shape[1:])
        self._dynamic = {inputs[0].name}
        self._follow({value.name: _dims(value) for value in graph.value_info})

    def problem(self, what: str) -> Exception:
        """Return the error "PATH is an ONNX model that cannot be used as GPEN: WHAT"."""
        return fail(
            self.path, f"is an ONNX model that cannot be used as GPEN: {what}", _AGAIN, "onnx"
        )

    def is_constant(self, name: str) -> bool:
        """Whether the tensor does not depend on the model's input."""
        return bool(name) and name not in self._dynamic

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape when it is known."""
        return self._shapes.get(name)

    def constant(self, name: str) -> Array:
        """Return the value of a tensor that does not depend on the model's input.

        Raises:
            CheckpointError: it cannot be computed; says which operator stands in the way.
        """
        value = self._small.get(name)
        if value is None:
            value = self.evaluate(name, {})
            if value.size <= _SMALL:
                self._small[name] = value
        return value

    def evaluate(self, name: str, feeds: Mapping[str, Array]) -> Array:
        """Compute one tensor from constants and the given values of other tensors.

        Raises:
            CheckpointError: it cannot be computed; says which operator stands in the way.
        """
        values: dict[str, Array | None] = {**self._small, **feeds}
        held = 0
        for node in self._needed(name, values):
            try:
                inputs = [self._value(values, n) if n else None for n in node.inputs]
                with elements_at_most(self._largest):
                    result = evaluate_op(node.op, inputs, node.attributes)
                values[node.output] = result
                held += result.size
                if held > _INTERMEDIATE * self._largest:
                    raise UnsupportedOp(f"{node.op} behind {held} other values")
            except UnsupportedOp as error:
                raise self.problem(
                    f"the operator {error} is in the way of {name[:80]!r}"
                ) from error
            except DAMAGE as error:
                reason = str(error).split("\n", 1)[0][:120]
                raise self.problem(f"{node.op} of {node.output[:80]!r} fails: {reason}") from error
        return self._value(values, name)

    def ancestors(self, name: str, stop: set[Node] | None = None) -> list[Node]:
        """Return the nodes that a tensor depends on through values (not shapes), in order.

        ``stop``: nodes that are included, but not walked past.
        """
        found: set[Node] = set()
        pending = [name]
        while pending:
            node = self.producer.get(pending.pop())
            if node is None or node in found:
                continue
            found.add(node)
            if node.op != "Shape" and not (stop and node in stop):
                pending.extend(n for n in node.inputs if n and not self.is_constant(n))
        return sorted(found, key=lambda node: node.index)

    def _follow(self, declared: Mapping[str, Shape]) -> None:
        """Find every tensor's shape, and which tensors depend on the input.

        ``declared``: shapes the file claims, used where none is found.
        """
        made = set(self._initializers) | self._dynamic | {""}
        for node in self.nodes:
            if not all(name in made for name in node.inputs):
                raise self.problem(
                    f"node {node.index} ({node.op}) uses what no node before it made"
                )
            made.update(node.outputs)
            fixed = node.op == "Shape" and self.shape(node.inputs[0]) is not None
            if not fixed and any(name in self._dynamic for name in node.inputs):
                self._dynamic.update(filter(None, node.outputs))
            shape = self._output_shape(node)
            shape = declared.get(node.output) if shape is None else shape
            if shape is not None and all(n > 0 for n in shape):
                self._shapes[node.output] = shape

    def _output_shape(self, node: Node) -> Shape | None:
        def numbers(i: int) -> list[int] | None:
            name = node.inputs[i] if i < len(node.inputs) else ""
            if not name or not self.is_constant(name):
                return None
            return [int(n) for n in self.constant(name).reshape(-1)]

        if node.op == "Constant":
            return self.constant(node.output).shape
        try:
            inputs = [self._shapes.get(name) for name in node.inputs]
            shape = output_shape(node.op, inputs, node.attributes, numbers)
            return None if shape is None else tuple(map(operator.index, shape))
        except DAMAGE as error:
            reason = str(error).split("\n", 1)[0][:120]
            raise self.problem(f"node {node.index} ({node.op}) does not fit: {reason}") from error

    def _needed(self, name: str, values: Mapping[str, Array | None]) -> list[Node]:
        found: set[Node] = set()
        pending = [name]
        while pending:
            tensor = pending.pop()
            node = self.producer.get(tensor)
            if tensor in values or node is None or node in found:
                continue
            if tensor != node.output:
                raise self.problem(f"the {node.op} that makes {tensor[:80]!r} has several outputs")
            found.add(node)
            if not self._shape_only(node):
                pending.extend(filter(None, node.inputs))
        return sorted(found, key=lambda node: node.index)

    def _shape_only(self, node: Node) -> bool:
        return node.op == "Shape" and not self.is_constant(node.inputs[0])

    def _value(self, values: dict[str, Array | None], name: str) -> Array:
        value = values.get(name)
        if value is None and name in self._initializers:
            value = tensor_array(self.path, self._initializers[name])
            values[name] = value
        if value is None:
            shape = self._shapes.get(name)
            if shape is None:
                raise self.problem(f"the value of {name[:80]!r} depends on the picture")
            # Only a Shape asks for this one: any array of the inferred shape does.
            try:
                value = np.broadcast_to(np.float64(0), shape)
            except ValueError as error:  # more elements than can be counted
                raise self.problem(f"the size of {name[:80]!r} cannot be") from error
        return value

    def _check_tensors(self, graph: Any) -> None:
        if graph.sparse_initializer:
            raise self.problem("it has sparse weights")
        if len(graph.node) > MAX_NODES:
            raise self.problem(f"it has {len(graph.node)} nodes")
        for tensor in graph.initializer:
            if tensor.data_location == 1:
                where = {e.key: e.value for e in tensor.external_data}.get("location", "?")
                raise self.problem(f"its weights lie in another file ({where[:80]})")


def read_onnx(path: Path) -> Graph:
    """Read an ONNX file; weights in other files are not followed.

    Raises:
        CheckpointError: truncated, too large, or not a graph that can be walked.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    size = path.stat().st_size
    if size >= MAX_ONNX:
        raise fail(path, f"has {size} bytes, more than ONNX allows", _AGAIN, "too-large")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, RecursionError) as error:
        raise truncated(path, f"it cannot be decoded ({str(error)[:120]})") from error
    if model.functions:
        what = "is an ONNX model with functions of its own, which are not followed"
        raise fail(path, what, "Inline them (onnx.inliner), or choose the .pth file.", "onnx")
    try:
        return Graph(path, model)
    except DAMAGE as error:  # operands and attributes may be missing or of any type
        reason = str(error).split("\n", 1)[0][:120]
        raise truncated(path, f"the graph does not fit together ({reason})") from error


def tensor_array(path: Path, tensor: Any) -> Array:
    """Return a TensorProto's values: float64 for floating types, as they are for others.

    Raises:
        CheckpointError: sizes do not fit, or quantised values.
    """
    from onnx import numpy_helper

    dims = list(tensor.dims)
    # Each for itself, too: beside a zero any number has a product that looks small.
    if any(not 0 <= n <= MAX_ONNX for n in dims) or math.prod(dims) > MAX_ONNX:
        raise truncated(path, f"the tensor {tensor.name[:80]!r} has the shape {dims[:8]}")
    if tensor.data_location == 1:
        raise truncated(path, f"the values of the tensor {tensor.name[:80]!r} lie in another file")
    kind = _ELEMENTS.get(tensor.data_type)
    if kind is None:
        what = f"is an ONNX model whose tensor {tensor.name[:80]!r} has values of an unusual type"
        raise fail(path, f"{what} ({tensor.data_type}): quantised, or texts", _AGAIN, "onnx")
    try:
        value = np.asarray(numpy_helper.to_array(tensor))
    except DAMAGE as error:
        reason = str(error).split("\n", 1)[0][:120]
        raise truncated(path, f"the tensor {tensor.name[:80]!r}: {reason}") from error
    return value.astype(np.float64) if kind == "floating" else value


def _node(path: Path, index: int, proto: Any) -> Node:
    attributes = {a.name: value for a in proto.attribute for value in _attribute(path, a)}
    op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
    inputs = list(proto.input)
    if op == "CastLike":  # only the type of its second input matters, and types do not here
        op, inputs = "Identity", inputs[:1]
    return Node(index, op, inputs, list(proto.output) or [""], attributes)


def _attribute(path: Path, proto: Any) -> Iterator[Any]:
    """Yield the value of an attribute of numbers; nothing for texts and subgraphs."""
    match proto.type:
        case 1:
            yield proto.f
        case 2:
            yield proto.i
        case 4:
            yield tensor_array(path, proto.t)
        case 6:
            yield list(proto.floats)
        case 7:
            yield list(proto.ints)


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
