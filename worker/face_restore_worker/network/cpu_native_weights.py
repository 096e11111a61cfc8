"""Weights of the processor's GPEN as the compiled kernels (`native/`) take them.

For planes in fp32 they are transformed in fp64 and kept as fp32; for planes in bf16 the library
transforms and rounds them (`native/prepare.c`) to pairs of bf16 or of int16. int16 have 15 bits
where bf16 have 8: Winograd's convolutions, which enlarge errors, then lose less than rounding their
results to bf16 does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from face_restore_worker.network.cpu_winograd import filter_transform
from face_restore_worker.network.native.library import Library

POINTS = 36  # of F(4x4, 3x3), and matrices of the up-convolution
PANEL = 32  # outputs that lie beside each other
_A, _B = 3 / 8, 5 / 4  # the points of F(4, 2) are +-_A, +-_B and infinity (filter2.h)
_SIXTEENS = 4  # of inputs at most, whose products are summed as integers (winograd.c)


def tap_transform() -> Tensor:
    """G of F(4, 2), fp64 (5, 2): the points (1, p) / product of (p - q) over the other finite q."""
    rows = []
    for point, other in ((_A, _B), (_B, _A)):
        norm = 2 * point * (point**2 - other**2)
        rows += [[1 / norm, point / norm], [-1 / norm, point / norm]]
    return torch.tensor([*rows, [0.0, 1.0]], dtype=torch.float64)


def up_transform() -> Tensor:
    """What makes an up-convolution's 36 matrices of its nine taps, fp64 (36, 9).

    Along rows and columns alike, from the end of a tile to its beginning, even positions of the
    transposed convolution take the taps 0 and 2, by F(4, 2); odd ones tap 1. In order: both even,
    even rows only, even columns only, neither.
    """
    two = tap_transform()
    even = torch.stack((two[:, 0], torch.zeros(5), two[:, 1]), dim=1)
    odd = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    return torch.cat(
        [torch.kron(a, b) for a, b in ((even, even), (even, odd), (odd, even), (odd, odd))]
    )


def point_transforms() -> list[Tensor]:
    """What makes the matrices of 5 x 5 points of their taps, fp64 (phases, 9) each.

    Phases are both rows and columns even; where the column's point is finite, columns odd; where
    the row's is, rows odd; where both are, both.
    """
    two = tap_transform()  # rows: points; the taps they are for are put in their places below
    even = torch.stack((two[:, 0], torch.zeros(5), two[:, 1]), dim=1)
    odd = torch.stack((torch.zeros(4), two[:4, 0], torch.zeros(4)), dim=1)
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
            matrices.append(torch.stack([torch.kron(a, b) for a, b in phases]))
    return matrices


def down_transform() -> list[Tensor]:
    """What makes the 25 matrices of a convolution of stride 2 of its taps, fp64 (phases, 9) each.

    Its inputs' phases are those of `point_transforms`; the blur's weights are 64ths.
    """
    return [matrix / 64 for matrix in point_transforms()]


# --- fp32 ----------------------------------------------------------------------------------


def panels(weight: Tensor) -> Tensor:
    """Bring (matrices, I, O) into panels of 32 outputs (one of 16), (matrices, panels, I, 32)."""
    count, inputs, outputs = weight.shape
    return weight.view(count, inputs, -1, min(outputs, PANEL)).transpose(1, 2).contiguous()


def up_fp32(weight: Tensor) -> Tensor:
    """An up-convolution's (O, I, 3, 3), in panels."""
    both = up_transform().t().contiguous()
    result = torch.empty(POINTS, weight.shape[1], weight.shape[0])
    for first in range(0, len(weight), PANEL):  # in fp64 all would take eight times the weights
        some = weight[first : first + PANEL].flatten(2).double() @ both
        result[:, :, first : first + PANEL] = some.permute(2, 1, 0)
    return panels(result)


def up_shared(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """An up-convolution's (O, I, 3, 3) for the shared transform, flat: panels by 25 points.

    The outputs of a point's phases lie behind each other. In bf16 pairs are seen as fp32, and of
    32 inputs the even ones come first.
    """
    pairs = dtype == torch.bfloat16
    if pairs:
        weight = weight.unflatten(1, (-1, 16, 2)).transpose(2, 3).flatten(1, 3)
    taps = weight.flatten(2) if pairs else weight.flatten(2).double()
    transforms = point_transforms()
    points = (taps @ torch.cat(transforms).t().to(taps.dtype)).permute(1, 2, 0).to(dtype)
    result = []
    for matrix in points.split([len(phases) for phases in transforms], dim=1):
        matrix = matrix.flatten(1)  # (I, phases' outputs)
        if pairs:
            matrix = matrix.unflatten(0, (-1, 2)).mT.contiguous().view(torch.float32).squeeze(-1)
        result.append(panels(matrix[None]).flatten())
    return torch.cat(result)


def down_fp32(weight: Tensor) -> Tensor:
    """A convolution of stride 2, (O, I, 3, 3), in panels, one matrix behind the other."""
    taps = weight.flatten(2).double()
    result = []
    for transform in down_transform():
        matrix = torch.cat([(taps @ row).t() for row in transform]).float()
        result.append(panels(matrix[None]).flatten())
    return torch.cat(result)


# --- for planes in bf16 --------------------------------------------------------------------


def up_bf16(kernels: Library, weight: Tensor) -> Tensor:
    """An up-convolution's (O, I, 3, 3), in panels (36, panels, I / 2, 32) of pairs of bf16.

    Of 32 inputs the even ones come first.
    """
    pairs, _ = _prepared(kernels, weight, list(up_transform().split(1)), integers=False)
    outputs, inputs = weight.shape[:2]
    return pairs.view(POINTS, -1, inputs // 2, min(outputs, PANEL))


def strength_of(weight: Tensor) -> Tensor:
    """The root mean square of an (O, I, 3, 3)'s weights for each input, (I,).

    Channels share a scale as integers. Multiplied by their weights' strength, and the weights
    divided by it, each has the bits that its part in the result deserves.
    """
    strength = weight.square().mean(dim=(0, 2, 3)).sqrt()
    return torch.where(strength > 0, strength, 1.0)


def winograd_int16(kernels: Library, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution (O, I, 3, 3) in panels of pairs of int16, and what one is worth, (36, O).

    I is a multiple of 32, and of 64 if it is larger.
    """
    g = filter_transform()
    # G w^T G^T: what winograd.c transforms has the columns first.
    transform = torch.kron(g, g).view(POINTS, 3, 3).mT.reshape(POINTS, 9)
    run = min(_SIXTEENS, weight.shape[1] // 16)
    return _prepared(kernels, weight, list(transform.split(1)), run=run)


def down_int16(kernels: Library, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution of stride 2 in panels of pairs of int16, and what one is worth, (25, O)."""
    return _prepared(kernels, weight, down_transform())


def _prepared(kernels: Library, weight: Tensor, transforms: list[Tensor], run: int = 0,
              integers: bool = True) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Transform and round (O, I, 3, 3), as `struct prepare` says; pairs are seen as int32."""
    outputs, inputs = weight.shape[:2]
    phases = torch.tensor([len(transform) for transform in transforms], dtype=torch.int32)
    count = int(phases.sum()) * inputs
    pairs = torch.empty(count // 2 * outputs, dtype=torch.int32)
    units = torch.empty(len(transforms), outputs)
    weight = weight.detach().float().contiguous()
    kernels.call(
        "prepare", torch.bfloat16, weight=weight, transform=torch.cat(transforms).float(),
        phases=phases, out=pairs, unit=units if integers else None,
        scratch=torch.empty(count * PANEL), outputs=outputs, inputs=inputs,
        matrices=len(transforms), run=run,
    )  # fmt: skip
    return pairs, units
