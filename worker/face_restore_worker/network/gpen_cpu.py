"""GPEN for the processor: the function of `gpen.Gpen`, in row strips and without concatenations.

What differs from the reference, and why it is still the same function:

* sqrt(2) * leaky(y + b) == leaky(sqrt(2) * y + sqrt(2) * b), so the activation's gain is folded
  into weights and biases, and oneDNN applies bias and leaky ReLU while it writes the result.
* A convolution with modulated weights is the convolution of scaled inputs, its result scaled by
  the demodulation: whichever of weights and activations is smaller is scaled (`cpu_levels`).
* A convolution of concat(p, e) is conv(p, W[:, :P]) + conv(e, W[:, P:]): where copying would cost
  more, the image part `p` and the encoder part `e` are not brought into one tensor.
* The encoder part sqrt(2) * leaky(gain * feature + b) is rebuilt from the feature wherever it is
  needed, and the finest feature (a 1x1 convolution of the picture) from the picture.
* Large levels are worked through in strips of rows, a strip by each thread (`cpu_strips`).

Modulation, demodulation and the RGB sum are fp32 whatever the convolutions are in. From the
encoder's last feature to the style it is fp64: what is lost there is lost everywhere, and in fp32
it would be a third of the error.
"""

from __future__ import annotations

import threading
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from face_restore_worker.network import cpu_kernels, cpu_native, cpu_native_encoder
from face_restore_worker.network.cpu_levels import (
    CoarseConv,
    CoarseLevel,
    CoarseRgb,
    Feature,
    FineLevel,
    Layers,
    LevelPlanes,
)
from face_restore_worker.network.cpu_memory import Planes, give_back, huge_pages, keep_freed
from face_restore_worker.network.cpu_native import NativeLevel
from face_restore_worker.network.cpu_native_encoder import Finest, NativeDown, NativeFirst
from face_restore_worker.network.cpu_ops import Conv, PatchConv, channels_last, pad_rows
from face_restore_worker.network.cpu_strips import Rows, StripPool, cut, strip_rows
from face_restore_worker.network.gpen import Gpen
from face_restore_worker.network.native.library import Library
from face_restore_worker.network.primitives import (
    SQRT2,
    ActivatedLinear,
    BiasedLeaky,
    EqualConv2d,
    fir_kernel,
    leaky,
)

# Levels up to this side have fewer activations than weights, and are too small for strips.
COARSE = 64
# The compiled kernels are faster from twice this side on (in fp32 that at 32 would take 130 MB).
COARSE_NATIVE = {torch.float32: 32, torch.bfloat16: 16}


class GpenCpu:
    """A prepared GPEN; call it with fp32 RGB (N, 3, S, S) in [-1, 1], get the same shape in fp32.

    Args:
        network: the reference network with fp32 parameters on the CPU; its weights are shared.
        dtype: of convolutions and activations, torch.float32 or torch.bfloat16.
    """

    def __init__(self, network: Gpen, dtype: torch.dtype = torch.float32) -> None:
        keep_freed()
        self.network, self.dtype = network, dtype
        self.planes = Planes()
        self._one_at_a_time = threading.Lock()  # calls share the planes
        self.levels = network.architecture.levels
        self.channels = network.architecture.channels
        self.sides = [4 << level for level in range(self.levels + 1)]
        generator = network.generator
        pairs = zip(generator.convs[::2], generator.convs[1::2], generator.to_rgbs, strict=True)
        layers = cast(list[Layers], list(pairs))
        sided = list(zip(layers, self.sides[1:], strict=True))
        # (inputs, channels, side) of what the compiled kernels compute
        self.native = [
            (some[0].conv.weight.shape[2], some[1].conv.weight.shape[1], side)
            for some, side in sided
            if self._kernels(some, side) is not None
        ]
        native = [side for _, _, side in self.native]
        self.fine = [side for side in self.sides[1:] if side > COARSE or side in native]
        with torch.inference_mode():
            # So that the first face does not wait for the system to clear half a gigabyte.
            self.allot()
            touching = threading.Thread(target=self.planes.touch, name="planes")
            touching.start()
            self.encoder = [self._encoder_conv(index) for index in range(self.levels + 1)]
            self.first = CoarseConv(generator.conv1, dtype, 4)
            self.first_rgb = CoarseRgb(generator.to_rgb1, dtype)
            self.synthesis = [self._level(some, side) for some, side in sided]
            like = torch.empty(0, dtype=torch.float32)
            self.firs = [
                Conv(fir_kernel(channels, 1.0, like), None, dtype, groups=channels)
                for channels in self.channels[:0:-1]
            ]
        touching.join()
        give_back()  # what was only needed to prepare the weights, 0.1 GB at times

    def _level(self, layers: Layers, size: int) -> CoarseLevel | FineLevel | NativeLevel:
        kernels = self._kernels(layers, size)
        if kernels is not None:
            return NativeLevel(kernels, layers, self.dtype, size)
        return (CoarseLevel if size <= COARSE else FineLevel)(layers, self.dtype, size)

    def _kernels(self, layers: Layers, size: int) -> Library | None:
        """The compiled kernels where they compute this level."""
        if size <= COARSE_NATIVE[self.dtype] or not cpu_native.usable(layers, size):
            return None
        return cpu_kernels.kernels(self.dtype)

    def _encoder_conv(self, index: int) -> Conv | PatchConv | NativeFirst | NativeDown:
        conv, activation = list(self.network.get_submodule(f"ecd{index}.0").children())[-2:]
        assert isinstance(conv, EqualConv2d) and isinstance(activation, BiasedLeaky)
        weight, bias = conv.weight * (conv.scale * SQRT2), activation.bias * SQRT2
        if index == 0 and weight.shape[0] % 16 == 0:
            kernels = cpu_kernels.kernels(self.dtype)
            if kernels is not None:
                return NativeFirst(kernels, weight, bias, self.dtype)
        if index > 0 and self._side(index) > COARSE_NATIVE[self.dtype]:
            kernels = cpu_kernels.kernels(self.dtype)
            if kernels is not None and cpu_native_encoder.usable(weight, self.dtype):
                return NativeDown(kernels, weight, bias, self.dtype)
        if index > 0 and self._side(index) <= COARSE and self.dtype == torch.float32:
            return PatchConv(weight, bias)
        side = 2 * self._side(index) + 1
        like = [1, weight.shape[1], min(side, 33), side] if index else None
        return Conv(weight, bias, self.dtype, stride=conv.stride, leaky=True, like=like)

    def _side(self, index: int) -> int:
        """Side of the encoder's feature `index`, pixels."""
        return 4 << (self.levels - index)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Restore each face of the batch by itself; the result is not clamped.

        As many threads compute as torch uses in the calling thread. Calls from several threads
        wait for each other.

        Raises:
            MemoryError: there is too little memory for the planes.
        """
        # Strips of a picture with its three channels beside each other convert slowly.
        x = x.contiguous()
        out = huge_pages(x.numel(), torch.float32).view(x.shape)
        with self._one_at_a_time, StripPool() as pool:
            for face, result in zip(x.split(1), out.split(1), strict=True):
                _Face(self, pool, face).restore(result)
        return out

    def allot(self) -> dict[str, Tensor]:
        """Planes for the features and outputs of the fine levels, and for RGB.

        The largest output, that of the last level but one, is written when the other outputs and
        features but two are no longer needed: these share its memory.
        """
        sides = [side for side in self.fine if side < self.sides[-1]]
        if not sides:
            return {}
        channels = dict(zip(self.sides, self.channels, strict=True))
        features = {
            f"feature {side}": (channels[side], side, side)
            for side in sides
            if side > min(COARSE, COARSE_NATIVE[self.dtype])
        }
        outputs = {f"image {side}": (2 * channels[side], side, side) for side in sides}
        largest = outputs.popitem()
        apart = dict([some.popitem() for some in (features, outputs) if some])
        planes: dict[str, Tensor] = {}
        for name, shapes in (
            ("largest", dict([largest])),
            ("largest", features | outputs),
            ("apart", apart),
        ):
            taken = self.planes.take(name, list(shapes.values()), self.dtype)
            planes |= dict(zip(shapes, taken, strict=True))
        # With room for a border of one zero.
        bordered = [(3, side + 2, side + 2) for side in sides]
        rgb = self.planes.take("rgb", bordered, torch.float32)
        return planes | {f"rgb {side}": plane for side, plane in zip(sides, rgb, strict=True)}

    def release(self) -> None:
        """Let go of the memory that is kept from face to face; the next face takes it anew."""
        self.planes.release()
        give_back()


def dense(layer: ActivatedLinear, x: Tensor, pool: StripPool) -> Tensor:
    """The dense layer in fp64, (1, in) to (1, out); a few rows of its weights at a time."""
    y = x.new_empty(1, len(layer.weight))

    def some(rows: Rows) -> None:
        for few in cut(rows, 16):
            y[:, few.slice] = F.linear(x, layer.weight[few.slice].double())

    pool.each(some, cut(Rows(0, len(layer.weight)), -(-len(layer.weight) // pool.threads)))
    return leaky(y * layer.scale, layer.bias.double() * layer.lr_mul)


class _Face:
    """One face on its way through the network."""

    def __init__(self, owner: GpenCpu, pool: StripPool, x: Tensor) -> None:
        self.owner, self.pool, self.x = owner, pool, x
        self.bordered: dict[int, Tensor] = {}  # RGB by side, in three planes with a border
        self.planes = owner.allot()
        cpu_native.allot(owner.planes, owner.native, owner.dtype)

    def restore(self, out: Tensor) -> None:
        """Write the restored face to fp32 (1, 3, S, S)."""
        features = self._encode()
        coarsest = features.pop()
        # Channel-major, as the dense layer's weights are, whatever the memory format.
        code = coarsest.double().contiguous().flatten(1)
        for layer in (*self.owner.network.final_linear, *self.owner.network.generator.style):
            code = (
                dense(layer, code, self.pool) if isinstance(layer, ActivatedLinear) else layer(code)
            )
        self._synthesise(coarsest, features, code.float(), out)

    def _finest(self, rows: Rows) -> Tensor:
        """The encoder's first feature, of some rows, from the picture."""
        conv, picture = self.owner.encoder[0], self.x[:, :, rows.slice]
        if isinstance(conv, NativeFirst):
            return conv(picture)
        assert isinstance(conv, Conv)  # a 1x1 convolution
        return conv(channels_last(picture, self.owner.dtype))

    # --- encoder -----------------------------------------------------------------------

    def _encode(self) -> list[Tensor]:
        """Features from S/2 down to 4."""
        features: list[Tensor] = []
        above: Feature = self._finest
        for index in range(1, self.owner.levels + 1):
            feature = self._encode_level(above, index)
            features.append(feature)
            above = _rows_of(feature)
        return features

    def _encode_level(self, above: Feature, index: int) -> Tensor:
        owner, size = self.owner, self.owner._side(index)
        c_in = owner.channels[owner.levels - index + 1]
        fir, conv = owner.firs[index - 1], owner.encoder[index]

        if isinstance(conv, NativeDown):
            out, first = self.planes[f"feature {size}"], owner.encoder[0]
            if index == 1 and isinstance(first, NativeFirst):
                conv.run(self.pool, Finest(first, self.x), out, owner.planes)
            else:
                conv.run(self.pool, above, out, owner.planes)
            return out
        assert not isinstance(conv, NativeFirst)  # is of no level
        plain: Conv | PatchConv = conv

        def encode(rows: Rows) -> Tensor:
            # Blurred row i takes rows i-2 .. i+1; row a of the result takes blurred 2a .. 2a+2.
            first, last = 2 * rows.start - 2, 2 * rows.stop + 2
            need = Rows(max(first, 0), min(last, 2 * size))
            part, padding = pad_rows(above(need), need.start - first, last - need.stop)
            return plain(fir(part, (padding, 2)))

        if size <= COARSE:
            return encode(Rows(0, size))
        out = self.planes[f"feature {size}"]

        def strip(rows: Rows) -> None:
            out[:, :, rows.slice] = encode(rows)

        step = strip_rows(size, 4 * size * c_in * owner.dtype.itemsize, self.pool.threads)
        self.pool.each(strip, cut(Rows(0, size), step))
        return out

    # --- synthesis ---------------------------------------------------------------------

    def _synthesise(self, feature: Tensor, features: list[Tensor], style: Tensor, out: Tensor
                    ) -> None:  # fmt: skip
        owner = self.owner
        constant = owner.network.generator.input.input.to(owner.dtype)
        x = owner.first(constant, feature, style)
        rgb = owner.first_rgb(x, style)
        for level in owner.synthesis:
            if isinstance(level, CoarseLevel):
                if features:
                    x, rgb = level(x, features.pop(), rgb, style)
                else:
                    finest = self._finest(Rows(0, out.shape[-1]))
                    x, rgb = level(x, finest, rgb, style)
                continue
            x, rgb = self._fine(level, x, features.pop() if features else None, rgb, style, out)
        if rgb is not out:
            out.copy_(rgb)

    def _fine(self, level: FineLevel | NativeLevel, x: Tensor, feature: Tensor | None, rgb: Tensor,
              style: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        size = level.size
        last = feature is None
        if isinstance(level, NativeLevel):  # RGB in three planes
            below = self.bordered.get(size // 2)
            below = F.pad(rgb, (1, 1, 1, 1)).contiguous() if below is None else below
            out_rgb = out if last else self._border(size)
        else:
            below = F.pad(rgb, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
            out_rgb = out if last else self.planes[f"rgb {size}"][:, :, 1:-1, 1:-1]
        planes = LevelPlanes(
            source=x,
            feature=self._finest if feature is None else _rows_of(feature),
            rgb=below,
            out=None if last else self.planes[f"image {size}"],
            out_rgb=out_rgb,
            memory=self.owner.planes,
        )
        if isinstance(level, NativeLevel):
            first, finest = self.owner.encoder[0], None
            if last:
                assert isinstance(first, NativeFirst)  # it has as many channels
                finest = Finest(first, self.x)
            level.styled(style).run(self.pool, planes, finest)
        else:
            level.styled(style).run(self.pool, planes)
        return (x if planes.out is None else planes.out), planes.out_rgb

    def _border(self, size: int) -> Tensor:
        """The inner (1, 3, size, size) of a plane for RGB whose border is cleared."""
        plane = self.planes[f"rgb {size}"]
        plane = self.bordered[size] = plane.permute(0, 2, 3, 1).view(plane.shape)
        for side in (0, -1):
            plane[:, :, side] = 0
            plane[:, :, :, side] = 0
        return plane[:, :, 1:-1, 1:-1]


def _rows_of(feature: Tensor) -> Feature:
    return lambda rows: feature[:, :, rows.slice]
