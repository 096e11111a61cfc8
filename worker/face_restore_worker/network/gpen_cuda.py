"""GPEN for a GPU: the function of `gpen.Gpen` with fused kernels and a CUDA graph.

Convolutions are cuDNN's, in 16 bits or fp32 (TF32 off) and channels_last order, with weights laid
out once at load: styles multiply activations, demodulation multiplies results (`cuda.styles`).
What cuDNN leaves apart is fused around them (`cuda.plain` says what, `cuda.kernels` does it):

* `blur_feature`: the encoder's activation and FIR, before each of its strided convolutions;
* `finish_up`: FIR, demodulation, bias, leaky ReLU, the encoder feature beside it, the next styles;
* `finish_conv`: the same without FIR, and ToRGB with the doubled picture so far;
* `normalise` and `to_pixels`: pixels to the network's input and back.

The encoder's features are kept as the convolutions leave them and activated where they are read;
the finest, a 1x1 convolution of the picture, is never kept at all. Modulation, demodulation and
the RGB sum are fp32 whatever the convolutions are in; mapping is fp32, or fp64 where they are fp32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from face_restore_worker.network.cuda.context import exact
from face_restore_worker.network.cuda.graph import capture
from face_restore_worker.network.cuda.layers import Feature, Rgb, Styled, nhwc
from face_restore_worker.network.cuda.operations import (
    PLAIN,
    Operations,
    choose_operations,
    relative_error,
)
from face_restore_worker.network.cuda.plain import activate_feature
from face_restore_worker.network.cuda.styles import StyleNetwork, Styles, unit_weight
from face_restore_worker.network.gpen import Gpen, StyledConv
from face_restore_worker.network.primitives import conv2d, conv_transpose2d

log = logging.getLogger(__name__)

#: Largest relative difference of the whole network with fused and with plain operations.
_AGREE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class GpenCuda:
    """A prepared GPEN on a device; call it with fp32 RGB (N, 3, S, S) in [-1, 1].

    Args:
        network: the reference network with fp32 parameters, on the CPU; it is left there.
        dtype: of convolutions and activations: torch.float16, bfloat16 or float32.
        device: a CUDA (or ROCm) device. Any other one computes the same with plain operations.
        operations: those to use; None to choose and prove them.
        graph: whether to record a CUDA graph.
        timed: whether cuDNN chooses its algorithms by timing them, seconds at every load; to see
            what its heuristics cost.

    Attributes:
        operations: the fused operations in use.
        size: S.

    Loading warms everything up: kernels are compiled, cuDNN's algorithms are chosen (by its
    heuristics), the graph is recorded; no face waits for that.
    """

    def __init__(
        self,
        network: Gpen,
        dtype: torch.dtype,
        device: torch.device | str,
        operations: Operations | None = None,
        graph: bool = True,
        timed: bool = False,
    ) -> None:
        self._timed = timed
        self.dtype, self.device = dtype, torch.device(device)
        self.architecture = network.architecture
        self.size = network.architecture.size
        with torch.inference_mode(), exact(self.device, self._timed):
            self._layers = Layers(network, dtype, self.device)
            self._picture = nhwc(
                torch.zeros((1, 3, self.size, self.size), dtype=dtype, device=self.device)
            )
            self._result = torch.empty(0)
            self.operations = operations or choose_operations(self.device, dtype)
            self._replay: Callable[[], None] | None = None
            if self.device.type == "cuda":
                self._warm_up(graph)

    @property
    def recorded(self) -> bool:
        """Whether faces run as one CUDA graph."""
        return self._replay is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what does not run as fast as it could."""
        return self.operations.notes

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Restore each face of the batch by itself; fp32, not clamped, on this device."""
        with exact(self.device, self._timed):
            return torch.cat([self._one(face) for face in x.split(1)])

    @torch.inference_mode()
    def restore_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Restore one face, pixels to pixels, without waiting for the device.

        Args:
            pixels: (S, S, 3) on this device, uint8, or floating RGB in [0, 1].

        Returns:
            (S, S, 3) fp32 RGB in [0, 1], and whether the network's values were all finite, as a
            tensor of one bool: only then do the pixels mean anything.
        """
        with exact(self.device, self._timed):
            self.operations.normalise(pixels, self._picture)
            self._run()
            finite = torch.isfinite(self._result).all()
            return self.operations.to_pixels(self._result, torch.float32), finite

    def _one(self, x: Tensor) -> Tensor:
        self._picture.copy_(x)
        self._run()
        return self._result.clone()  # the next face overwrites it

    def _run(self) -> None:
        (self._replay or self._forward)()

    def _forward(self) -> None:
        self._result = self._layers.run(self._picture, self.operations)

    # --- preparation -------------------------------------------------------------------

    def _warm_up(self, graph: bool) -> None:
        """Compile, prove the whole network against the plain operations, record."""
        generator = torch.Generator().manual_seed(1)
        trial = torch.rand((1, 3, self.size, self.size), generator=generator) * 2 - 1
        self._picture.copy_(trial)
        if self.operations.fused:
            self._prove()
        self._forward()
        eager = self._result.clone()
        if not graph:
            return
        replay = capture(self._forward, self.device)
        if replay == self._forward:
            return
        replay()
        error = relative_error(self._result, eager)
        if not error <= _AGREE[self.dtype]:
            log.warning("The CUDA graph is not used: its result is off by %.2g.", error)
            return
        self._replay = replay

    def _prove(self) -> None:
        """At full size, fused and plain operations must agree, else the plain ones are used."""
        try:
            self._forward()
            torch.cuda.synchronize(self.device)
            error = relative_error(self._result, self._layers.run(self._picture, PLAIN))
            reason = f"the whole network is off by {error:.2g}"
            if error <= _AGREE[self.dtype]:
                return
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:
            reason = str(problem)
        note = f"The fused kernels are not used on {self.device}: {reason}."
        log.warning("%s Plain PyTorch takes their place, which is slower.", note)
        self.operations = Operations(notes=(*self.operations.notes, note))


class Layers:
    """The network's weights on the device, and one face through them."""

    def __init__(self, network: Gpen, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        architecture = network.architecture
        self.channels, self.levels = architecture.channels, architecture.levels
        mapping = torch.float64 if dtype == torch.float32 else torch.float32
        self.style_network = StyleNetwork(network, device, mapping)
        self.encoder_weights: list[Tensor] = []
        self.encoder_biases: list[Tensor] = []
        for index in range(self.levels + 1):
            conv, activation = list(network.get_submodule(f"ecd{index}.0").children())[-2:]
            weight = conv.weight.detach() * conv.scale  # type: ignore[operator]
            self.encoder_weights.append(self._weight(weight) if index else weight.to(device))
            self.encoder_biases.append(activation.bias.detach().to(device))  # type: ignore[operator]
        generator = network.generator
        self.constant = generator.input.input.detach().to(device)
        convs: list[StyledConv] = [generator.conv1, *generator.convs]
        self.weights = []
        for index, layer in enumerate(convs):
            weight = unit_weight(layer, device)
            self.weights.append(self._weight(weight.transpose(0, 1) if index % 2 else weight))
        self.biases = [layer.activate.bias.detach().to(device) for layer in convs]
        self.gains = [layer.noise.weight.detach().to(device) for layer in convs]
        to_rgbs = [generator.to_rgb1, *generator.to_rgbs]
        self.rgb_biases = [layer.bias.detach().to(device).flatten() for layer in to_rgbs]

    def _weight(self, weight: Tensor) -> Tensor:
        return nhwc(weight.to(self.device).to(self.dtype))

    def run(self, picture: Tensor, ops: Operations) -> Tensor:
        """(1, 3, S, S) of the activations' type to (1, 3, S, S) fp32."""
        features = self._encode(picture, ops)
        # .contiguous(): dense weights expect channel-major order, whatever the memory format.
        coarsest = activate_feature(features[-1], slice(None)).contiguous().flatten(1)
        styles = self.style_network.styles(self.style_network.code(coarsest))
        return self._synthesise(features, styles, ops)

    def _encode(self, picture: Tensor, ops: Operations) -> list[Feature]:
        """Features of S, S/2, ... 4."""
        first = self.encoder_weights[0].flatten(1).contiguous()
        features = [Feature(picture, self.encoder_biases[0], first)]
        for index in range(1, self.levels + 1):
            blurred = ops.blur_feature(features[-1], self.dtype)
            raw = conv2d(blurred, self.encoder_weights[index], stride=2)
            del blurred
            features.append(Feature(nhwc(raw), self.encoder_biases[index]))
        return features

    def _synthesise(self, features: list[Feature], styles: Styles, ops: Operations) -> Tensor:
        start = self.constant * styles.inputs[0].view(1, -1, 1, 1)
        # A list hands the tensors on: whoever takes one out can free it before taking more memory.
        held = [nhwc(start.to(self.dtype))]
        rgb: Tensor | None = None
        for level in range(self.levels + 1):
            feature = features.pop()
            if level:
                held.append(self._double(held.pop(), 2 * level - 1, feature, styles, ops))
            layer = Rgb(styles.rgb[level], self.rgb_biases[level], rgb)
            x, rgb = self._convolve(held.pop(), 2 * level, feature, styles, layer, ops)
            if x is not None:
                held.append(x)
            del x
        assert rgb is not None
        return rgb

    def _double(
        self, x: Tensor, index: int, feature: Feature, styles: Styles, ops: Operations
    ) -> Tensor:
        """(1, 2 C', H / 2, W / 2) to (1, 2 C, H, W)."""
        t = conv_transpose2d(x, self.weights[index])
        del x
        return ops.finish_up(t, feature, self._styled(index, styles))

    def _convolve(
        self, x: Tensor, index: int, feature: Feature, styles: Styles, rgb: Rgb, ops: Operations
    ) -> tuple[Tensor | None, Tensor]:
        """(1, 2 C, H, W) to the same, None at the finest level, and the picture so far."""
        u = conv2d(x, self.weights[index], padding=1)
        del x
        return ops.finish_conv(u, feature, self._styled(index, styles), rgb)

    def _styled(self, index: int, styles: Styles) -> Styled:
        following = index + 1
        style = styles.inputs[following] if following < len(styles.inputs) else None
        return Styled(styles.outputs[index], self.biases[index], self.gains[index], style)

    def tensors(self) -> list[Tensor]:
        """Every weight kept on the device."""
        return [
            *self.encoder_weights, *self.encoder_biases, self.constant, *self.weights,
            *self.biases, *self.gains, *self.rgb_biases, *self.style_network.tensors(),
        ]  # fmt: skip
