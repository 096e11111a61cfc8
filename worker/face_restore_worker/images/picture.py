"""A picture in memory: its own pixels, the sRGB view a model works on, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from face_restore_worker.images import profile as icc
from face_restore_worker.images.metadata import Metadata

if TYPE_CHECKING:
    from face_restore_worker.pipeline.types import Patch

# Rec. 709 luma, for the gray of a coloured patch.
_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


@dataclass
class Picture:
    """One picture.

    Attributes:
        path: where it came from.
        pixels: (H, W) gray or (H, W, 3) RGB, uint8, uint16 or float32, in the picture's own colour
            space, upright.
        alpha: (H, W) of the same dtype, or None.
        kind: how the file stored it: "rgb", "gray", "palette", "cmyk", "bilevel".
        bits: bits a channel in the file.
        format: key in formats.FORMATS.
        metadata: profile, EXIF and the rest.
        notes: remarks for the user, one sentence each.
    """

    path: Path
    pixels: np.ndarray
    alpha: np.ndarray | None
    kind: str
    bits: int
    format: str
    metadata: Metadata
    notes: list[str] = field(default_factory=list)
    _managed: bool | None = None
    _working: np.ndarray | None = None

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def gray(self) -> bool:
        return self.pixels.ndim == 2

    @property
    def managed(self) -> bool:
        """Whether the pixels are in another colour space than sRGB."""
        if self._managed is None:
            self._managed = self._needs_management()
        return self._managed

    def _needs_management(self) -> bool:
        profile = self.metadata.profile
        if profile is None:
            return False
        try:
            if self.gray:
                icc.to_srgb(np.zeros((1, 1), np.uint8), profile)
                return True
            return not icc.is_srgb(profile)
        except icc.ProfileError as error:
            self.notes.append(f"{error}: the colours are taken as sRGB, the profile is kept")
            return False

    def working(self) -> np.ndarray:
        """(H, W, 3) sRGB-encoded pixels for the models: uint8, uint16, or float32 in [0, 1]."""
        if self._working is None:
            self._working = self._to_working()
        return self._working

    def _to_working(self) -> np.ndarray:
        pixels = self.pixels
        if pixels.dtype == np.float32:
            pixels = np.clip(pixels, 0.0, 1.0)
        if self.managed:
            levels = pixels
            if pixels.dtype == np.float32:
                levels = np.rint(pixels * 65535.0).astype(np.uint16)
            return icc.to_srgb(levels, self.metadata.profile)
        if pixels.ndim == 2:
            return np.repeat(pixels[..., None], 3, axis=2)
        return pixels

    def composite(self, patches: Sequence[Patch]) -> np.ndarray:
        """The picture's own pixels with the patches put in: same shape, dtype and colour space.

        Pixels outside the patches' masks keep their exact values. In a colour space other than
        sRGB only the change that the model made is converted and added, so that colours beyond
        sRGB, which the model cannot see, survive inside the masks as well.
        """
        from face_restore_worker.pipeline.composite import composite

        own = [replace(patch, rgb=self._own_colours(patch)) for patch in patches]
        return composite(self.pixels, own)

    def _own_colours(self, patch: Patch) -> np.ndarray:
        if not self.managed:
            if not self.gray:
                return patch.rgb
            return np.repeat((patch.rgb @ _LUMA)[..., None], 3, axis=2)
        height, width = patch.rgb.shape[:2]
        region = np.s_[patch.y : patch.y + height, patch.x : patch.x + width]
        profile = self.metadata.profile
        assert profile is not None
        seen = unit(self.working()[region])
        change = icc.from_srgb(patch.rgb, profile) - icc.from_srgb(seen, profile)
        own = unit(self.pixels[region])
        own = own[..., None] if own.ndim == 2 else own
        result = own + change
        return np.repeat(result, 3, axis=2) if result.shape[2] == 1 else result

    def srgb(self, pixels: np.ndarray) -> np.ndarray:
        """``pixels`` (as from :meth:`composite`) as sRGB: (H, W, 3), uint8 or uint16."""
        if pixels.dtype == np.float32:
            pixels = np.rint(np.clip(pixels, 0.0, 1.0) * 65535.0).astype(np.uint16)
        if self.managed:
            levels = icc.to_srgb(pixels, self.metadata.profile)
            if pixels.dtype == np.uint8:
                return np.rint(levels / 257.0).astype(np.uint8)
            return levels
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels of any of the three dtypes as float32 with full scale 1."""
    if pixels.dtype == np.float32:
        return pixels
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
