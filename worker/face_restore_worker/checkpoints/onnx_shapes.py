"""Shapes of an ONNX graph's tensors, one operator at a time, in plain integers.

Exports that are not folded compute shapes at run time; here they are worked out beforehand. The
onnx package's own inference also computes values on the way, and allocates what a file declares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]
#: Gives the whole numbers that the i-th input of the node holds; None when there is none.
Numbers = Callable[[int], list[int] | None]

_SAME = {"LeakyRelu", "Sqrt", "Reciprocal", "Cast", "Identity", "Neg", "Clip", "Dropout", "Abs"}
_BROADCAST = {"Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "Equal", "Greater", "Less"}


def output_shape(
    op: str, inputs: Sequence[Shape | None], attributes: Mapping[str, Any], numbers: Numbers
) -> Shape | None:
    """Return the shape of an operator's first output, None when it is not known.

    Raises:
        ValueError, IndexError, TypeError: the operands do not fit each other.
    """
    if op == "Shape":
        return None if inputs[0] is None else (len(inputs[0]),)
    if op in _BROADCAST:
        known = [s for s in inputs if s is not None]
        return np.broadcast_shapes(*known) if len(known) == len(inputs) else None
    if op == "Concat":
        return _concat([s for s in inputs if s is not None], len(inputs), attributes["axis"])
    if op == "ConstantOfShape":
        asked = numbers(0)
        return None if asked is None else tuple(asked)
    x = inputs[0] if inputs else None
    if x is None:
        return None
    if op in _SAME:
        return x
    if op in ("Conv", "ConvTranspose"):
        return _convolved(op, x, inputs[1], attributes)
    if op in ("Gemm", "MatMul"):
        return _product(op, x, inputs[1], attributes)
    function = _VIEWS.get(op)
    return None if function is None else function(x, inputs, attributes, numbers)


def _concat(shapes: list[Shape], count: int, axis: int) -> Shape | None:
    if len(shapes) != count:
        return None
    first = list(shapes[0])
    first[axis] = sum(s[axis] for s in shapes)
    return tuple(first)


def _convolved(op: str, x: Shape, weight: Shape | None, a: Mapping[str, Any]) -> Shape | None:
    if weight is None or len(weight) != len(x):
        return None
    spatial = len(x) - 2
    strides = a.get("strides", [1] * spatial)
    dilations = a.get("dilations", [1] * spatial)
    pads = a.get("pads", [0] * 2 * spatial)
    more = a.get("output_padding", [0] * spatial)
    out = []
    for i in range(spatial):
        reach = dilations[i] * (weight[2 + i] - 1) + 1
        edge = pads[i] + pads[spatial + i]
        if op == "Conv":
            out.append((x[2 + i] + edge - reach) // strides[i] + 1)
        else:
            out.append((x[2 + i] - 1) * strides[i] + reach - edge + more[i])
    channels = weight[0] if op == "Conv" else weight[1] * a.get("group", 1)
    return (x[0], channels, *out)


def _product(op: str, x: Shape, y: Shape | None, a: Mapping[str, Any]) -> Shape | None:
    if y is None or len(x) < 2 or len(y) != 2:
        return None
    if op == "MatMul":
        return (*x[:-1], y[1])
    return (x[1] if a.get("transA") else x[0], y[0] if a.get("transB") else y[1])


def _list(a: Mapping[str, Any], name: str, given: list[int] | None) -> list[int] | None:
    """Return a list of numbers given as an input (newer opsets) or an attribute (older ones)."""
    return given if given is not None else a.get(name)


def _reshape(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    asked = _list(a, "shape", numbers(1))
    if asked is None:
        return None
    if not a.get("allowzero", 0):
        asked = [x[i] if n == 0 else n for i, n in enumerate(asked)]
    if -1 in asked:
        rest = -math.prod(asked)
        asked = [math.prod(x) // rest if n == -1 else n for n in asked] if rest else asked
    return tuple(asked)


def _transpose(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    return tuple(x[i] for i in a.get("perm", range(len(x) - 1, -1, -1)))


def _unsqueeze(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    axes = _list(a, "axes", numbers(1)) or []
    rank = len(x) + len(axes)
    places = {axis % rank for axis in axes}
    rest = iter(x)
    return tuple(1 if i in places else next(rest) for i in range(rank))


def _squeeze(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    axes = _list(a, "axes", numbers(1))
    if axes is None:
        return tuple(n for n in x if n != 1)
    places = {axis % len(x) for axis in axes}
    return tuple(n for i, n in enumerate(x) if i not in places)


def _flatten(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    axis = a.get("axis", 1)
    return (math.prod(x[:axis]), math.prod(x[axis:]))


def _expand(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    asked = numbers(1)
    return None if asked is None else np.broadcast_shapes(x, tuple(asked))


def _tile(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    repeats = numbers(1)
    if repeats is None:
        return None
    return tuple(n * r for n, r in zip(x, repeats, strict=True))


def _gather(x: Shape, inputs: Sequence[Shape | None], a: Any, numbers: Numbers) -> Shape | None:
    index = inputs[1]
    axis = a.get("axis", 0) % len(x)
    return None if index is None else (*x[:axis], *index, *x[axis + 1 :])


def _slice(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    starts, ends = _list(a, "starts", numbers(1)), _list(a, "ends", numbers(2))
    if starts is None or ends is None:
        return None
    axes = _list(a, "axes", numbers(3)) or list(range(len(starts)))
    steps = numbers(4) or [1] * len(starts)
    out = list(x)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -x[axis] else end
        out[axis] = len(range(*slice(start, stop, step).indices(x[axis])))
    return tuple(out)


def _pad(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    pads = _list(a, "pads", numbers(1))
    if pads is None or len(pads) != 2 * len(x):
        return None
    return tuple(n + pads[i] + pads[len(x) + i] for i, n in enumerate(x))


def _reduce(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    axes = _list(a, "axes", numbers(1))
    if not axes and a.get("noop_with_empty_axes", 0):
        return x
    places = {axis % len(x) for axis in axes} if axes else set(range(len(x)))
    if a.get("keepdims", 1):
        return tuple(1 if i in places else n for i, n in enumerate(x))
    return tuple(n for i, n in enumerate(x) if i not in places)


def _split(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    sizes = _list(a, "split", numbers(1))
    if not sizes:
        return None
    axis = a.get("axis", 0) % len(x)
    return (*x[:axis], min(sizes[0], x[axis]), *x[axis + 1 :])


def _resize(x: Shape, _: Any, a: Mapping[str, Any], numbers: Numbers) -> Shape | None:
    sizes, scales = numbers(3), numbers(2)
    if sizes:
        return tuple(sizes)
    if not scales:
        return None
    return tuple(n * f for n, f in zip(x, scales, strict=True))  # GPEN scales by whole numbers


_View = Callable[[Shape, Sequence[Shape | None], Mapping[str, Any], Numbers], Shape | None]
_VIEWS: dict[str, _View] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Expand": _expand,
    "Tile": _tile,
    "Gather": _gather,
    "Slice": _slice,
    "Pad": _pad,
    "Split": _split,
    "SplitToSequence": _split,  # the shape of its first element
    "SequenceAt": lambda x, *_: x,
    "Resize": _resize,
    "ReduceL2": _reduce,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceSumSquare": _reduce,
}
