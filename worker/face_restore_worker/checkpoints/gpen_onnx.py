"""Find GPEN's weights in an ONNX export, by their place in the graph.

Exporters rename tensors, fold the run-time scales of the equalised learning rate into the weights,
move biases into or out of convolutions and share equal tensors. What stays is the order and kind
of the operations, so the graph is followed from the dense layers outwards:

* the one dense layer that depends on no other is ``final_linear``, the chain behind it the mapping
  network, and those that all hang on its end are the modulations;
* what ``final_linear`` depends on is the encoder;
* convolutions whose weights are computed are the modulated ones, each from one modulation. Their
  weights come from *evaluating* that computation (see ``onnx_modulated``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from face_restore_worker.checkpoints.onnx_file import DAMAGE, Graph, Node, read_onnx
from face_restore_worker.checkpoints.onnx_modulated import modulated_weight
from face_restore_worker.checkpoints.onnx_ops import Array
from face_restore_worker.checkpoints.sniff import truncated

_MAPPING_LR = 0.01
_SLOPE, _SQRT2 = 0.2, math.sqrt(2.0)
_FIR = np.outer([1.0, 3.0, 3.0, 1.0], [1.0, 3.0, 3.0, 1.0]) / 64
#: 16-bit exports hold constants to three digits.
_LOOSE = 2e-3
#: Operators that hand values on unchanged, in another shape or type.
VIEWS = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout"}


def read_gpen_onnx(path: Path) -> dict[str, Tensor]:
    """Return GPEN's tensors by their published names, fp32, the folded scales undone.

    Raises:
        CheckpointError: unreadable, or with the place where the graph is not GPEN's.
    """
    try:
        return _Tracer(read_onnx(path)).state()
    except DAMAGE as error:  # attributes of any type and tensors of any rank may stand anywhere
        reason = str(error).split("\n", 1)[0][:120]
        raise truncated(path, f"the graph does not fit together ({reason})") from error


@dataclass(frozen=True)
class _Tail:
    """What follows a linear operation: y = gain * x + bias, and the tensor y."""

    gain: float
    bias: Array | None
    end: str


class _Tracer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.out: dict[str, Array] = {}

    def state(self) -> dict[str, Tensor]:
        """Walk the graph and return what was found."""
        dense, modulations = self.dense_layers()
        features = self.encoder(dense[0])
        self.mapping(dense)
        self.synthesis(modulations, features)
        return {
            name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
            for name, value in self.out.items()
        }

    # --- dense layers

    def dense_layers(self) -> tuple[list[Node], list[Node]]:
        """Return [final_linear, mapping...] and the modulations, in order."""
        nodes = [node for node in self.graph.nodes if self.is_dense(node)]
        stop = set(nodes)
        children: dict[Node | None, list[Node]] = {}
        for node in nodes:
            above = [a for a in self.graph.ancestors(node.inputs[0], stop) if a in stop]
            if len(above) > 1:
                raise self.graph.problem(f"the dense layer at node {node.index} depends on several")
            children.setdefault(above[0] if above else None, []).append(node)
        roots = children.get(None, [])
        if len(roots) != 1:
            raise self.graph.problem(
                f"{len(roots)} dense layers (Gemm or MatMul) depend on no other one; GPEN has one, "
                "final_linear"
            )
        chain = roots
        while len(children.get(chain[-1], [])) == 1:
            chain = [*chain, children[chain[-1]][0]]
        modulations = children.get(chain[-1], [])
        if len(chain) < 2 or len(modulations) < 5 or len(nodes) != len(chain) + len(modulations):
            raise self.graph.problem(
                f"of {len(nodes)} dense layers {len(chain)} follow each other and "
                f"{len(modulations)} depend on the last of them; in GPEN those are final_linear "
                "with the mapping network, and the modulations"
            )
        return chain, modulations

    def is_dense(self, node: Node) -> bool:
        """Whether this is a product of a computed vector with a constant matrix."""
        if node.op not in ("Gemm", "MatMul") or len(node.inputs) < 2:
            return False
        x, weight = node.inputs[:2]
        return not self.graph.is_constant(x) and self.graph.is_constant(weight)

    def dense_weight(self, node: Node) -> Array:
        """Return the (out, in) matrix, Gemm's factor included."""
        weight = self.graph.constant(node.inputs[1])
        if weight.ndim != 2 or node.attributes.get("transA", 0):
            raise self.graph.problem(f"the dense layer at node {node.index} has no matrix")
        if node.op == "Gemm" and node.attributes.get("transB", 0):
            return weight * node.attributes.get("alpha", 1.0)
        return weight.T * node.attributes.get("alpha", 1.0)

    def own_bias(self, node: Node) -> Array | None:
        """Return the bias that the operator itself adds, flat."""
        if len(node.inputs) < 3 or not node.inputs[2]:
            return None
        return self.graph.constant(node.inputs[2]).reshape(-1) * node.attributes.get("beta", 1.0)

    def mapping(self, dense: list[Node]) -> None:
        """Undo the scales of final_linear and the mapping network."""
        for i, node in enumerate(dense):
            name = f"generator.style.{i}" if i else "final_linear.0"
            lr_mul = _MAPPING_LR if i else 1.0
            weight = self.dense_weight(node)
            tail = self.activated(node, name, len(weight))
            scale = lr_mul / math.sqrt(weight.shape[1])
            self.out[f"{name}.weight"] = weight * (tail.gain / scale)
            self.out[f"{name}.bias"] = self.required(tail.bias, name) / lr_mul

    # --- encoder

    def encoder(self, final_linear: Node) -> list[str]:
        """Find the encoder's layers; return its features' tensors, finest first."""
        convs = [n for n in self.graph.ancestors(final_linear.inputs[0]) if n.op == "Conv"]
        main = [n for n in convs if self.fir_gain(n) is None]
        firs = [n for n in convs if self.fir_gain(n) is not None]
        if not main or len(firs) != len(main) - 1:
            raise self.graph.problem(
                f"final_linear depends on {len(main)} convolutions and {len(firs)} FIR blurs "
                "(4x4, [1, 3, 3, 1]); GPEN's encoder has one blur fewer than convolutions"
            )
        features = []
        for i, node in enumerate(main):
            weight = self.graph.constant(node.inputs[1])
            kernel, stride = (3, 2) if i else (1, 1)
            strides = node.attributes.get("strides", [1, 1])
            if weight.shape[2:] != (kernel, kernel) or strides != [stride, stride]:
                raise self.graph.problem(
                    f"convolution {i} of the encoder has the weights {weight.shape} and the "
                    f"strides {strides} instead of {kernel}x{kernel} and {stride}"
                )
            if i and not math.isclose(self.fir_gain(firs[i - 1]) or 0, 1, rel_tol=0.01):
                raise self.graph.problem(f"the encoder's blur {i} does not keep brightness")
            name = f"ecd{i}.0"
            tail = self.activated(node, name, len(weight))
            scale = 1 / math.sqrt(math.prod(weight.shape[1:]))
            self.out[f"{name}.{1 if i else 0}.weight"] = weight * (tail.gain / scale)
            self.out[f"{name}.{2 if i else 1}.bias"] = self.required(tail.bias, name)
            features.append(tail.end)
        return features

    def fir_gain(self, node: Node) -> float | None:
        """Return the sum of a FIR convolution's kernel, None for any other convolution."""
        if node.op != "Conv" or not self.graph.is_constant(node.inputs[1]):
            return None
        shape = self.graph.shape(node.inputs[1])
        if shape is None or shape[1:] != (1, 4, 4):
            return None
        weight = self.graph.constant(node.inputs[1])
        gain = float(weight[0].sum())
        return gain if np.allclose(weight, gain * _FIR, rtol=0, atol=_LOOSE * abs(gain)) else None

    # --- synthesis

    def synthesis(self, modulations: list[Node], features: list[str]) -> None:
        """Find constant input, styled convolutions and ToRGB layers."""
        convs = [
            node
            for node in self.graph.nodes
            if node.op in ("Conv", "ConvTranspose") and not self.graph.is_constant(node.inputs[1])
        ]
        levels = len(features) - 1
        if len(convs) != len(modulations) or len(convs) != 3 * levels + 2:
            raise self.graph.problem(
                f"{len(convs)} convolutions have computed weights and {len(modulations)} dense "
                f"layers modulate; with {levels} levels GPEN has {3 * levels + 2} of both"
            )
        stop = set(convs)
        styled: list[Node] = []
        rgbs: dict[int, Node] = {}
        for node in convs:
            above = [a for a in self.graph.ancestors(node.inputs[0], stop) if a in stop]
            before = styled.index(above[0]) if above and above[0] in styled else -1
            if self.is_rgb(node):
                rgbs[before] = node
            elif before != len(styled) - 1 or len(above) > 1:
                raise self.graph.problem(
                    f"the modulated convolution at node {node.index} does not follow the one before"
                )
            else:
                styled.append(node)
        rgb_places = [0, *range(2, 2 * levels + 1, 2)]
        if len(styled) != 2 * levels + 1 or sorted(rgbs) != rgb_places:
            raise self.graph.problem(
                f"ToRGB layers follow the styled convolutions {sorted(rgbs)} of {len(styled)}, "
                f"instead of {rgb_places} of {2 * levels + 1}"
            )
        self.learned_input(styled[0])
        free = set(modulations)
        for i, node in enumerate(styled):
            name = f"generator.convs.{i - 1}" if i else "generator.conv1"
            feature = features[levels - (i + 1) // 2]
            self.styled_conv(node, name, feature, free, upsample=i % 2 == 1)
            if i in rgbs:
                rgb_name = f"generator.to_rgbs.{i // 2 - 1}" if i else "generator.to_rgb1"
                self.to_rgb(rgbs[i], rgb_name, free)

    def is_rgb(self, node: Node) -> bool:
        """Whether a modulated convolution is 1x1: from its attributes or its weights' shape."""
        shape = node.attributes.get("kernel_shape") or (self.graph.shape(node.inputs[1]) or ())[2:]
        if len(shape) != 2:
            raise self.graph.problem(
                f"the kernel of the convolution at node {node.index} is unknown"
            )
        return list(shape) == [1, 1]

    def learned_input(self, conv1: Node) -> None:
        """Take the constant that the first styled convolution works on."""
        if not self.graph.is_constant(conv1.inputs[0]):
            raise self.graph.problem("the first modulated convolution has no constant input")
        self.out["generator.input.input"] = self.graph.constant(conv1.inputs[0])

    def styled_conv(
        self, node: Node, name: str, feature: str, free: set[Node], *, upsample: bool
    ) -> None:
        """Take one styled convolution: weights, modulation, feature gain, activation bias."""
        wanted = ("ConvTranspose", [2, 2]) if upsample else ("Conv", [1, 1])
        if (node.op, node.attributes.get("strides", [1, 1])) != wanted:
            raise self.graph.problem(f"{name} is a {node.op} instead of a {wanted[0]}")
        self.modulated(node, name, free, demodulate=True)
        end, gain = node.output, 1.0
        while (step := self.only_user(end)) is not None and step.op != "Concat":
            kernel = self.fir_gain(step)
            if kernel is None and step.op not in (*VIEWS, "Pad"):
                break
            gain, end = gain * (kernel or 1.0), step.output
        if step is None or step.op != "Concat" or len(step.inputs) != 2 or step.inputs[0] != end:
            raise self.graph.problem(f"{name} is not concatenated with an encoder feature")
        if not math.isclose(gain, 4.0 if upsample else 1.0, rel_tol=0.01):
            raise self.graph.problem(f"the blur after {name} has the gain {gain:.3g}")
        self.out[f"{name}.noise.weight"] = self.feature_gain(step.inputs[1], feature, name)
        channels = 2 * self.out[f"{name}.conv.weight"].shape[1]
        tail = self.activated(step, f"{name}.activate", channels)
        self.out[f"{name}.activate.bias"] = self.required(tail.bias, f"{name}.activate")
        if not math.isclose(tail.gain, 1, rel_tol=_LOOSE):
            raise self.graph.problem(f"{name} is scaled by {tail.gain:.3g} before its activation")

    def to_rgb(self, node: Node, name: str, free: set[Node]) -> None:
        """Take one ToRGB layer: weights, modulation, bias."""
        self.modulated(node, name, free, demodulate=False)
        tail = self.affine(node, 3)
        self.out[f"{name}.bias"] = self.required(tail.bias, name).reshape(1, 3, 1, 1)
        self.out[f"{name}.conv.weight"] = self.out[f"{name}.conv.weight"] * tail.gain

    def modulated(self, node: Node, name: str, free: set[Node], *, demodulate: bool) -> None:
        """Take a modulated convolution's weights and its modulation's."""
        dense = [a for a in self.graph.ancestors(node.inputs[1], free) if a in free]
        if len(dense) != 1:
            raise self.graph.problem(f"the weights of {name} depend on {len(dense)} modulations")
        free.remove(dense[0])
        matrix = self.dense_weight(dense[0])
        bias, style = self.own_bias(dense[0]), dense[0].output
        gain = 1.0
        if bias is None:
            tail = self.affine(dense[0], len(matrix), until_bias=True)
            gain, bias, style = tail.gain, tail.bias, tail.end
        where = f"{name}.conv.modulation"
        self.out[f"{where}.weight"] = matrix * (gain * math.sqrt(matrix.shape[1]))
        self.out[f"{where}.bias"] = self.required(bias, where)
        weight = modulated_weight(
            self.graph,
            node,
            style,
            len(matrix),
            demodulate=demodulate,
            name=name,
        )
        self.out[f"{name}.conv.weight"] = weight[None] * math.sqrt(math.prod(weight.shape[1:]))

    def feature_gain(self, tensor: str, feature: str, name: str) -> Array:
        """Return the factor between an encoder feature and what is concatenated, shape (1,)."""
        gain = 1.0
        while tensor != feature:
            node = self.graph.producer.get(tensor)
            if node is None or (node.op not in VIEWS and node.op != "Mul"):
                raise self.graph.problem(
                    f"{name} is not given the encoder feature of its resolution"
                )
            if node.op == "Mul":
                constant = next((n for n in node.inputs if self.graph.is_constant(n)), None)
                value = None if constant is None else self.graph.constant(constant)
                if value is None or value.size != 1:
                    raise self.graph.problem(f"{name}.noise.weight was not found as one number")
                gain *= float(value.reshape(-1)[0])
                tensor = next(n for n in node.inputs if n != constant)
            else:
                tensor = node.inputs[0]
        return np.array([gain])

    # --- what follows an operation

    def activated(self, node: Node, name: str, channels: int) -> _Tail:
        """Follow gain and bias up to the scaled leaky ReLU; ``end`` is what comes out of it."""
        tail = self.affine(node, channels)
        act = self.only_user(tail.end)
        slope = act.attributes.get("alpha", 0.01) if act and act.op == "LeakyRelu" else None
        if act is None or slope is None or not math.isclose(slope, _SLOPE, rel_tol=_LOOSE):
            found = "nothing" if act is None else act.op
            raise self.graph.problem(f"{name} is followed by {found} instead of leaky ReLU 0.2")
        scale = self.only_user(act.output)
        while scale is not None and scale.op in VIEWS:
            scale = self.only_user(scale.output)
        factor = self.number(scale) if scale is not None and scale.op == "Mul" else None
        if scale is None or factor is None or not math.isclose(factor, _SQRT2, rel_tol=_LOOSE):
            raise self.graph.problem(f"{name}'s activation is not multiplied by the root of 2")
        return _Tail(tail.gain, tail.bias, scale.output)

    def affine(self, node: Node, channels: int, until_bias: bool = False) -> _Tail:
        """Follow additions of constants per channel and factors from ``node`` on.

        ``until_bias``: stop after the first addition.
        """
        gain, bias, end = 1.0, None, node.output
        if node.op in ("Gemm", "Conv"):
            bias = self.own_bias(node)
        while (step := self.only_user(end)) is not None and not (until_bias and bias is not None):
            if step.op == "Add":
                constant = [n for n in step.inputs if self.graph.is_constant(n)]
                value = self.graph.constant(constant[0]).reshape(-1) if constant else None
                if value is None or value.size not in (1, channels):
                    break
                added = np.broadcast_to(value, (channels,))
                bias = added if bias is None else bias + added
            elif step.op == "Mul" and self.number(step) is not None:
                factor = self.number(step) or 0.0
                gain, bias = gain * factor, None if bias is None else bias * factor
            elif step.op not in VIEWS:
                break
            end = step.output
        return _Tail(gain, bias, end)

    def only_user(self, tensor: str) -> Node | None:
        """Return the node that uses the tensor, None unless there is exactly one."""
        users = self.graph.users.get(tensor, [])
        return users[0] if len(users) == 1 else None

    def number(self, node: Node) -> float | None:
        """Return the constant single number among a node's inputs."""
        for name in node.inputs:
            if self.graph.is_constant(name):
                value = self.graph.constant(name)
                return float(value.reshape(-1)[0]) if value.size == 1 else None
        return None

    def required(self, bias: Array | None, name: str) -> Array:
        """Return the bias; an error names the layer that has none."""
        if bias is None:
            raise self.graph.problem(f"the bias of {name} was not found")
        return bias
