"""Pasting restored patches into a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.types import Patch
from face_restore_worker.pipeline.warp import full_scale

Image = NDArray[Any]
Float32 = NDArray[np.float32]

_STRIP_PIXELS = 1 << 18  # a strip's few float copies stay in the processor's cache
_SHARPNESS = 4  # how quickly one face gives way to the other where their masks cross


def composite(image: Image, patches: Sequence[Patch], strength: float = 1.0) -> Image:
    """The photograph with its restored faces.

    Every pixel becomes ``photo + sum_i w_i (patch_i - photo)``. Where one mask m reaches, w is
    ``strength * patch.strength * m``. Where masks overlap, the largest covers as much as it does
    alone, c = max_i m_i, and is shared as ``c * (m_i / c)^4 / sum_j (m_j / c)^4``: the higher mask
    wins, and as the weights are continuous in the masks there is no seam where they cross. The
    order of the patches does not matter.

    Args:
        image: (H, W, 3), (H, W) or (H, W, 1), uint8, uint16 or float32; not modified.
        patches: as ``Restorer.restore`` gives them for this photograph.
        strength: 0 to 1, for all patches.

    Returns:
        A new array of the same shape and dtype: integers are rounded to the nearest value, floats
        are not clipped; where no mask reaches every bit is the photograph's.

    Raises:
        ImageError: a patch does not lie within the picture, or ``strength`` is not within [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise ImageError(f"A strength of {strength} is not between 0 and 1.", code="bad-request")
    result = np.array(image, order="C")
    pixels = result.reshape(*image.shape[:2], -1)
    for patch in patches:
        _check(patch, pixels)
    acting = [p for p in patches if p.mask.size]
    for patch in acting:
        height = patch.mask.shape[0]
        rows = max(1, _STRIP_PIXELS // patch.mask.shape[1])
        for top in range(patch.y, patch.y + height, rows):
            bottom = min(top + rows, patch.y + height)
            _paste(pixels, image.reshape(pixels.shape), patch, acting, strength, top, bottom)
    return result


def _paste(
    target: Image,
    image: Image,
    patch: Patch,
    patches: Sequence[Patch],
    strength: float,
    top: int,
    bottom: int,
) -> None:
    """Write the pixels of ``patch`` in rows top to bottom, other patches' share included.

    Overlaps are computed once for each patch that reaches them, to the same values: this needs no
    float copy of more than a strip, however many faces hang together.
    """
    left, right = patch.x, patch.x + patch.mask.shape[1]
    frame = (left, top, right, bottom)
    shares = _shares([p for p in patches if p is patch or _touches(p, frame)], frame)
    source = image[top:bottom, left:right]
    scale = full_scale(image.dtype)
    base = source.astype(np.float32)
    change: Float32 | None = None
    touched = np.zeros(source.shape[:2], dtype=bool)
    for other, weight in shares:
        factor = float(strength) * float(other.strength)
        if factor == 0.0:
            continue
        x0, y0, x1, y1 = _overlap(other, frame)
        window = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        rgb = other.rgb[y0 - other.y : y1 - other.y, x0 - other.x : x1 - other.x]
        if base.shape[2] == 1:
            rgb = rgb[..., 1:2]
        part = rgb * np.float32(scale)
        part -= base[window]
        share = weight * np.float32(factor)
        part *= cv2.merge([share] * part.shape[2]).reshape(part.shape)
        touched[window] |= share > 0
        if change is None:
            change = np.zeros_like(base)
        change[window] += part
    if change is None:
        return
    base += change
    if image.dtype.kind == "u":
        np.rint(base, out=base)
        np.clip(base, 0.0, scale, out=base)
    np.copyto(target[top:bottom, left:right], base.astype(image.dtype), where=touched[..., None])


def _shares(
    patches: Sequence[Patch], frame: tuple[int, int, int, int]
) -> list[tuple[Patch, Float32]]:
    """Each patch's weight on its part of the frame, before strength."""
    left, top, right, bottom = frame
    masks = []
    for p in patches:
        x0, y0, x1, y1 = _overlap(p, frame)
        masks.append((p, (x0, y0, x1, y1), p.mask[y0 - p.y : y1 - p.y, x0 - p.x : x1 - p.x]))
    if len(masks) == 1:
        return [(masks[0][0], masks[0][2])]
    highest = np.zeros((bottom - top, right - left), dtype=np.float32)
    for _, (x0, y0, x1, y1), mask in masks:
        part = highest[y0 - top : y1 - top, x0 - left : x1 - left]
        np.maximum(part, mask, out=part)
    safe = np.where(highest > 0, highest, np.float32(1))
    total = np.zeros_like(highest)
    powers = []
    for _, (x0, y0, x1, y1), mask in masks:
        window = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        power = (mask / safe[window]) ** _SHARPNESS
        total[window] += power
        powers.append((window, power))
    np.divide(highest, total, out=total, where=total > 0)
    return [
        (patch, np.multiply(power, total[window], dtype=np.float32))
        for (patch, _, _), (window, power) in zip(masks, powers, strict=True)
    ]


def _touches(patch: Patch, frame: tuple[int, int, int, int]) -> bool:
    x0, y0, x1, y1 = _overlap(patch, frame)
    return x0 < x1 and y0 < y1


def _overlap(patch: Patch, frame: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    height, width = patch.mask.shape
    return (
        max(patch.x, frame[0]),
        max(patch.y, frame[1]),
        min(patch.x + width, frame[2]),
        min(patch.y + height, frame[3]),
    )


def _check(patch: Patch, image: Image) -> None:
    height, width = patch.mask.shape
    fits = (
        patch.rgb.shape == (height, width, 3)
        and 0 <= patch.x <= patch.x + width <= image.shape[1]
        and 0 <= patch.y <= patch.y + height <= image.shape[0]
        and image.shape[2] in (1, 3)
    )
    if not fits:
        raise ImageError(
            f"A patch of {width} x {height} pixels at ({patch.x}, {patch.y}) does not fit this "
            f"picture of {image.shape[1]} x {image.shape[0]} pixels.",
            hint="Composite patches into the picture they were made from.",
            code="patch-mismatch",
        )
