"""Writing pictures: what went in comes out, judged by other libraries; never a partial file."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tifffile
from face_restore_worker.errors import ImageError
from face_restore_worker.images import write as writer
from face_restore_worker.images.metadata import Metadata
from face_restore_worker.images.picture import Picture
from face_restore_worker.images.read import read_image
from face_restore_worker.images.write import write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import (
    XMP,
    exif_block,
    photo,
    save_pillow,
    save_png16,
    save_tiff,
    srgb_profile,
    wide_profile,
)
from PIL import Image


def rewrite(source: Path, target: Path, **options: Any) -> list[str]:
    picture = read_image(source)
    return write_image(picture, picture.pixels, target, **options)


@pytest.mark.parametrize("target", ["b.png", "b.tif"])
def test_sixteen_bits_survive(tmp_path: Path, target: str) -> None:
    pixels = photo(dtype=np.uint16)
    notes = rewrite(save_png16(tmp_path / "a.png", pixels), tmp_path / target)
    assert notes == []
    back = read_image(tmp_path / target)
    assert back.bits == 16
    np.testing.assert_array_equal(back.pixels, pixels)
    if target.endswith("tif"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / target), pixels)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_tiff_floats_and_compression_survive(tmp_path: Path, compression: str | None) -> None:
    pixels = photo(dtype=np.float32)
    source = tmp_path / "a.tif"
    picture = read_image(save_tiff(source, pixels))
    picture.metadata.tiff_compression = compression
    write_image(picture, pixels * 0.5, tmp_path / "b.tif")
    back = read_image(tmp_path / "b.tif")
    np.testing.assert_array_equal(back.pixels, pixels * np.float32(0.5))
    assert back.metadata.tiff_compression == (compression or "deflate")


def test_gray_alpha_survives(tmp_path: Path) -> None:
    both = photo(dtype=np.uint16)[..., :2]
    for name in ("b.png", "b.tif"):
        rewrite(save_png16(tmp_path / "a.png", both), tmp_path / name)
        back = read_image(tmp_path / name)
        assert back.gray and back.alpha is not None
        np.testing.assert_array_equal(np.dstack([back.pixels, back.alpha]), both)


def test_premultiplied_alpha_is_written_plain(tmp_path: Path) -> None:
    rgba = np.full((48, 64, 4), 60, np.uint8)
    rgba[..., 3] = 120
    save_tiff(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_image(tmp_path / "a.tif")
    assert "multiplied by alpha" in picture.notes[0]
    write_image(picture, picture.pixels, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        assert int(tiff.pages[0].tags["ExtraSamples"].value[0]) == 2
        first = tiff.asarray()[3, 3]
    np.testing.assert_allclose(first, (127.5, 127.5, 127.5, 120), atol=0.5)


SUFFIXES = [".png", ".jpg", ".webp", ".tif"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("origin", [".png", ".jpg", ".webp"])
def test_exif_xmp_profile_resolution_survive(tmp_path: Path, origin: str, suffix: str) -> None:
    profile = wide_profile()
    source = tmp_path / f"a{origin}"
    extra: dict[str, Any] = {} if origin == ".webp" else {"dpi": (300, 300)}
    if origin != ".png":
        extra["xmp"] = XMP
    save_pillow(source, photo(), exif=exif_block(6), icc_profile=profile, **extra)
    target = tmp_path / f"b{suffix}"
    rewrite(source, target)
    picture = read_image(target)
    assert picture.metadata.profile == profile
    if origin != ".png":
        assert picture.metadata.xmp == XMP.replace(b"'6'", b"'1'")
    if origin != ".webp" and suffix != ".webp":
        assert picture.metadata.resolution == pytest.approx((300, 300), rel=1e-3)
    exif = Image.open(target).getexif()
    assert exif[0x010F] == "Maker"
    assert exif.get(0x0112, 1) == 1
    details = exif.get_ifd(0x8769)
    assert details[0x9003] == "1994:05:06 07:08:09"
    assert float(details[0x829A]) == pytest.approx(1 / 250)
    assert details[0x927C] == b"maker note with offsets of its own"
    assert exif.get_ifd(0x8825)[2] == (12.0, 30.0, 1.5)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_jpeg_png_webp_carry_the_exif_block_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    save_pillow(tmp_path / "a.jpg", photo(), exif=exif_block(3))
    block = read_image(tmp_path / "a.jpg").metadata.exif
    rewrite(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
    assert read_image(tmp_path / f"b{suffix}").metadata.exif == block
    assert Image.open(tmp_path / f"b{suffix}").size == (64, 48)


def test_tags_of_a_tiff_reach_a_jpeg(tmp_path: Path) -> None:
    tags = [(271, 2, 0, "Maker", True), (33432, 2, 0, "(c) somebody", True)]
    save_tiff(tmp_path / "a.tif", photo(), extratags=tags, description="a portrait")
    rewrite(tmp_path / "a.tif", tmp_path / "b.jpg")
    exif = Image.open(tmp_path / "b.jpg").getexif()
    assert (exif[271], exif[33432], exif[270]) == ("Maker", "(c) somebody", "a portrait")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_invented(tmp_path: Path, suffix: str) -> None:
    rewrite(save_pillow(tmp_path / "a.png", photo()), tmp_path / f"b{suffix}")
    meta = read_image(tmp_path / f"b{suffix}").metadata
    assert (meta.exif, meta.xmp, meta.profile, meta.resolution) == (None, None, None, None)


def test_jpeg_keeps_its_quality_and_sampling(tmp_path: Path) -> None:
    for quality, sampling in ((61, 2), (97, 0)):
        save_pillow(tmp_path / "a.jpg", photo(), quality=quality, subsampling=sampling)
        rewrite(tmp_path / "a.jpg", tmp_path / f"b{quality}.jpg")
        meta = read_image(tmp_path / f"b{quality}.jpg").metadata
        assert meta.jpeg_quality == quality
        assert meta.jpeg_subsampled == (sampling == 2)
    rewrite(tmp_path / "a.jpg", tmp_path / "c.jpg", quality=30)
    assert read_image(tmp_path / "c.jpg").metadata.jpeg_quality == 30


def test_lossless_webp_stays_lossless(tmp_path: Path) -> None:
    rgba = np.dstack([photo(), photo()[..., :1]])
    save_pillow(tmp_path / "a.webp", rgba, lossless=True, exact=True)
    picture = read_image(tmp_path / "a.webp")
    write_image(picture, picture.pixels, tmp_path / "b.webp")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.webp")), rgba)


def test_it_says_what_the_format_cannot_hold(tmp_path: Path) -> None:
    rgba = np.dstack([photo(dtype=np.uint16), np.full((48, 64, 1), 32768, np.uint16)])
    notes = rewrite(save_png16(tmp_path / "a.png", rgba), tmp_path / "b.jpg")
    assert any("8 bits" in note for note in notes)
    assert any("transparency" in note for note in notes)
    assert Image.open(tmp_path / "b.jpg").mode == "RGB"


def test_transparency_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((48, 64, 4), np.uint8)
    save_pillow(tmp_path / "a.png", rgba)
    rewrite(tmp_path / "a.png", tmp_path / "b.jpg")
    assert np.asarray(Image.open(tmp_path / "b.jpg")).min() == 255


def test_avif_writes_and_reads(tmp_path: Path) -> None:
    pixels = photo(dtype=np.uint16)
    notes = rewrite(save_png16(tmp_path / "a.png", pixels), tmp_path / "b.avif")
    assert "12 bits" in notes[0]
    back = read_image(tmp_path / "b.avif")
    assert np.abs(back.pixels.astype(int) - pixels).mean() < 1200


@pytest.mark.parametrize("name", ["b.bmp", "b", "b.heic", "b.gif", "b.ora"])
def test_extensions_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="no format that can be written") as caught:
        rewrite(save_pillow(tmp_path / "a.png", photo()), tmp_path / name)
    assert caught.value.code == "bad-extension"


def test_a_side_too_long_for_webp(tmp_path: Path) -> None:
    save_pillow(tmp_path / "a.png", np.zeros((16, 16400), np.uint8))
    with pytest.raises(ImageError, match="16383"):
        rewrite(tmp_path / "a.png", tmp_path / "b.webp")


@pytest.mark.parametrize("link", ["none", "symlink", "hardlink", "dots"])
def test_the_input_is_never_overwritten(tmp_path: Path, link: str) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    before = source.read_bytes()
    target = tmp_path / "b.png"
    if link == "symlink":
        target.symlink_to(source)
    elif link == "hardlink":
        target.hardlink_to(source)
    elif link == "dots":
        (tmp_path / "sub").mkdir()
        target = tmp_path / "sub" / ".." / "a.png"
    else:
        target = source
    with pytest.raises(ImageError) as caught:
        rewrite(source, target, overwrite=True)
    assert caught.value.code == "would-overwrite-input"
    assert source.read_bytes() == before


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    target = tmp_path / "b.png"
    target.write_bytes(b"precious")
    with pytest.raises(ImageError, match="--overwrite") as caught:
        rewrite(source, target)
    assert caught.value.code == "exists" and target.read_bytes() == b"precious"
    rewrite(source, target, overwrite=True)
    assert target.read_bytes() != b"precious"


def test_the_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        rewrite(save_pillow(tmp_path / "a.png", photo()), tmp_path / "b.png")
    finally:
        os.umask(old)
    assert (tmp_path / "b.png").stat().st_mode & 0o777 == 0o644


def _left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own refusal to let a file grow, as a quota or a full disk gives it."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    source = save_pillow(tmp_path / "a.png", noise)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # nor half of a compiled module
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ImageError) as caught:
            rewrite(source, tmp_path / "b.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == "disk-full" and "full" in caught.value.message
    assert _left_over(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk-full"), (errno.EACCES, "no-permission"), (errno.EROFS, "no-permission")],
)
def test_a_failing_flush_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    target = tmp_path / "b.png"
    target.write_bytes(b"precious")

    def refuse(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer.os, "fsync", refuse)
    with pytest.raises(ImageError) as caught:
        rewrite(source, target, overwrite=True)
    assert caught.value.code == code
    assert target.read_bytes() == b"precious"
    assert _left_over(tmp_path) == ["a.png", "b.png"]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        rewrite(save_pillow(tmp_path / "a.png", photo()), tmp_path / "no" / "b.png")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="was not written: No such file"):
        rewrite(save_pillow(tmp_path / "a.png", photo()), Path("/proc/b.png"))


def test_srgb_profile_is_kept_and_needs_no_conversion(tmp_path: Path) -> None:
    profile = srgb_profile()
    save_pillow(tmp_path / "a.png", photo(), icc_profile=profile)
    picture = read_image(tmp_path / "a.png")
    assert not picture.managed
    assert picture.working() is picture.pixels
    write_image(picture, picture.pixels, tmp_path / "b.png")
    assert Image.open(io.BytesIO((tmp_path / "b.png").read_bytes())).info["icc_profile"] == profile


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    bands=st.integers(1, 4),
    form=st.sampled_from([("png", np.uint8), ("png", np.uint16), ("tif", np.uint8)])
    | st.sampled_from([("tif", np.uint16), ("tif", np.float32)]),
    alike=st.booleans(),
)
def test_lossless_formats_return_every_bit(
    seed: int, height: int, width: int, bands: int, form: tuple[str, type], alike: bool
) -> None:
    """Any size, depth and number of channels; the source is written, read, and written again."""
    suffix, dtype = form
    rng = np.random.default_rng(seed)
    values = rng.random((height, width, bands)).astype(np.float32)
    if dtype is not np.float32:
        values = (values * np.iinfo(dtype).max).astype(dtype)
    if alike:
        values[:] = values[0, 0]
    pixels = values[..., : bands - 1 if bands in (2, 4) else bands].squeeze()
    alpha = np.ascontiguousarray(values[..., -1]) if bands in (2, 4) else None
    with TemporaryDirectory() as folder:
        picture = Picture(Path(folder) / "none", pixels, alpha, "rgb", 16, suffix, Metadata())
        for name in ("a", "b"):
            path = Path(folder) / f"{name}.{suffix}"
            assert write_image(picture, picture.pixels, path) == []
            picture = read_image(path)
            np.testing.assert_array_equal(picture.pixels, pixels)
            assert (picture.alpha is None) == (alpha is None)
            if alpha is not None:
                np.testing.assert_array_equal(picture.alpha, alpha)
