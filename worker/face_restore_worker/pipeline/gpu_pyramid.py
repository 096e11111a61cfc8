"""`pyramid` on a torch device: the photograph crosses the bus once, its levels are made there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.gpu_bus import Bus
from face_restore_worker.pipeline.pyramid import COARSEST_SIDE, STEP, Picture, Rect

if TYPE_CHECKING:
    from torch import Tensor

BAND_BYTES = 16 << 20
"""Of a photograph in its own type that are sent, or of a level that are shrunk, at once. The next
are put into pinned memory meanwhile, and no more of a deep photograph is ever on the device."""
_MARGIN = 2  # what bicubic kernels reach


@dataclass(frozen=True, eq=False)
class DeviceLevel:
    """The photograph at one scale, on a device; see ``pyramid.Level``.

    pixels: (h, w, C) uint8, C 1 or 3: the level's own, or those of the photograph where it is
    magnified, which is done when it is read.
    """

    factor: float
    width: int
    height: int
    pixels: Tensor

    def read(self, rect: Rect) -> Tensor:
        """The pixels of rect, in the level's pixels and inside it: (h, w, 3) uint8 RGB."""
        import torch

        return self._piece(rect).to(torch.uint8)

    def draw(self, rect: Rect, quarter: int, target: Tensor) -> None:
        """Put what ``read`` gives into ``target`` (uint8), turned as by np.rot90."""
        import torch

        piece = self._piece(rect)
        target.copy_(torch.rot90(piece, quarter) if quarter else piece)

    def _piece(self, rect: Rect) -> Tensor:
        """The pixels as uint8, or as fp32 that conversion to uint8 rounds (by cutting off)."""
        if self.factor < 1:
            return self._magnified(rect)
        x0, y0, x1, y1 = rect
        return self.pixels[y0:y1, x0:x1].expand(-1, -1, 3)

    def _magnified(self, rect: Rect) -> Tensor:
        import torch.nn.functional as F

        ratio = round(1 / self.factor)
        height, width, _ = self.pixels.shape
        x0, y0 = (max(v // ratio - _MARGIN, 0) for v in rect[:2])
        x1 = min(-(-rect[2] // ratio) + _MARGIN, width)
        y1 = min(-(-rect[3] // ratio) + _MARGIN, height)
        # Half a level more, which interpolation keeps: few launches for each of many pieces.
        source = self.pixels[y0:y1, x0:x1].permute(2, 0, 1)[None] + 0.5
        size = ((y1 - y0) * ratio, (x1 - x0) * ratio)
        large = F.interpolate(source, size, mode="bicubic", align_corners=False)[0]
        left, top = rect[0] - x0 * ratio, rect[1] - y0 * ratio
        piece = large[:, top : top + rect[3] - rect[1], left : left + rect[2] - rect[0]]
        return piece.clamp_(0, 255.5).permute(1, 2, 0).expand(-1, -1, 3)


def to_uint8(values: Tensor) -> Tensor:
    """Rounded and clamped to 0 to 255; in place, then as uint8."""
    import torch

    return values.round_().clamp_(0, 255).to(torch.uint8)


def upload(picture: Picture, bus: Bus) -> Tensor:
    """The photograph as (H, W, 3) or (H, W, 1) uint8 on the device, converted there.

    What ``Picture.read`` makes of other types, and gray stays one channel.
    """
    import torch

    array = picture.array.reshape(picture.height, picture.width, -1)
    out = torch.empty(array.shape, dtype=torch.uint8, device=bus.device)
    for rows in _bands(array):
        sent = bus.send(array[rows])
        if array.dtype == np.uint16:  # arrives as int32
            sent = (sent + 128).div_(257, rounding_mode="floor")
        elif array.dtype == np.float32:
            sent = sent.nan_to_num_(nan=0.0, posinf=1.0, neginf=0.0)
            sent = sent.clamp_(0, 1).mul_(255).add_(0.5)
        out[rows] = sent
    return out


def _bands(array: NDArray[Any]) -> Iterator[slice]:
    rows = max(1, BAND_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield slice(start, min(start + rows, len(array)))


def shrink(pixels: Tensor, factor: int) -> Tensor:
    """``pyramid.shrink``: the mean of factor x factor pixels, (ceil(h / f), ceil(w / f), C)."""
    height, width, channels = pixels.shape
    out = pixels.new_empty((-(-height // factor), -(-width // factor), channels))
    rows = max(1, BAND_BYTES // (width * channels * factor))
    for top in range(0, len(out), rows):
        band = pixels[top * factor : (top + rows) * factor]
        out[top : top + rows] = _means(band, factor)
    return out


def _means(pixels: Tensor, factor: int) -> Tensor:
    """The rounded means of blocks, those at the border completed by repeating it, int32."""
    import torch

    for axis in (0, 1):
        length = pixels.shape[axis]
        if length % factor:
            kept = torch.arange(-(-length // factor) * factor, device=pixels.device)
            pixels = pixels.index_select(axis, kept.clamp_(max=length - 1))
    blocks = pixels.unflatten(1, (-1, factor)).unflatten(0, (-1, factor))
    area = factor * factor
    sums = blocks.sum(dim=(1, 3), dtype=torch.int32)
    return sums.add_(area // 2).div_(area, rounding_mode="floor")


def build_levels(
    photo: Tensor, finest: int, coarsest_side: int = COARSEST_SIDE
) -> list[DeviceLevel]:
    """``pyramid.build_levels`` of a photograph on a device."""
    levels = [_level(1.0, photo) if finest == 1 else _level(finest, shrink(photo, finest))]
    while max(levels[-1].width, levels[-1].height) > coarsest_side:
        levels.append(_level(levels[-1].factor * STEP, shrink(levels[-1].pixels, STEP)))
    return levels


def _level(factor: float, pixels: Tensor) -> DeviceLevel:
    return DeviceLevel(factor, pixels.shape[1], pixels.shape[0], pixels)


def magnified(photo: Tensor, times: int) -> DeviceLevel:
    """The photograph at `times` its size, computed where it is read."""
    return DeviceLevel(1 / times, photo.shape[1] * times, photo.shape[0] * times, photo)
