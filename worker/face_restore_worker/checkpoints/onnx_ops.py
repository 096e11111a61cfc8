"""Evaluate the few ONNX operators that weights pass through, in float64.

Exporters leave arithmetic on constants in the graph or fold it, as they like; evaluating what is
left makes all of them alike. Types are ignored on purpose: everything floating is float64, so that
16-bit models are read without rounding twice.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Inputs = list[Array | None]
Attributes = Mapping[str, Any]

#: Elements of one result; the largest weight of GPEN-BFR-2048 has 4.7 million.
MAX_ELEMENTS = 1 << 25
#: What a file may ask for however small it is.
MIN_ELEMENTS = 1 << 16
_largest = contextvars.ContextVar("_largest", default=MAX_ELEMENTS)


@contextlib.contextmanager
def elements_at_most(count: int) -> Iterator[None]:
    """Refuse results of more than ``count`` elements (at most MAX_ELEMENTS) inside the body."""
    token = _largest.set(min(count, MAX_ELEMENTS))
    try:
        yield
    finally:
        _largest.reset(token)


class UnsupportedOp(Exception):
    """An operator that no known export of GPEN puts between a weight and its use."""


def evaluate_op(op: str, inputs: Inputs, attributes: Attributes) -> Array:
    """Return the first output of one operator.

    Raises:
        UnsupportedOp: unknown operator, or a result that is unreasonably large.
        ValueError, IndexError, TypeError: the operands do not fit each other.
    """
    function = _OPS.get(op)
    if function is None:
        raise UnsupportedOp(op)
    with np.errstate(all="ignore"):
        result = np.asarray(function(inputs, attributes))
    if result.size > _largest.get():
        raise UnsupportedOp(f"{op} with {result.size} values")
    return result


def _need(inputs: Inputs, index: int) -> Array:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise ValueError(f"input {index} is missing")
    return value


def _ints(inputs: Inputs, index: int, attributes: Attributes, name: str) -> list[int] | None:
    """Return a list of numbers given as an input (newer opsets) or an attribute (older ones)."""
    if index < len(inputs) and inputs[index] is not None:
        return [int(n) for n in _need(inputs, index).reshape(-1)]
    value = attributes.get(name)
    return None if value is None else [int(n) for n in value]


def _binary(function: Callable[[Array, Array], Array]) -> Callable[[Inputs, Attributes], Array]:
    def apply(inputs: Inputs, attributes: Attributes) -> Array:
        a, b = _need(inputs, 0), _need(inputs, 1)
        _limit(np.broadcast_shapes(a.shape, b.shape))
        return function(a, b)

    return apply


def _unary(function: Callable[[Array], Array]) -> Callable[[Inputs, Attributes], Array]:
    return lambda inputs, attributes: function(_need(inputs, 0))


def _limit(shape: tuple[int, ...] | list[int]) -> None:
    if any(n < 0 for n in shape) or math.prod(shape) > _largest.get():
        raise UnsupportedOp(f"a tensor of shape {tuple(shape)}")


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu" and b.dtype.kind in "iu":
        return np.asarray(np.trunc(a / b)).astype(a.dtype)
    return a / b


def _cast(inputs: Inputs, attributes: Attributes) -> Array:
    value = _need(inputs, 0)
    target = attributes.get("to")
    if target in (6, 7) and value.dtype.kind == "f":  # INT32, INT64: shape arithmetic
        return value.astype(np.int64)
    if target in (1, 10, 11, 16):  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
        return value.astype(np.float64)
    return value.astype(np.bool_) if target == 9 else value


def _reshape(inputs: Inputs, attributes: Attributes) -> Array:
    value = _need(inputs, 0)
    shape = _ints(inputs, 1, attributes, "shape") or []
    if not attributes.get("allowzero", 0):
        shape = [value.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return value.reshape(shape)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Array:
    axes = _ints(inputs, 1, attributes, "axes")
    return np.squeeze(_need(inputs, 0), None if axes is None else tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Array:
    return np.expand_dims(_need(inputs, 0), tuple(_ints(inputs, 1, attributes, "axes") or ()))


def _expand(inputs: Inputs, attributes: Attributes) -> Array:
    value = _need(inputs, 0)
    asked = tuple(int(n) for n in _need(inputs, 1).reshape(-1))
    _limit(asked)
    shape = np.broadcast_shapes(value.shape, asked)
    _limit(shape)
    return np.broadcast_to(value, shape)


def _tile(inputs: Inputs, attributes: Attributes) -> Array:
    value, repeats = _need(inputs, 0), [int(n) for n in _need(inputs, 1)]
    _limit([a * b for a, b in zip(value.shape, repeats, strict=True)])
    return np.tile(value, repeats)


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Array:
    shape = [int(n) for n in _need(inputs, 0)]
    _limit(shape)
    value = attributes.get("value")
    return np.full(shape, 0.0 if value is None else value.reshape(-1)[0])


def _range(inputs: Inputs, attributes: Attributes) -> Array:
    start, stop, step = (float(_need(inputs, i).reshape(-1)[0]) for i in range(3))
    _limit([max(0, math.ceil((stop - start) / step))])
    return np.arange(start, stop, step).astype(_need(inputs, 0).dtype)


def _gather(inputs: Inputs, attributes: Attributes) -> Array:
    value, index, axis = _need(inputs, 0), _need(inputs, 1), attributes.get("axis", 0)
    rest = [n for i, n in enumerate(value.shape) if i != axis % value.ndim]
    _limit([*rest, index.size])
    return np.take(value, index, axis=axis)


def _where(inputs: Inputs, attributes: Attributes) -> Array:
    condition, a, b = (_need(inputs, i) for i in range(3))
    _limit(np.broadcast_shapes(condition.shape, a.shape, b.shape))
    return np.where(condition, a, b)


def _slice(inputs: Inputs, attributes: Attributes) -> Array:
    value = _need(inputs, 0)
    starts = _ints(inputs, 1, attributes, "starts") or []
    ends = _ints(inputs, 2, attributes, "ends") or []
    axes = _ints(inputs, 3, attributes, "axes") or list(range(len(starts)))
    steps = _ints(inputs, 4, attributes, "steps") or [1] * len(starts)
    places = [slice(None)] * value.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # "To the beginning" going backwards is any end below -size; Python says None.
        stop = None if step < 0 and end < -value.shape[axis] else end
        places[axis] = slice(start, stop, step)
    return value[tuple(places)]


def _concat(inputs: Inputs, attributes: Attributes) -> Array:
    values = [_need(inputs, i) for i in range(len(inputs))]
    _limit([sum(v.size for v in values)])
    return np.concatenate(values, axis=attributes["axis"])


def _reduce(function: Callable[..., Any]) -> Callable[[Inputs, Attributes], Array]:
    def apply(inputs: Inputs, attributes: Attributes) -> Array:
        axes = _ints(inputs, 1, attributes, "axes")
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return _need(inputs, 0)
        keep = bool(attributes.get("keepdims", 1))
        return np.asarray(
            function(_need(inputs, 0), axis=tuple(axes) if axes else None, keepdims=keep)
        )

    return apply


def _sum_square(value: Array, axis: Any, keepdims: bool) -> Any:
    return np.sum(np.square(value), axis=axis, keepdims=keepdims)


def _l2(value: Array, axis: Any, keepdims: bool) -> Any:
    return np.sqrt(_sum_square(value, axis, keepdims))


def _transpose(inputs: Inputs, attributes: Attributes) -> Array:
    return np.transpose(_need(inputs, 0), attributes.get("perm"))


def _flatten(inputs: Inputs, attributes: Attributes) -> Array:
    value, axis = _need(inputs, 0), attributes.get("axis", 1)
    return value.reshape(math.prod(value.shape[:axis]), -1)


def _shape(inputs: Inputs, attributes: Attributes) -> Array:
    value = _need(inputs, 0)
    return np.array(value.shape[attributes.get("start", 0) : attributes.get("end")], dtype=np.int64)


def _matmul(inputs: Inputs, attributes: Attributes) -> Array:
    a, b = _need(inputs, 0), _need(inputs, 1)
    if a.ndim > 2 or b.ndim > 2:
        raise UnsupportedOp("MatMul of more than two dimensions")
    _limit([a.shape[0] if a.ndim == 2 else 1, b.shape[-1]])
    return a @ b


def _constant(inputs: Inputs, attributes: Attributes) -> Array:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in attributes:
            return np.asarray(attributes[name])
    raise UnsupportedOp("Constant without numbers")


_OPS: dict[str, Callable[[Inputs, Attributes], Array]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Pow": _binary(np.power),
    "Equal": _binary(np.equal),
    "Greater": _binary(np.greater),
    "Less": _binary(np.less),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Floor": _unary(np.floor),
    "Identity": _unary(np.asarray),
    "Dropout": _unary(np.asarray),
    "Cast": _cast,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "MatMul": _matmul,
    "Range": _range,
    "ReduceL2": _reduce(_l2),
    "ReduceMean": _reduce(np.mean),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceSumSquare": _reduce(_sum_square),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
