"""Weights of the processor's GPEN as the compiled kernels (`native/`) take them.

They are transformed in fp64 and kept as fp32, for planes in bf16 as pairs of bf16 or of int16 along
the inputs. int16 have 15 bits where bf16 has 8: Winograd's convolutions, which enlarge errors,
lose less than rounding their results to bf16 does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from face_restore_worker.network.cpu_winograd import transformed

POINTS = 36  # of F(4x4, 3x3), and matrices of the up-convolution
_A, _B = 3 / 8, 5 / 4  # the points of F(4, 2) are +-_A, +-_B and infinity (filter2.h)
_DEPTH = 64  # at most so many products are summed as integers (winograd.c)
# Of a sum's weights' absolute values: what they are multiplied with is below 2^14 (vector.h), and
# they are rounded.
_LARGEST_SUM = (1 << 31 >> 14) - _DEPTH


def tap_transform() -> Tensor:
    """G of F(4, 2), fp64 (5, 2): the points (1, p) / product of (p - q) over the other finite q."""
    rows = []
    for point, other in ((_A, _B), (_B, _A)):
        norm = 2 * point * (point**2 - other**2)
        rows += [[1 / norm, point / norm], [-1 / norm, point / norm]]
    return torch.tensor([*rows, [0.0, 1.0]], dtype=torch.float64)


def phase_weights(weight: Tensor) -> Tensor:
    """Transform an up-convolution's (O, I, 3, 3) to fp32 (36, I, O), computed in fp64.

    Along rows and columns alike, even positions of the transposed convolution take the taps 2 and
    0, by F(4, 2); odd ones tap 1. In order: both even, even rows only, even columns only, neither.
    """
    two = tap_transform()
    even = torch.stack((two[:, 1], torch.zeros(5), two[:, 0]), dim=1)
    odd = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    taps = [torch.kron(a, b) for a, b in ((even, even), (even, odd), (odd, even), (odd, odd))]
    both = torch.cat(taps).t().contiguous()
    result = torch.empty(POINTS, weight.shape[1], weight.shape[0])
    for first in range(
        0, len(weight), 32
    ):  # in fp64 all at once would take eight times the weights
        some = weight[first : first + 32].flatten(2).double() @ both
        result[:, :, first : first + 32] = some.permute(2, 1, 0)
    return result


def panels(weight: Tensor) -> Tensor:
    """Bring (matrices, I, O) into panels of 32 outputs (one of 16), (matrices, panels, I, 32)."""
    count, inputs, outputs = weight.shape
    width = min(outputs, 32)
    return weight.view(count, inputs, -1, width).transpose(1, 2).contiguous()


def paired(weight: Tensor) -> Tensor:
    """Bring panels, (matrices, panels, I, w), into pairs of bf16 along I, each seen as one fp32."""
    count, number, inputs, width = weight.shape
    pairs = weight.to(torch.bfloat16).view(count, number, inputs // 2, 2, width)
    return pairs.transpose(3, 4).contiguous().view(torch.float32).squeeze(-1)


def quantised(weight: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Round (matrices, I, O) to int16, and what one of them is worth, fp32 (matrices, O).

    Over `depth` inputs the absolute values add up to at most `_LARGEST_SUM`: sums of products with
    what the kernels transform cannot overflow.
    """
    size = weight.abs()
    sums = torch.stack([part.sum(dim=1) for part in size.split(depth, dim=1)])
    unit = torch.maximum(sums.amax(dim=0) / _LARGEST_SUM, size.amax(dim=1) / 32767)
    unit.clamp_(min=torch.finfo(torch.float32).tiny)  # outputs without weights
    return (weight / unit[:, None]).round_().to(torch.int16), unit


def int16_panels(weight: Tensor) -> Tensor:
    """Bring int16 (matrices, I, O) into panels (matrices, O / 32 or 1, I / 2, 32 or O, 2)."""
    count, inputs, outputs = weight.shape
    pairs = weight.view(count, inputs // 2, 2, -1, min(outputs, 32))
    return pairs.permute(0, 3, 1, 4, 2).contiguous()


def by_fours(count: int) -> Tensor:
    """The order in which the kernels pack `count` values, a multiple of 32, to int16.

    Of 32 the first and the second sixteen take turns by four.
    """
    return torch.arange(count).view(-1, 2, 4, 4).transpose(1, 2).flatten()


def winograd_int16(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Transform (O, I, 3, 3) for winograd.c: panels of 36 matrices in int16, and their units.

    I is a multiple of 32, and of 64 if it is larger.
    """
    outputs, inputs = weight.shape[:2]
    wide = min(outputs, 32)
    panels = torch.empty(POINTS, outputs // wide, inputs // 2, wide, 2, dtype=torch.int16)
    units = torch.empty(POINTS, outputs)
    order = by_fours(inputs)
    for first, some in transformed(weight):
        whole, units[:, first : first + wide] = quantised(some[:, order], _DEPTH)
        panels[:, first // wide] = int16_panels(whole)[:, 0]
    return panels, units


def down_weights(weight: Tensor) -> list[Tensor]:
    """The 25 matrices of an (O, I, 3, 3) of stride 2 (downsample.c), fp32 (phases, I, O) each.

    Phases are both rows and columns even; where the column's point is finite, columns odd; where
    the row's is, rows odd; where both are, both.
    """
    two = tap_transform()  # rows: points; the taps they are for are put in their places below
    even = torch.stack((two[:, 0], torch.zeros(5), two[:, 1]), dim=1)
    odd = torch.stack((torch.zeros(4), two[:4, 0], torch.zeros(4)), dim=1)
    taps = weight.flatten(2).double() / 64  # the blur's weights are 64ths
    matrices = []
    for row in range(5):
        for column in range(5):
            phases = [(even[row], even[column])]
            if column < 4:
                phases.append((even[row], odd[column]))
            if row < 4:
                phases.append((odd[row], even[column]))
            if row < 4 and column < 4:
                phases.append((odd[row], odd[column]))
            matrices.append(torch.stack([(taps @ torch.kron(a, b)).t() for a, b in phases]).float())
    return matrices


def down_fp32(weight: Tensor) -> Tensor:
    """`down_weights` in panels, one matrix behind the other."""
    matrices = down_weights(weight)
    return torch.cat([panels(matrix.flatten(0, 1)[None]).flatten() for matrix in matrices])


def down_int16(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`down_weights` in panels of int16, one matrix behind the other, and their units, (25, O).

    The inputs by sixteen, their phases behind each other, two of them by four in turn.
    """
    result, units = [], []
    for matrix in down_weights(weight):
        phases, _, outputs = matrix.shape
        matrix = matrix.unflatten(1, (-1, 16)).transpose(0, 1).reshape(1, -1, outputs)
        if phases > 1:
            matrix = matrix[:, by_fours(matrix.shape[1])]
        whole, unit = quantised(matrix, 16 * phases)
        result.append(int16_panels(whole).flatten())
        units.append(unit)
    return torch.cat(result), torch.cat(units)
