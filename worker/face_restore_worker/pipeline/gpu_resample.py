"""Resampling on a torch device with OpenCV's kernels: what `warp`, `mask` and `colour` are made of.

Pictures are (C, H, W) fp32 on one device; coordinates are pixel-centre, matrices (2, 3) float64.
OpenCV rounds a warp's source positions to 1/32 pixel; here they are exact, so that results differ
where the picture is steep by up to 1/64 of its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]

#: Output pixels that are sampled at once: bounds the memory of positions and weights.
_CHUNK = 1 << 20


def sample(
    image: Tensor, to_image: FloatArray, size: tuple[int, int], kernel: int, border: int
) -> Tensor:
    """``cv2.warpAffine`` with WARP_INVERSE_MAP.

    Args:
        image: (C, H, W).
        to_image: from the result's pixels to the image's.
        size: width and height of the result.
        kernel: cv2.INTER_LINEAR, INTER_CUBIC or INTER_LANCZOS4.
        border: cv2.BORDER_REFLECT, BORDER_REPLICATE, or BORDER_CONSTANT (zeros).

    Returns:
        (C, height, width).
    """
    import torch

    width, height = size
    out = image.new_empty((image.shape[0], height, width))
    rows = max(1, _CHUNK // max(1, width))
    # fp64: a position far from the origin needs its fraction to more digits than fp32 has left.
    x = torch.arange(width, device=image.device, dtype=torch.float64)
    (a, b, c), (d, e, f) = to_image.tolist()
    for top in range(0, height, rows):
        y = torch.arange(top, min(top + rows, height), device=image.device, dtype=torch.float64)
        columns = a * x[None, :] + (b * y + c)[:, None]
        lines = d * x[None, :] + (e * y + f)[:, None]
        out[:, top : top + len(y)] = _gather(image, columns, lines, kernel, border)
    return out


def _gather(image: Tensor, x: Tensor, y: Tensor, kernel: int, border: int) -> Tensor:
    """The image (C, H, W) at positions (h, w), (C, h, w)."""
    import torch

    taps, weigh = _KERNELS[kernel]
    first = taps // 2 - 1
    _, height, width = image.shape
    left, top = x.floor(), y.floor()
    across, down = weigh((x - left).float()), weigh((y - top).float())
    left, top = left.long() - first, top.long() - first
    flat = image.flatten(1)
    total = torch.zeros((len(image), *x.shape), device=image.device)
    for i in range(taps):
        line, known_y = _inside(top + i, height, border)
        row = torch.zeros_like(total)
        for j in range(taps):
            column, known_x = _inside(left + j, width, border)
            weight = across[j] if known_x is None else across[j] * known_x
            row.addcmul_(flat[:, line * width + column], weight)
        total.addcmul_(row, down[i] if known_y is None else down[i] * known_y)
    return total


def _inside(index: Tensor, length: int, border: int) -> tuple[Tensor, Tensor | None]:
    """Indices within the picture; with zeros beyond it, also which of them lay within."""
    if border == cv2.BORDER_REFLECT:
        index = index.remainder(2 * length)
        return index.minimum(2 * length - 1 - index), None
    clamped = index.clamp(0, length - 1)
    return clamped, clamped == index if border == cv2.BORDER_CONSTANT else None


def _linear(t: Tensor) -> list[Tensor]:
    return [1 - t, t]


def _cubic(t: Tensor) -> list[Tensor]:
    """Keys' kernel with a = -0.75, OpenCV's (R. Keys, 1981)."""
    a = -0.75

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    weights = [far(t + 1), near(t), near(1 - t)]
    return [*weights, 1 - weights[0] - weights[1] - weights[2]]


def _lanczos(t: Tensor) -> list[Tensor]:
    """Lanczos of four lobes, its eight weights normalised."""
    import torch

    distances = [t + 3 - i for i in range(8)]
    weights = [torch.sinc(d) * torch.sinc(d / 4) for d in distances]
    total = torch.stack(weights).sum(dim=0)
    return [weight / total for weight in weights]


_KERNELS: dict[int, tuple[int, Callable[[Tensor], list[Tensor]]]] = {
    cv2.INTER_LINEAR: (2, _linear),
    cv2.INTER_CUBIC: (4, _cubic),
    cv2.INTER_LANCZOS4: (8, _lanczos),
}


def shrink(image: Tensor, height: int, width: int) -> Tensor:
    """``cv2.resize`` with INTER_AREA, not enlarging: the mean of what each pixel covers."""
    rows = _area(image.shape[1], height)
    columns = rows if image.shape[1:] == (width, width) else _area(image.shape[2], width)
    return _mix(_mix(image, rows, 1), columns, 2)


def shrink_blocks(image: Tensor, numerator: int, denominator: int) -> Tensor:
    """INTER_AREA by numerator / denominator; both sides are multiples of ``numerator``."""
    import torch

    channels, height, width = image.shape
    weights = torch.from_numpy(_area(numerator, denominator)).to(image)
    blocks = image.view(channels, height, width // numerator, numerator) @ weights.t()
    blocks = blocks.view(channels, height // numerator, numerator, -1)
    out = torch.einsum("dn,cbnw->cbdw", weights, blocks)
    return out.reshape(channels, height // numerator * denominator, -1)


def enlarge(image: Tensor, height: int, width: int, mode: str) -> Tensor:
    """``cv2.resize`` with INTER_CUBIC or INTER_LINEAR ("bicubic", "bilinear") to a larger size."""
    import torch.nn.functional as F

    return F.interpolate(image[None], (height, width), mode=mode, align_corners=False)[0]


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """``cv2.GaussianBlur`` with the kernel's size from sigma and zeros beyond the border."""
    size = round(sigma * 8 + 1) | 1
    taps = cv2.getGaussianKernel(size, sigma, cv2.CV_32F)[:, 0]
    return filtered(image, taps, 1, size // 2)


def filtered(image: Tensor, taps: NDArray[np.float32], step: int, padding: int) -> Tensor:
    """A symmetric filter along both axes, every ``step``-th result, zeros beyond the border."""
    import torch
    import torch.nn.functional as F

    weight = torch.from_numpy(np.ascontiguousarray(taps)).to(image)
    x = image[:, None]
    x = F.conv2d(x, weight.view(1, 1, 1, -1), stride=(1, step), padding=(0, padding))
    x = F.conv2d(x, weight.view(1, 1, -1, 1), stride=(step, 1), padding=(padding, 0))
    return x[:, 0]


def _mix(image: Tensor, weights: NDArray[np.float32], axis: int) -> Tensor:
    """Replace an axis of ``in`` values by weights (out, in) times it."""
    import torch

    matrix = torch.from_numpy(weights).to(image)
    return matrix @ image if axis == 1 else image @ matrix.t()


@lru_cache(maxsize=16)
def _area(inputs: int, outputs: int) -> NDArray[np.float32]:
    """(out, in): the share of each input in the stretch of each output."""
    edges = np.arange(outputs + 1) * (inputs / outputs)
    cells = np.arange(inputs)
    low = np.maximum(edges[:-1, None], cells[None, :])
    high = np.minimum(edges[1:, None], cells[None, :] + 1)
    weights = np.maximum(high - low, 0.0) * (outputs / inputs)
    return np.ascontiguousarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def radius(taps: NDArray[np.float32]) -> int:
    """Taps to either side of the middle one."""
    return math.floor(len(taps) / 2)
