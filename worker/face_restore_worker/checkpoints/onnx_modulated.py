"""Recover a modulated convolution's weights from the computation an exporter left of them.

With style s, learned weights W and the run-time scale c, GPEN convolves with

    V(s) = c W s / sqrt(sum((c W s)^2) + eps)        (without the denominator for ToRGB)

Exporters fold c into W, into s, transpose before or after, or leave all as it is. V(s) itself does
not depend on that, so it is evaluated: for a tiny style t the sum vanishes beside eps, and
V(t) = c W t / sqrt(eps) gives c W exactly. A second evaluation with ordinary styles proves that
the graph computes GPEN's formula with it.
"""

from __future__ import annotations

import numpy as np

from face_restore_worker.checkpoints.onnx_file import Graph, Node
from face_restore_worker.checkpoints.onnx_ops import Array

_TINY = 1e-10
_LOOSE = 1e-3


def modulated_weight(
    graph: Graph, conv: Node, style: str, inputs: int, *, demodulate: bool, name: str
) -> Array:
    """Return c W, float64 (out, in, k, k).

    Args:
        conv: the Conv or ConvTranspose with computed weights.
        style: the tensor s, ``inputs`` values.
        demodulate: whether the denominator is expected.
        name: the layer, for messages.

    Raises:
        CheckpointError: the weights are not computed as in GPEN, or cannot be followed.
    """
    shape = graph.shape(style) or (1, inputs)
    if np.prod(shape) != inputs:
        shape = (1, inputs)
    transposed = conv.op == "ConvTranspose"

    def kernel(styles: Array) -> Array:
        value = graph.evaluate(conv.inputs[1], {style: styles.reshape(shape)})
        if value.ndim != 4 or value.shape[0 if transposed else 1] != inputs:
            raise graph.problem(
                f"the weights of {name} have the shape {value.shape}; {inputs} inputs were expected"
            )
        return value.swapaxes(0, 1) if transposed else value

    eps = _epsilon(graph, conv.inputs[1], style) if demodulate else 1.0
    if eps > 0:
        weight = kernel(np.full(inputs, _TINY)) * (np.sqrt(eps) / _TINY)
    else:
        # 16-bit exports round 1e-8 to 0, and onnxscript's optimiser drops so small an addition.
        # Only the direction is left of W then; with length 1 it is as large as trained weights.
        weight = kernel(np.ones(inputs))
    probe = np.random.default_rng(0).uniform(0.5, 1.5, inputs)
    wanted = weight * probe[:, None, None]
    if demodulate:
        wanted = wanted / np.sqrt(np.square(wanted).sum(axis=(1, 2, 3), keepdims=True) + eps)
    error = np.linalg.norm(kernel(probe) - wanted)
    if not error <= _LOOSE * np.linalg.norm(wanted):
        kind = "modulated and demodulated" if demodulate else "modulated"
        raise graph.problem(f"the weights of {name} are not {kind} as in GPEN")
    return weight


def _epsilon(graph: Graph, weight: str, style: str) -> float:
    """Return the small number added under the root, 0 when there is none (or it became 0)."""
    found = 0.0
    for node in graph.ancestors(weight, set(graph.users.get(style, []))):
        if node.op != "Add":
            continue
        for name in node.inputs:
            if graph.is_constant(name):
                value = graph.constant(name)
                if value.size == 1 and 0 < float(value.reshape(-1)[0]) < 1e-4:
                    found = float(value.reshape(-1)[0])
    return found
