"""Reading pictures: every kind arrives upright, at its own depth, with its remarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from face_restore_worker.images.read import apply_orientation, read_image
from picture_files import (
    XMP,
    exif_block,
    photo,
    save_pillow,
    save_png16,
    save_tiff,
)
from PIL import Image, ImageOps


def test_rgb8_pixels_are_the_files(tmp_path: Path) -> None:
    pixels = photo()
    picture = read_image(save_pillow(tmp_path / "a.png", pixels))
    assert picture.pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture.pixels, pixels)
    np.testing.assert_array_equal(picture.working(), pixels)
    assert (picture.kind, picture.bits, picture.alpha, picture.notes) == ("rgb", 8, None, [])


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_rgb16_keeps_all_bits(tmp_path: Path, kind: str) -> None:
    pixels = photo(dtype=np.uint16)
    path = tmp_path / f"a.{kind}"
    picture = read_image(save_png16(path, pixels) if kind == "png" else save_tiff(path, pixels))
    assert picture.bits == 16
    np.testing.assert_array_equal(picture.pixels, pixels)


def test_float_tiff_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = photo(dtype=np.float32)
    picture = read_image(save_tiff(tmp_path / "a.tif", pixels))
    np.testing.assert_array_equal(picture.pixels, pixels)
    np.testing.assert_array_equal(picture.working(), pixels)


def test_float_above_one_is_kept_but_clipped_for_the_model(tmp_path: Path) -> None:
    pixels = photo(dtype=np.float32)
    pixels[3, 4] = (2.5, -0.5, 0.5)
    picture = read_image(save_tiff(tmp_path / "a.tif", pixels))
    np.testing.assert_array_equal(picture.pixels[3, 4], [2.5, -0.5, 0.5])
    np.testing.assert_array_equal(picture.working()[3, 4], [1.0, 0.0, 0.5])
    assert "clipped" in picture.notes[0]


def test_gray_stays_gray(tmp_path: Path) -> None:
    gray = photo()[..., 0]
    picture = read_image(save_pillow(tmp_path / "a.png", gray))
    assert picture.gray and picture.pixels.shape == gray.shape
    working = picture.working()
    assert working.shape == (*gray.shape, 3)
    np.testing.assert_array_equal(working, np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize("bands", [2, 4])
def test_alpha_is_set_aside(tmp_path: Path, bands: int) -> None:
    pixels = np.dstack([photo(dtype=np.uint16), photo(dtype=np.uint16)[..., :1]])[..., -bands:]
    picture = read_image(save_png16(tmp_path / "a.png", pixels))
    assert picture.gray == (bands == 2)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, pixels[..., -1])
    np.testing.assert_array_equal(np.squeeze(pixels[..., :-1]), picture.pixels)


def test_palette_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(photo()).quantize(32)
    image.save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert picture.kind == "palette" and "palette" in picture.notes[0]


def test_transparent_palette_and_gif(tmp_path: Path) -> None:
    image = Image.fromarray(photo()).quantize(16)
    image.save(tmp_path / "a.png", transparency=2)
    assert read_image(tmp_path / "a.png").alpha is not None
    image.save(tmp_path / "a.gif")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.gif").pixels, np.asarray(image.convert("RGB"))
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_bit_becomes_gray(tmp_path: Path, suffix: str) -> None:
    save_pillow(tmp_path / f"a{suffix}", photo()[..., 0], "1")
    picture = read_image(tmp_path / f"a{suffix}")
    assert picture.kind == "bilevel" and picture.gray
    assert set(np.unique(picture.pixels)) <= {0, 255}
    assert "1 bit" in picture.notes[0]


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_srgb_and_says_so(tmp_path: Path, suffix: str) -> None:
    ink = np.zeros((48, 64, 4), np.uint8)
    ink[:, 32:] = (0, 255, 255, 0)  # magenta and yellow in full: red
    Image.fromarray(ink, "CMYK").save(tmp_path / f"a{suffix}")
    picture = read_image(tmp_path / f"a{suffix}")
    assert picture.pixels.shape == (48, 64, 3)
    assert picture.pixels[5, 5].min() > 230
    red = picture.pixels[5, 60].astype(int)
    assert red[0] > 180 and red[1] < 90 and red[2] < 90
    assert "CMYK" in picture.notes[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    pixels = photo()
    stored = save_pillow(tmp_path / "a.png", pixels, exif=exif_block(orientation))
    picture = read_image(stored)
    expected = ImageOps.exif_transpose(Image.open(stored))
    np.testing.assert_array_equal(picture.pixels, np.asarray(expected))
    np.testing.assert_array_equal(apply_orientation(pixels, orientation), picture.pixels)
    assert picture.metadata.exif is not None
    exif = Image.Exif()
    exif.load(picture.metadata.exif)
    assert exif[0x0112] == 1
    assert exif.get_ifd(0x8769)[0xA002] == picture.width
    assert exif.get_ifd(0x8769)[0xA003] == picture.height


def test_orientation_of_a_tiff(tmp_path: Path) -> None:
    pixels = photo(dtype=np.uint16)
    save_tiff(tmp_path / "a.tif", pixels, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.tif").pixels, np.rot90(pixels, -1, (0, 1))
    )


def test_xmp_orientation_is_reset(tmp_path: Path) -> None:
    save_pillow(tmp_path / "a.jpg", photo(), xmp=XMP)
    picture = read_image(tmp_path / "a.jpg")
    assert picture.metadata.xmp is not None
    assert b"tiff:Orientation='1'" in picture.metadata.xmp


def test_resolution_turns_with_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_pillow(tmp_path / "a.png", photo(), dpi=(300, 150), exif=exif)
    resolution = read_image(tmp_path / "a.png").metadata.resolution
    assert resolution == pytest.approx((150, 300), rel=1e-3)


def test_no_resolution_is_invented(tmp_path: Path) -> None:
    assert read_image(save_pillow(tmp_path / "a.png", photo())).metadata.resolution is None


@pytest.mark.parametrize("quality", [1, 20, 49, 50, 75, 92, 100])
def test_jpeg_quality_is_recognised(tmp_path: Path, quality: int) -> None:
    save_pillow(tmp_path / "a.jpg", photo(), quality=quality, subsampling=0)
    meta = read_image(tmp_path / "a.jpg").metadata
    assert meta.jpeg_quality == pytest.approx(quality, abs=1 if quality > 5 else 2)
    assert not meta.jpeg_subsampled


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(save_pillow(tmp_path / "b.png", photo()).read_bytes())
    picture = read_image(tmp_path / "a.jpg")
    assert picture.format == "png"
    assert "holds a PNG" in picture.notes[0]


def test_first_page_is_read_and_said(tmp_path: Path) -> None:
    pixels = photo()
    save_tiff(tmp_path / "a.tif", np.stack([pixels, pixels[::-1]]), photometric="rgb")
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert "2 pages" in picture.notes[0]


def test_bigtiff_and_planar(tmp_path: Path) -> None:
    pixels = photo(dtype=np.uint16)
    save_tiff(tmp_path / "big.tif", pixels, bigtiff=True)
    np.testing.assert_array_equal(read_image(tmp_path / "big.tif").pixels, pixels)
    planes = np.moveaxis(pixels, -1, 0)
    save_tiff(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif").pixels, pixels)
