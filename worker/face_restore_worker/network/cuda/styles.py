"""From a face's code to its styles: mapping, modulation and demodulation, batched over the layers.

A modulated convolution's weight is W''_oi = W'_oi r_o with W'_oi = scale W_oi s_i and
r_o = rsqrt(sum_i W'_oi^2 + 1e-8) (arXiv 1912.04958, 2.2). Instead of making W'' for every face, the
convolution runs with fixed weights V_o = scale W_o / n_o of norm 1, its input is multiplied by
s_i / m and its result by n_o m r_o, where m = max |s_i|: sixteen bits can neither overflow nor
lose small weights, whatever the styles are. The sum over i is q_o . s^2, where
q_oi = sum_k (scale W_oik)^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from face_restore_worker.network.gpen import Gpen, StyledConv, ToRgb
from face_restore_worker.network.primitives import SLOPE, SQRT2, ActivatedLinear, PixelNorm

_EPSILON = 1e-8
_TINY = 1e-20


@dataclass(frozen=True)
class Styles:
    """What one face's style vector means for every layer, fp32.

    inputs: for each styled convolution the (I,) factors of its input.
    outputs: for each the (O,) factors of its result.
    rgb: for each ToRGB its (3, I) weights.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    rgb: list[Tensor]


class StyleNetwork:
    """Final dense layer, mapping network and modulation of all layers, in fp32.

    Args:
        network: the reference network, fp32, anywhere.
        device: where to compute.
        dtype: of the dense layer and the mapping network. In fp32 their error, which every layer's
            styles share, is half of a whole face's in fp32.
    """

    def __init__(
        self, network: Gpen, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        generator = network.generator
        convs = [generator.conv1, *generator.convs]
        to_rgbs = [generator.to_rgb1, *generator.to_rgbs]
        self._convs, self._rgbs = len(convs), len(to_rgbs)
        layers: list[StyledConv | ToRgb] = [*convs, *to_rgbs]
        self._dense = [_dense(layer, device, dtype) for layer in _dense_layers(network)]
        self._modulation = _modulation(layers, device)
        self._widths = [layer.conv.modulation.bias.numel() for layer in layers]
        self._outs = [layer.conv.weight.shape[1] for layer in layers[: self._convs]]
        self._pick = _padding_index(self._widths, device)
        norms = [_norms(layer, device) for layer in layers[: self._convs]]
        wide, tall = max(self._widths), max(self._outs)
        self._squares = torch.zeros((self._convs, tall, wide), device=device)
        self._gains = torch.zeros((self._convs, tall), device=device)
        for i, (squares, gains) in enumerate(norms):
            self._squares[i, : squares.shape[0], : squares.shape[1]] = squares
            self._gains[i, : gains.numel()] = gains
        self._rgb = torch.zeros((self._rgbs, 3, wide), device=device)
        for i, layer in enumerate(layers[self._convs :]):
            weight = layer.conv.weight.detach()[0, :, :, 0, 0] * layer.conv.scale
            self._rgb[i, :, : weight.shape[1]] = weight

    def code(self, flat: Tensor) -> Tensor:
        """The style vector w (1, style_dim) of the activated 4 x 4 feature, (1, 16 C(4)) fp32."""
        x = self._apply(0, flat.to(self._dense[0][0].dtype))
        x = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + _EPSILON)
        for index in range(1, len(self._dense)):
            x = self._apply(index, x)
        return x.float()

    def styles(self, w: Tensor) -> Styles:
        """Everything that depends on w (1, style_dim)."""
        weight, bias = self._modulation
        flat = torch.addmv(bias, weight, w[0])
        padded = F.pad(flat, (0, 1))[self._pick]  # (layers, widest), zeros at the end
        convs = padded[: self._convs]
        largest = convs.abs().amax(dim=1, keepdim=True).clamp_min(_TINY)
        inputs = convs / largest
        sums = torch.bmm(self._squares, inputs.square()[:, :, None])[:, :, 0]
        outputs = self._gains * largest * torch.rsqrt(sums * largest.square() + _EPSILON)
        rgb = self._rgb * padded[self._convs :, None, :]
        return Styles(
            [inputs[i, :width] for i, width in enumerate(self._widths[: self._convs])],
            [outputs[i, :count] for i, count in enumerate(self._outs)],
            [rgb[i, :, :width].contiguous() for i, width in enumerate(self._widths[self._convs :])],
        )

    def _apply(self, index: int, x: Tensor) -> Tensor:
        weight, bias = self._dense[index]
        return F.leaky_relu_(torch.addmm(bias, x, weight), SLOPE)

    def tensors(self) -> list[Tensor]:
        """Everything kept on the device."""
        dense = [tensor for pair in self._dense for tensor in pair]
        return [*dense, *self._modulation, self._pick, self._squares, self._gains, self._rgb]


def unit_weight(layer: StyledConv, device: torch.device) -> Tensor:
    """V (O, I, k, k) fp32 on a device: each output's weights scaled to norm 1."""
    weight = layer.conv.weight.detach()[0].to(device) * layer.conv.scale
    return weight / _norms(layer, device)[1].view(-1, 1, 1, 1)


def _norms(layer: StyledConv | ToRgb, device: torch.device) -> tuple[Tensor, Tensor]:
    """q (O, I) and n (O,): squared weights summed over the kernel, and each output's norm."""
    weight = layer.conv.weight.detach()[0].to(device)
    squares = (weight * layer.conv.scale).square().sum(dim=(2, 3))
    return squares, squares.sum(dim=1).sqrt().clamp_min(_TINY)


def _dense_layers(network: Gpen) -> list[ActivatedLinear]:
    layers = [*network.final_linear, *network.generator.style]
    return [layer for layer in layers if not isinstance(layer, PixelNorm)]


def _dense(
    layer: ActivatedLinear, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Transposed weight (in, out) and bias (out,), the activation's sqrt(2) folded into both."""
    weight = layer.weight.detach().to(device, dtype).t() * (layer.scale * SQRT2)
    return weight.contiguous(), layer.bias.detach().to(device, dtype) * (layer.lr_mul * SQRT2)


def _modulation(layers: list[StyledConv | ToRgb], device: torch.device) -> tuple[Tensor, Tensor]:
    """All layers' modulation as one dense layer: (sum of I, style_dim) and (sum of I,)."""
    dense = [layer.conv.modulation for layer in layers]
    weight = torch.cat([layer.weight.detach().to(device) * layer.scale for layer in dense])
    return weight, torch.cat([layer.bias.detach().to(device) * layer.lr_mul for layer in dense])


def _padding_index(widths: list[int], device: torch.device) -> Tensor:
    """(layers, widest): where each value lies in the concatenation; one past its end for none."""
    total = sum(widths)
    index = torch.full((len(widths), max(widths)), total)
    start = 0
    for row, width in zip(index, widths, strict=True):
        row[:width] = torch.arange(start, start + width)
        start += width
    return index.to(device)
