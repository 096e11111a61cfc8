"""`colour` and `mask` on a torch device: pictures are (C, S, S) fp32, masks (M, M) fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from face_restore_worker.pipeline import colour, mask
from face_restore_worker.pipeline.align import TEMPLATE_UNITS
from face_restore_worker.pipeline.gpu_resample import enlarge, gaussian, shrink

if TYPE_CHECKING:
    from torch import Tensor


def luma(rgb: Tensor) -> Tensor:
    """``colour.luma``: (3, H, W) to (1, H, W)."""
    red, green, blue = colour.LUMA
    return (rgb[0] * red + rgb[1] * green + rgb[2] * blue)[None]


def keep_colour(restored: Tensor, original: Tensor, weight: Tensor) -> Tensor:
    """``colour.keep_colour``.

    Args:
        restored, original: (3, S, S) or (1, S, S), the network's output and its input.
        weight: (M, M) in [0, 1], where the face is.

    Returns:
        A new tensor like ``restored``.
    """
    size = restored.shape[1]
    side = min(colour.SIDE, size)
    small = _resized(weight[None], side)
    difference = shrink(original, side, side) - shrink(restored, side, side)
    if len(difference) == 1:
        shift = _local_mean(difference, small, colour.LUMA_SIGMA * side)
    else:
        light = luma(difference)
        shift = _local_mean(difference - light, small, colour.CHROMA_SIGMA * side)
        shift += _local_mean(light, small, colour.LUMA_SIGMA * side)
    return enlarge(shift, size, size, "bilinear").add_(restored)


def parse_mask(face: Tensor, size: int, softness: float = 1.0) -> Tensor:
    """``mask.parse_mask`` of probabilities (K, K) in [0, 1]; (M, M), M = min(size, 512)."""
    import torch

    side = min(int(size), mask.MASK_SIZE)
    image = _resized(face[None], side)
    border = max(1, round(mask.BORDER * side / TEMPLATE_UNITS))
    inner = torch.zeros_like(image)
    cut = slice(border, -border)
    inner[:, cut, cut] = image[:, cut, cut]
    sigma = max(0.3, mask.SIGMA * side / TEMPLATE_UNITS * max(softness, mask.LEAST_SOFTNESS))
    for _ in range(2):
        inner = gaussian(inner, sigma)
    window = torch.from_numpy(mask.window(side)).to(face)
    soft = ((inner[0] * window - mask.TAIL) / (1.0 - mask.TAIL)).clamp_(0, 1)
    soft[0] = soft[-1] = 0
    soft[:, 0] = soft[:, -1] = 0
    return soft


def _resized(image: Tensor, side: int) -> Tensor:
    """(C, K, K) to (C, side, side): means where it shrinks, linear where it grows."""
    if image.shape[1] >= side:
        return shrink(image, side, side)
    return enlarge(image, side, side, "bilinear")


def _local_mean(values: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Gaussian mean of values (C, H, W) weighted by weight (1, H, W)."""
    total = gaussian(weight, sigma).clamp_min(colour.LEAST_WEIGHT)
    return gaussian(values * weight, sigma) / total
