"""`warp` on a torch device: the same choices of kernels and sizes, on (C, H, W) fp32 tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.align import compose, invert, rescale, scale_of, translate
from face_restore_worker.pipeline.gpu_resample import (
    enlarge,
    filtered,
    radius,
    sample,
    shrink,
    shrink_blocks,
)
from face_restore_worker.pipeline.warp import (
    FILTERED_FROM,
    STRIP_PIXELS,
    Rect,
    decimator,
    kernel_for,
    largest_divisor,
    mirrored,
    shrink_ratio,
)

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]


def warp_to_crop(region: Tensor, full: float, rect: Rect, matrix: FloatArray, size: int) -> Tensor:
    """``warp.warp_to_crop`` of a photograph whose pixels in ``rect`` are on the device.

    Args:
        region: (height, width, C) of any type, the photograph's pixels in ``rect``.
        full: the value that stands for 1.0.
        rect: ``warp.source_rect`` of the matrix, not empty.
        matrix: (2, 3), photograph to crop.

    Returns:
        (C, S, S) fp32 in [0, 1].
    """
    scale = scale_of(matrix)
    numerator, denominator = shrink_ratio(1.0 / scale)
    to_crop = compose(matrix, translate(rect.x, rect.y))
    if numerator > denominator:
        source = _shrunk(region, numerator, denominator)
        to_crop = compose(to_crop, rescale(numerator / denominator))
        factor = 1
    else:
        source = region.permute(2, 0, 1).float().contiguous()
        factor = largest_divisor(size, scale / 2)
    source *= 1.0 / full
    side = size // factor
    grid = compose(rescale(1.0 / factor), to_crop)
    crop = sample(source, invert(grid), (side, side), kernel_for(side * side), cv2.BORDER_REFLECT)
    if factor > 1:
        crop = enlarge(crop, size, size, "bicubic")
    return crop.clamp_(0, 1)


def warp_back(crop: Tensor, matrix: FloatArray, rect: Rect) -> Tensor:
    """``warp.warp_back``: a crop (C, S, S) at the photograph's pixels, (C, height, width)."""
    scale = scale_of(matrix)
    to_crop = compose(matrix, translate(rect.x, rect.y))
    if scale > FILTERED_FROM:
        return _back_filtered(crop, to_crop, rect, 2 if scale < 4 else 4)
    kernel = kernel_for(rect.width * rect.height) if scale > 1 else cv2.INTER_CUBIC
    return sample(crop, to_crop, (rect.width, rect.height), kernel, cv2.BORDER_REPLICATE)


def warp_mask_back(mask: Tensor, size: int, matrix: FloatArray, rect: Rect) -> Tensor:
    """``warp.warp_mask_back``: a mask (M, M) at the photograph's pixels, (height, width)."""
    side = mask.shape[0]
    to_mask = compose(rescale(side / size), compose(matrix, translate(rect.x, rect.y)))
    factor = largest_divisor(side, scale_of(to_mask))
    image = mask[None]
    if factor > 1:
        image = shrink(image, side // factor, side // factor)
        to_mask = compose(rescale(1.0 / factor), to_mask)
    wanted = rect.width, rect.height
    out = sample(image, to_mask, wanted, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT)
    return out[0].clamp_(0, 1)


def _back_filtered(crop: Tensor, to_crop: FloatArray, rect: Rect, finer: int) -> Tensor:
    """Sample ``finer`` times finer than the photograph, low-pass in its axes, decimate."""
    factor = largest_divisor(crop.shape[1], scale_of(to_crop) / finer)
    if factor > 1:
        side = crop.shape[1] // factor
        crop = shrink(crop, side, side)
        to_crop = compose(rescale(1.0 / factor), to_crop)
    taps = decimator(finer)
    pad = finer * math.ceil(len(taps) / 2 / finer)
    fine = np.array([[1.0 / finer, 0.0, -pad / finer], [0.0, 1.0 / finer, -pad / finer]])
    width, height = rect.width * finer + 2 * pad, rect.height * finer + 2 * pad
    samples = sample(
        crop,
        compose(to_crop, fine),
        (width, height),
        kernel_for(width * height),
        cv2.BORDER_REPLICATE,
    )
    # The first result lies on sample `pad`; only what it needs to either side is read.
    reach = radius(taps)
    inner = samples[:, pad - reach : height - pad + reach, pad - reach : width - pad + reach]
    return filtered(inner, taps, finer, 0)[:, : rect.height, : rect.width]


def _shrunk(region: Tensor, numerator: int, denominator: int) -> Tensor:
    """Average a region (H, W, C) down, strip by strip, to (C, H', W') fp32 in its units."""
    import torch

    height, width, _ = region.shape
    rows = torch.from_numpy(mirrored(height, numerator)).to(region.device)
    columns = torch.from_numpy(mirrored(width, numerator)).to(region.device)
    blocks = max(1, STRIP_PIXELS // (len(columns) * numerator)) * numerator
    strips = []
    for start in range(0, len(rows), blocks):
        part = region[rows[start : start + blocks]].permute(2, 0, 1).float()
        strips.append(shrink_blocks(part[:, :, columns].contiguous(), numerator, denominator))
    return torch.cat(strips, dim=1)
