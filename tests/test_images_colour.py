"""Colour management: the model sees sRGB, the file keeps its own colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from face_restore_worker.images import profile as icc
from face_restore_worker.images.picture import Picture, unit
from face_restore_worker.images.read import read_image
from face_restore_worker.images.write import write_image
from faces import patch_at
from picture_files import (
    gray_profile,
    photo,
    save_pillow,
    save_png16,
    save_tiff,
    srgb_profile,
    wide_profile,
)

# sRGB to linear Display P3 (D65, CSS Color 4), for judging by another road than Little CMS.
_TO_P3 = np.array(
    [[0.8224621, 0.177538, 0.0], [0.0331941, 0.9668058, 0.0], [0.0170827, 0.0723974, 0.9105199]]
)


def _linear(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _encoded(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.0031308, v * 12.92, 1.055 * np.clip(v, 0, None) ** (1 / 2.4) - 0.055)


def _open(tmp_path: Path, pixels: np.ndarray, profile: bytes | None) -> Picture:
    if pixels.dtype == np.uint16:
        return read_image(save_png16(tmp_path / "a.png", pixels, profile))
    return read_image(save_pillow(tmp_path / "a.png", pixels, icc_profile=profile))


def test_conversion_agrees_with_the_formula() -> None:
    srgb = photo().astype(np.float32) / 255
    p3 = icc.from_srgb(srgb, wide_profile())
    expected = _encoded(_linear(srgb.astype(np.float64)) @ _TO_P3.T)
    assert np.abs(p3 - expected).max() < 0.004
    back = icc.to_srgb(np.rint(p3 * 65535).astype(np.uint16), wide_profile())
    assert np.abs(back / 65535 - srgb).max() < 0.002


def test_profiles_of_srgb_are_recognised() -> None:
    assert icc.is_srgb(srgb_profile())
    assert not icc.is_srgb(wide_profile())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_wide_picture_is_shown_in_srgb_and_kept_outside(tmp_path: Path, dtype: type) -> None:
    pixels = photo(dtype=dtype)
    picture = _open(tmp_path, pixels, wide_profile())
    assert picture.managed
    working = picture.working()
    assert working.dtype == np.uint16 and working.shape == pixels.shape
    assert np.abs(unit(working) - unit(pixels)).max() > 0.01
    patch = patch_at(20, 16, (0.5, 0.4, 0.3))
    result = picture.composite([patch])
    assert result.dtype == dtype
    outside = np.ones(pixels.shape[:2], bool)
    outside[16:32, 20:36] = patch.mask == 0
    np.testing.assert_array_equal(result[outside], pixels[outside])
    # In the middle, where the mask is 1, the file's colour is the patch's colour in P3.
    expected = _encoded(_linear(np.array([0.5, 0.4, 0.3])) @ _TO_P3.T)
    middle = result[24, 28] / np.iinfo(dtype).max
    assert np.abs(middle - expected).max() < 0.006


def test_a_patch_that_changes_nothing_keeps_colours_beyond_srgb(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[..., 0] = 255  # P3's own red, which sRGB cannot show
    pixels[:, ::2, 1] = 40
    picture = _open(tmp_path, pixels, wide_profile())
    region = unit(picture.working()[16:32, 20:36])
    result = picture.composite([patch_at(20, 16, region)])
    np.testing.assert_array_equal(result, pixels)


def test_gray_profile_and_gray_output(tmp_path: Path) -> None:
    gray = photo()[..., 0]
    profile = gray_profile(1.8)
    picture = _open(tmp_path, gray, profile)
    assert picture.managed and picture.gray
    assert picture.metadata.profile == profile
    level = np.argwhere(gray == 128)[0]
    seen = unit(picture.working())[tuple(level)][0]
    assert seen == pytest.approx(_encoded(np.array((128 / 255) ** 1.8)), abs=0.01)
    result = picture.composite([patch_at(20, 16, (0.5, 0.5, 0.5))])
    assert result.shape == gray.shape and result.dtype == np.uint8
    expected = _linear(np.array(0.5)) ** (1 / 1.8) * 255
    assert abs(float(result[24, 28]) - expected) < 2.5
    write_image(picture, result, tmp_path / "b.png")
    back = read_image(tmp_path / "b.png")
    assert back.gray and back.metadata.profile == profile


def test_gray_without_profile_takes_the_patches_luma(tmp_path: Path) -> None:
    picture = _open(tmp_path, photo(dtype=np.uint16)[..., 0], None)
    result = picture.composite([patch_at(20, 16, (0.25, 0.25, 0.25))])
    assert result.dtype == np.uint16 and result.ndim == 2
    assert result[24, 28] == pytest.approx(0.25 * 65535, abs=1)
    coloured = picture.composite([patch_at(20, 16, (1.0, 0.0, 0.0))])
    assert coloured[24, 28] == pytest.approx(0.2126 * 65535, abs=2)


def test_float_picture_with_profile(tmp_path: Path) -> None:
    pixels = photo(dtype=np.float32)
    save_tiff(tmp_path / "a.tif", pixels, iccprofile=wide_profile())
    picture = read_image(tmp_path / "a.tif")
    assert picture.managed
    patch = patch_at(20, 16, (0.5, 0.4, 0.3))
    result = picture.composite([patch])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[:16], pixels[:16])
    expected = _encoded(_linear(np.array([0.5, 0.4, 0.3])) @ _TO_P3.T)
    assert np.abs(result[24, 28] - expected).max() < 0.006


@pytest.mark.parametrize("profile", [b"no profile at all", gray_profile()])
def test_a_useless_profile_is_kept_and_said(tmp_path: Path, profile: bytes) -> None:
    picture = read_image(save_tiff(tmp_path / "a.tif", photo(), iccprofile=profile))
    np.testing.assert_array_equal(picture.working(), photo())
    assert any("profile" in note and "sRGB" in note for note in picture.notes)
    assert picture.metadata.profile == profile


def test_gray_with_profile_to_webp_becomes_srgb(tmp_path: Path) -> None:
    picture = _open(tmp_path, photo()[..., 0], gray_profile(1.8))
    notes = write_image(picture, picture.pixels, tmp_path / "b.webp", quality=100)
    assert any("sRGB" in note for note in notes)
    back = read_image(tmp_path / "b.webp")
    assert back.metadata.profile is None
    assert np.abs(unit(back.pixels) - unit(picture.working())).mean() < 0.02
