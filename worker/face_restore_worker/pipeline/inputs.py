"""What the Restorer takes: pictures and faces, checked before any work is done."""

from __future__ import annotations

from typing import Any

import numpy as np
from face_restore_shared.schema import MAX_PIXELS, FaceTarget
from numpy.typing import NDArray

from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.types import Face

Image = NDArray[Any]

MIN_SIDE = 16
_HIGHEST_MEDIAN = 4.0  # no photograph with highlights above 1 comes near; 0 to 255 lies above
_DTYPES = ("uint8", "uint16", "float32")


def checked_image(image: Any) -> Image:
    """The picture as (H, W, 3) or (H, W), native byte order; a view where that is possible.

    Raises:
        ImageError: wrong shape or dtype, smaller than 16 pixels on a side, larger than the
            protocol takes (268 megapixels; callers have limits of their own below that), or floats
            that are NaN, infinite or far above 1.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"A picture is a NumPy array, not {type(image).__name__}.", code="image-form"
        )
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ImageError(
            f"A picture has the shape (height, width, 3) or (height, width), not {image.shape}.",
            hint="Convert it to RGB or gray first; alpha is not restored.",
            code="image-form",
        )
    if image.dtype.name not in _DTYPES:
        raise ImageError(
            f"A picture's values are uint8, uint16 or float32, not {image.dtype}.",
            hint="Convert them, floats to [0, 1].",
            code="image-form",
        )
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"The picture of {width} x {height} pixels is too small to show a face.",
            hint=f"Give one of at least {MIN_SIDE} x {MIN_SIDE} pixels.",
            code="too-small",
        )
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"The picture of {width} x {height} pixels is larger than {MAX_PIXELS // 10**6} "
            "megapixels.",
            hint="Restore a part of it, or scale it down.",
            code="too-large",
        )
    if image.dtype.kind == "f":
        _check_finite(image)
        _check_scale(image)
    if not image.dtype.isnative:
        image = image.astype(image.dtype.newbyteorder("="))
    return image


def _check_finite(image: Image) -> None:
    rows = max(1, (1 << 20) // image.shape[1])
    for start in range(0, image.shape[0], rows):
        part = image[start : start + rows]
        if not np.isfinite(part).all():
            bad = int(np.argwhere(~np.isfinite(part))[0][0]) + start
            raise ImageError(
                f"The picture holds values that are not numbers (NaN or infinity), first in row "
                f"{bad}.",
                hint="Replace them, for example with numpy.nan_to_num.",
                code="not-finite",
            )


def _check_scale(image: Image) -> None:
    """Refuse floats from 0 to 255 or 65535; highlights above 1 are let through."""
    step = max(1, max(image.shape[:2]) // 512)
    middle = float(np.median(image[::step, ::step]))
    if middle > _HIGHEST_MEDIAN:
        raise ImageError(
            f"The picture's floating-point values lie around {middle:g}; 0 to 1 is expected.",
            hint="Divide them by their white level, for example by 255.",
            code="image-form",
        )


def checked_faces(faces: Any) -> list[Face]:
    """Faces or FaceTargets as a list of Faces. Raises ImageError for anything else."""
    result = []
    for item in faces:
        if isinstance(item, FaceTarget):
            item = Face(
                box=np.array(item.box),
                score=item.score,
                landmarks=np.array(item.landmarks),
                strength=item.strength,
            )
        if not isinstance(item, Face):
            raise ImageError(
                f"A face is a Face or a FaceTarget, not {type(item).__name__}.",
                hint="Take the faces from Restorer.detect.",
                code="bad-request",
            )
        if item.strength is not None and not 0 <= item.strength <= 1:
            raise ImageError(
                f"A face's strength of {item.strength} is not between 0 and 1.", code="bad-request"
            )
        result.append(item)
    return result
