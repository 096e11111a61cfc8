"""The training loss and the figures a restorer is judged by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Squared error (of values in [0, 1]) below which a sample counts as nearly solved, 37 dB: without
#: it the logarithm would spend all its weight on clean samples.
_FLOOR = 2e-4


def restoration_loss(output: Tensor, clean: Tensor) -> Tensor:
    """Mean over the batch of -PSNR in dB (floored), + 20 (1 - SSIM of luma), + 100 L1.

    The logarithm weighs mild and severe samples alike, which is what the mean PSNR of a test set
    does; L1 resists outliers; 20 makes 0.05 of SSIM worth one dB.

    Args:
        output: (N, 3, H, W) float32 in [-1, 1].
        clean: the same shape and range.
    """
    difference = (output - clean) * 0.5
    squared = difference.square().mean(dim=(1, 2, 3))
    psnr = -10 * torch.log10(squared + _FLOOR)
    similarity = ssim(_luma(output) * 0.5 + 0.5, _luma(clean) * 0.5 + 0.5)
    return (100 * difference.abs().mean() - psnr + 20 * (1 - similarity)).mean()


def ssim(first: Tensor, second: Tensor, window: int = 7) -> Tensor:
    """Structural similarity with a uniform window (Wang et al., 2004), one value per sample.

    Args:
        first: (N, C, H, W) float32 in [0, 1], H and W at least ``window``.
        second: the same shape.
    """

    def local_mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1)

    mean1, mean2 = local_mean(first), local_mean(second)
    variance1 = local_mean(first * first) - mean1 * mean1
    variance2 = local_mean(second * second) - mean2 * mean2
    covariance = local_mean(first * second) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean1 * mean2 + c1) / (mean1.square() + mean2.square() + c1)
    structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """PSNR in dB per sample of (N, C, H, W) values in [0, 1]; 100 for equal pictures."""
    squared = (first - second).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(squared.clamp_min(1e-10))


def _luma(x: Tensor) -> Tensor:
    weights = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True)
