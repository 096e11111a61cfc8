"""Export GPEN to ONNX in the ways the exports in the wild were made, for tests of the reader.

``AuthorsStyle`` computes the same function in the formulation of the first StyleGAN2 ports, which
is the one PyTorch's older exporter can follow: modulated weights are viewed as grouped
convolutions of static shape, FIR filters run over single-channel images, and every layer takes
its style out of a (1, layers, style) tensor.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from face_restore_worker.network.gpen import Gpen, StyledConv, ToRgb
from face_restore_worker.network.primitives import EqualConv2d, EqualLinear, ModulatedConv2d
from gpen_factory import FIR
from onnx import numpy_helper
from torch import Tensor, nn

SQRT2 = 2**0.5


class AuthorsStyle(nn.Module):
    """GPEN for the older exporter; the parameters are the given network's.

    Args:
        network: the reference.
        separate_bias: add the encoder's biases after the convolutions, as 16-bit exports do.
        depthwise: run FIR filters per channel instead of over single-channel images.
    """

    def __init__(self, network: Gpen, separate_bias: bool = False, depthwise: bool = False) -> None:
        super().__init__()
        self.network = network
        self.separate_bias = separate_bias
        self.depthwise = depthwise
        self.register_buffer("fir", FIR.clone())

    def forward(self, x: Tensor) -> Tensor:
        net = self.network
        features = []
        for i in range(net.architecture.levels + 1):
            x = self.encoder_stage(x, cast(nn.Sequential, net.get_submodule(f"ecd{i}.0")))
            features.append(x)
        dense = cast(EqualLinear, net.final_linear[0])
        w = self.dense(x.reshape(1, -1), dense)
        generator = net.generator
        w = w * torch.rsqrt(torch.mean(w**2, dim=1, keepdim=True) + 1e-8)
        for layer in list(generator.style)[1:]:
            w = self.dense(w, cast(EqualLinear, layer))
        count = 2 * net.architecture.levels + 2
        latent = w.unsqueeze(1).repeat(1, count, 1)
        feature = features.pop()
        x = generator.input.input.repeat(1, 1, 1, 1)
        x = self.styled(x, generator.conv1, latent[:, 0], feature)
        rgb = self.to_rgb(x, generator.to_rgb1, latent[:, 1], None)
        for i in range(net.architecture.levels):
            feature = features.pop()
            up, conv = generator.convs[2 * i], generator.convs[2 * i + 1]
            x = self.styled(x, cast(StyledConv, up), latent[:, 2 * i + 1], feature)
            x = self.styled(x, cast(StyledConv, conv), latent[:, 2 * i + 2], feature)
            to_rgb = cast(ToRgb, generator.to_rgbs[i])
            rgb = self.to_rgb(x, to_rgb, latent[:, 2 * i + 3], rgb)
        return rgb

    def encoder_stage(self, x: Tensor, stage: nn.Sequential) -> Tensor:
        *_, conv, activation = stage
        assert isinstance(conv, EqualConv2d)
        if len(stage) == 3:
            x = self.filter(x, 1, (2, 2))
        weight, bias = conv.weight * conv.scale, cast(Tensor, activation.bias)
        if self.separate_bias:
            x = F.conv2d(x, weight, stride=conv.stride) + bias.view(1, -1, 1, 1)
        else:
            x = F.conv2d(x, weight, bias, stride=conv.stride)
        return F.leaky_relu(x, 0.2) * SQRT2

    def dense(self, x: Tensor, layer: EqualLinear) -> Tensor:
        x = F.linear(x, layer.weight * layer.scale)
        return F.leaky_relu(x + layer.bias * layer.lr_mul, 0.2) * SQRT2

    def filter(self, x: Tensor, gain: int, padding: tuple[int, int], up: int = 1) -> Tensor:
        _, channels, height, width = map(int, x.shape)
        if up == 2:
            x = x.reshape(1, channels, height, 1, width, 1)
            x = F.pad(x, (0, 1, 0, 0, 0, 1)).reshape(1, channels, 2 * height, 2 * width)
        x = F.pad(x, (*padding, *padding))
        kernel = (torch.flip(cast(Tensor, self.fir), (0, 1)) * gain).view(1, 1, 4, 4)
        if self.depthwise:
            return F.conv2d(x, kernel.repeat(channels, 1, 1, 1), groups=channels)
        out = F.conv2d(x.reshape(channels, 1, x.shape[2], x.shape[3]), kernel)
        return out.view(1, channels, out.shape[2], out.shape[3])

    def modulated(self, x: Tensor, conv: ModulatedConv2d, style: Tensor) -> Tensor:
        _, outputs, inputs, k, _ = conv.weight.shape
        layer = conv.modulation
        scales = F.linear(style, layer.weight * layer.scale, layer.bias * layer.lr_mul)
        weight = conv.scale * conv.weight * scales.view(1, 1, inputs, 1, 1)
        if conv.demodulate:
            norm = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
            weight = weight * norm.view(1, outputs, 1, 1, 1)
        if conv.upsample:
            weight = weight.view(1, outputs, inputs, k, k).transpose(1, 2)
            weight = weight.reshape(inputs, outputs, k, k)
            return self.filter(F.conv_transpose2d(x, weight, stride=2), 4, (1, 1))
        return F.conv2d(x, weight.view(outputs, inputs, k, k), padding=k // 2)

    def styled(self, x: Tensor, layer: StyledConv, style: Tensor, feature: Tensor) -> Tensor:
        y = self.modulated(x, layer.conv, style)
        z = torch.cat((y, layer.noise.weight * feature), dim=1)
        return F.leaky_relu(z + layer.activate.bias.view(1, -1, 1, 1), 0.2) * SQRT2

    def to_rgb(self, x: Tensor, layer: ToRgb, style: Tensor, skip: Tensor | None) -> Tensor:
        rgb = self.modulated(x, layer.conv, style) + layer.bias
        return rgb if skip is None else rgb + self.filter(skip, 4, (2, 1), up=2)


def export_legacy(module: nn.Module, size: int, folding: bool = True) -> onnx.ModelProto:
    """Export with the TorchScript-based exporter, static shape (1, 3, size, size)."""
    buffer = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, size, size),),
            buffer,
            dynamo=False,
            do_constant_folding=folding,
            opset_version=14,
            input_names=["input"],
            output_names=["output"],
        )
    return onnx.load_from_string(buffer.getvalue())


def export_dynamo(module: nn.Module, size: int, optimize: bool = True) -> onnx.ModelProto:
    """Export with the newer exporter at opset 18; ``optimize``: fold with onnxscript."""
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(1, 3, size, size),),
            dynamo=True,
            opset_version=18,
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in 16 bits, as converters make it: weights, constants and casts."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    keep = {n.input[2] for n in half.graph.node if n.op_type == "Resize" and len(n.input) > 2}
    tensors = [t for t in half.graph.initializer if t.name not in keep]
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and node.output[0] not in keep:
                tensors.append(attribute.t)
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
    for tensor in tensors:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    del half.graph.value_info[:]
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return half


def share_equal_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with equal initializers stored once, as exporters do."""
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    kept: dict[bytes, str] = {}
    alias: dict[str, str] = {}
    initializers = list(shared.graph.initializer)
    del shared.graph.initializer[:]
    for tensor in initializers:
        key = bytes(str(list(tensor.dims)), "ascii") + numpy_helper.to_array(tensor).tobytes()
        alias[tensor.name] = kept.setdefault(key, tensor.name)
        if alias[tensor.name] == tensor.name:
            shared.graph.initializer.append(tensor)
    for node in shared.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = alias.get(name, name)
    return shared


def anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every name replaced by a number: nothing but positions is left."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    names: dict[str, str] = {"": ""}

    def number(name: str) -> str:
        return names.setdefault(name, f"{len(names)}")

    graph = bare.graph
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = number(value.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [number(name) for name in node.input]
        node.output[:] = [number(name) for name in node.output]
    del graph.value_info[:]
    return bare
