"""One face on a torch device, from the photograph's pixels to its patch.

What is computed is what `paste`, `mask` and `colour` compute; the pixels around the face cross the
bus once, the finished patch once. ``start`` hands the work to the device and returns, so that the
next face can be started before the last one is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline import gpu_colour, gpu_resample, gpu_warp
from face_restore_worker.pipeline.align import scale_of
from face_restore_worker.pipeline.colour import is_gray
from face_restore_worker.pipeline.gpu_bus import Bus
from face_restore_worker.pipeline.mask import covers_face, full_mask, oval_mask
from face_restore_worker.pipeline.paste import kept_detail, mask_rect, shown_part, three_channels
from face_restore_worker.pipeline.warp import Rect, full_scale, touched_rect

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from face_restore_worker.pipeline.parsing import FaceParser

Image = NDArray[Any]
Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]

_PARSED = 512  # side of the parser's input


class PixelNetwork(Protocol):
    """A restoring network from pixels to pixels on its device; see ``GpenCuda``."""

    size: int
    device: torch.device

    def restore_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(S, S, 3) in [0, 1] to the same, and whether all values were finite."""


@dataclass(frozen=True)
class Wish:
    """How a face is to be restored: see ``RestoreOptions``.

    mask: False where the picture is an aligned face as a whole.
    parser: for a mask by face parts; None for an oval.
    crops: whether the aligned crops are wanted, before and after.
    """

    template: str
    softness: float
    keep_colour: bool
    mask: bool = True
    parser: FaceParser | None = None
    crops: bool = False


@dataclass(frozen=True, eq=False)
class Finished:
    """A face's patch; see ``Patch``. rgb and mask are None where it shows nothing of the picture.

    parsed: False where the parser did not recognise the face and its mask is an oval.
    """

    x: int
    y: int
    rgb: Float32 | None
    mask: Float32 | None
    parsed: bool
    aligned_input: Float32 | None = None
    aligned_output: Float32 | None = None


class DeviceFaces:
    """Restores faces whole on the network's device.

    Args:
        network: from pixels to pixels.
    """

    def __init__(self, network: PixelNetwork) -> None:
        self._network = network
        self._size = network.size
        self._bus = Bus(network.device)
        self._masks: dict[tuple[int, str, float], tuple[Float32, Tensor]] = {}

    def start(
        self, picture: Image, matrix: FloatArray, wish: Wish
    ) -> Callable[[], Finished | None]:
        """Begin a face.

        Args:
            picture: (H, W, 3) or (H, W), uint8, uint16 or float32; not changed until finished.
            matrix: (2, 3), photograph to crop.

        Returns:
            What waits for the face and returns it, None where the network's values were not all
            finite.

        Raises:
            ImageError: the crop does not touch the photograph. torch.OutOfMemoryError.
        """
        import torch

        with torch.inference_mode(), exact_arithmetic():
            return self._start(picture, matrix, wish)

    def _start(
        self, picture: Image, matrix: FloatArray, wish: Wish
    ) -> Callable[[], Finished | None]:
        rect = touched_rect(matrix, self._size, picture.shape)
        pixels = rect.cut(picture)
        if pixels.ndim == 2 or is_gray(pixels):
            pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :1]
        region = self._bus.send(pixels)
        full = full_scale(picture.dtype)
        crop = gpu_warp.warp_to_crop(region, full, rect, matrix, self._size)
        entered = crop.expand(3, -1, -1).permute(1, 2, 0).contiguous()
        left, finite = self._network.restore_pixels(entered)
        output = left.permute(2, 0, 1).contiguous()
        mask, weight, parsed = self._mask(output, wish)
        restored = gpu_colour.luma(output) if len(crop) == 1 else output
        if wish.keep_colour:
            restored = gpu_colour.keep_colour(restored, crop, weight)
        crops = self._crops(crop, restored) if wish.crops else (None, None)
        target = self._target(mask, matrix, picture.shape, wish)
        if target is None:
            nothing = Finished(0, 0, None, None, parsed)
            return lambda: nothing if bool(finite) else None
        change = _change(restored, crop, scale_of(matrix))
        rgb = gpu_warp.warp_back(change, matrix, target)
        self._add_photo(rgb, picture, region, rect, target, scale_of(matrix))
        soft = self._soft(weight, matrix, target, wish)
        parts = [rgb.permute(1, 2, 0).flatten(), soft.flatten(), finite.float().view(1)]
        fetched = self._bus.fetch(_joined(parts))
        return lambda: _finish(fetched(), target, len(rgb), parsed, crops)

    def _mask(self, output: Tensor, wish: Wish) -> tuple[Float32, Tensor, bool]:
        """The face's mask (M, M) on both sides, and whether it is what was wished for."""
        if wish.mask and wish.parser is not None:
            weight = gpu_colour.parse_mask(_parsed(wish.parser, output), self._size, wish.softness)
            mask: Float32 = weight.cpu().numpy()
            if covers_face(mask, wish.template):
                return mask, weight, True
        key = (int(wish.mask), wish.template, wish.softness)
        if key not in self._masks:
            made = (
                oval_mask(self._size, wish.template, wish.softness)
                if wish.mask
                else full_mask(self._size)
            )
            self._masks.clear()
            self._masks[key] = made, self._bus.send(made)
        return *self._masks[key], wish.parser is None

    def _target(
        self, mask: Float32, matrix: FloatArray, shape: tuple[int, ...], wish: Wish
    ) -> Rect | None:
        if not wish.mask:
            return Rect(0, 0, shape[1], shape[0])
        return mask_rect(mask, matrix, self._size, shape)

    def _soft(self, weight: Tensor, matrix: FloatArray, target: Rect, wish: Wish) -> Tensor:
        if not wish.mask:
            return weight.new_ones((target.height, target.width))
        return gpu_warp.warp_mask_back(weight, self._size, matrix, target)

    def _add_photo(
        self,
        rgb: Tensor,
        picture: Image,
        region: Tensor,
        rect: Rect,
        target: Rect,
        scale: float,
    ) -> None:
        """Add what the crop could not hold of the photograph; see ``paste``."""
        keep = kept_detail(scale)
        if keep == 0:
            return
        inner = Rect(target.x - rect.x, target.y - rect.y, target.width, target.height)
        within = (
            min(inner.x, inner.y) >= 0
            and inner.x + inner.width <= rect.width
            and inner.y + inner.height <= rect.height
        )
        if not within:
            pixels = target.cut(picture).reshape(target.height, target.width, -1)
            region = self._bus.send(pixels[..., : region.shape[2]])
            inner = Rect(0, 0, target.width, target.height)
        rows = slice(inner.y, inner.y + inner.height)
        columns = slice(inner.x, inner.x + inner.width)
        photo = region[rows, columns].permute(2, 0, 1).float()
        rgb.add_(photo, alpha=keep / full_scale(picture.dtype))

    def _crops(self, crop: Tensor, restored: Tensor) -> tuple[Float32, Float32]:
        def fetched(image: Tensor) -> Float32:
            array: Float32 = image.permute(1, 2, 0).contiguous().cpu().numpy()
            return array if array.shape[2] == 3 else three_channels(array[..., 0])

        return fetched(crop), fetched(restored.clamp(0, 1))


def exact_arithmetic() -> Any:
    """cuDNN without TF32 and without algorithms that add up in varying order."""
    import torch

    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def _change(restored: Tensor, crop: Tensor, scale: float) -> Tensor:
    keep = kept_detail(scale)
    return restored.sub(crop, alpha=keep) if keep > 0 else restored


def _parsed(parser: FaceParser, output: Tensor) -> Tensor:
    """The probability of each pixel of a crop (3, S, S) to be the face's, (K, K), K <= 512."""
    side = output.shape[1]
    if side >= _PARSED:
        small = gpu_resample.shrink(output, _PARSED, _PARSED)
    else:
        small = gpu_resample.enlarge(output, _PARSED, _PARSED, "bicubic")
    found = parser.probabilities(small.clamp(0, 1).mul_(2).sub_(1)[None])
    if side < _PARSED:
        found = gpu_resample.shrink(found[None], side, side)[0]
    return found.clamp(0, 1)


def _joined(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(parts)


def _finish(
    values: Float32,
    target: Rect,
    channels: int,
    parsed: bool,
    crops: tuple[Float32 | None, Float32 | None],
) -> Finished | None:
    """The patch out of what came over the bus, trimmed to where its mask is not zero."""
    if values[-1] == 0:
        return None
    count = target.width * target.height
    rgb = values[: count * channels].reshape(target.height, target.width, channels)
    soft = values[count * channels : -1].reshape(target.height, target.width)
    inner = shown_part(soft)
    if inner is None:
        return Finished(0, 0, None, None, parsed, *crops)
    shown = inner.cut(rgb)
    shown = np.array(shown) if channels == 3 else three_channels(shown[..., 0])
    x, y = target.x + inner.x, target.y + inner.y
    return Finished(x, y, shown, np.array(inner.cut(soft)), parsed, *crops)
