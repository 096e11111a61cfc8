"""Colour management: between a picture's own ICC profile and the sRGB that the models know.

Both directions go through CIE Lab in float with relative colorimetric intent (libvips with
Little CMS), which keeps a round trip within a few 16-bit steps.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

_INTENT = "relative"
# A profile whose colours lie this near to sRGB's (of full scale) is taken as sRGB itself.
_SAME = 1.5 / 255


class ProfileError(ValueError):
    """The profile is damaged, or not for pictures of this kind."""


def _vips_image(pixels: np.ndarray) -> Any:
    import pyvips

    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = {1: ("b-w", "grey16"), 3: ("srgb", "rgb16"), 4: ("cmyk", "cmyk")}[bands]
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    return image.copy(interpretation=kind[pixels.dtype == np.uint16])


@contextmanager
def _profile_file(profile: bytes, bands: int) -> Iterator[str]:
    """The profile as a file: libvips silently replaces a damaged embedded one by sRGB."""
    space = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}[bands]
    if len(profile) < 132 or profile[36:40] != b"acsp":
        raise ProfileError("its ICC profile is damaged")
    if profile[16:20] != space:
        found = profile[16:20].decode("ascii", "replace").strip()
        raise ProfileError(f"its ICC profile is for {found} pictures")
    handle, name = tempfile.mkstemp(suffix=".icc")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(profile)
        yield name
    finally:
        Path(name).unlink()


def to_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Pixels of the profile's colour space in sRGB.

    Args:
        pixels: (H, W) or (H, W, 1|3|4) uint8 or uint16.
        profile: ICC profile; None is allowed for CMYK only and means a generic press profile.

    Returns:
        (H, W, 3) uint16, sRGB-encoded.

    Raises:
        ProfileError: the profile cannot be used for these pixels.
    """
    import pyvips

    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    try:
        with nullcontext("cmyk") if profile is None else _profile_file(profile, bands) as name:
            lab = _vips_image(pixels).icc_import(input_profile=name, intent=_INTENT)
            result: np.ndarray = lab.icc_export(
                output_profile="srgb", depth=16, intent=_INTENT
            ).numpy()
    except pyvips.Error as error:
        raise ProfileError(f"its ICC profile cannot be used ({_last_line(error)})") from error
    if result.ndim != 3 or result.shape[2] != 3:
        raise ProfileError("its ICC profile is for pictures of another kind")
    return result


def from_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """sRGB pixels in the profile's colour space.

    Args:
        rgb: (H, W, 3) float, [0, 1]; values outside are clipped.

    Returns:
        (H, W, C) float32 in [0, 1]; C is 1 for a gray profile and 3 for an RGB one.

    Raises:
        ProfileError: the profile cannot be written to.
    """
    import pyvips

    levels = np.clip(np.rint(rgb * 65535.0), 0, 65535).astype(np.uint16)
    try:
        with _profile_file(profile, 1 if profile[16:20] == b"GRAY" else 3) as name:
            lab = _vips_image(levels).icc_import(input_profile="srgb", intent=_INTENT)
            out: np.ndarray = lab.icc_export(output_profile=name, depth=16, intent=_INTENT).numpy()
    except pyvips.Error as error:
        raise ProfileError(f"its ICC profile cannot be used ({_last_line(error)})") from error
    out = out[..., None] if out.ndim == 2 else out
    return out.astype(np.float32) / np.float32(65535.0)


def is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile's colours are sRGB's: probed on a grid of 9 levels a channel.

    Raises:
        ProfileError: the profile is damaged or not an RGB one.
    """
    level = np.linspace(0, 65535, 9).astype(np.uint16)
    grid = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(27, 27, 3)
    difference = np.abs(to_srgb(grid, profile).astype(np.float64) - grid)
    return bool(difference.max() / 65535.0 < _SAME)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"
