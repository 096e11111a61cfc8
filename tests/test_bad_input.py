"""Bad input gets a clear error that names the file, and nothing is lost or left behind."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from face_restore_worker.cli.main import main
from face_restore_worker.errors import ImageError
from face_restore_worker.images import exif
from face_restore_worker.images.read import read_image
from face_restore_worker.images.tiff_tags import TagError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import exif_block, photo, save_pillow, save_tiff
from PIL import Image


def refused(path: Path, code: str, words: str = "", **options: int) -> ImageError:
    with pytest.raises(ImageError, match=words or None) as caught:
        read_image(path, **options)
    assert caught.value.code == code
    if path.name.isprintable() and path.name.isascii():
        assert path.name in caught.value.message
    assert caught.value.message.endswith(".")
    return caught.value


def encoded(tmp_path: Path, suffix: str) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (120, 160, 3)).astype(np.uint8)
    if suffix == ".avif":
        path = tmp_path / "whole.avif"
        picture = read_image(save_pillow(tmp_path / "whole.png", pixels))
        from face_restore_worker.images.write import write_image

        write_image(picture, pixels, path)
        return path.read_bytes()
    return save_pillow(tmp_path / f"whole{suffix}", pixels).read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".avif", ".gif"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_truncated(tmp_path: Path, suffix: str, part: float) -> None:
    whole = encoded(tmp_path, suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: max(32, int(len(whole) * part))])
    error = refused(path, "damaged")
    assert "Copy it again" in error.hint


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.touch()
    refused(path, "empty-file", "0 bytes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, this is text\n", "plain text"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(40), "ZIP archive"),
        (b"%PDF-1.7\n", "PDF"),
        (b"BM" + bytes(60), "BMP"),
        (b"MZ\x90\x00" + bytes(60), "program"),
        (bytes(100), "no kind of picture"),
        (random.Random(7).randbytes(50).replace(b"\xff\xd8", b""), ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ],
)
def test_disguised(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    refused(path, "not-a-picture", words)


def test_csv_that_libvips_would_take_for_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("1,2,3\n" * 50)
    refused(path, "not-a-picture")


def test_not_files(tmp_path: Path) -> None:
    refused(tmp_path, "not-a-file", "is a folder")
    refused(tmp_path / "missing.png", "not-found")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not-a-file", "regular file")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png", "unreadable")
    refused(tmp_path / ("a" * 300 + ".png"), "unreadable")


@pytest.fixture
def nobody() -> object:
    """Run as a user without rights, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission_to_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = save_pillow(tmp_path / "a.png", photo())
    path.chmod(0)
    request.getfixturevalue("nobody")
    refused(path, "no-permission", "no permission")


def test_no_permission_to_write(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from face_restore_worker.images.write import write_image

    folder = tmp_path / "locked"
    folder.mkdir()
    picture = read_image(save_pillow(tmp_path / "a.png", photo()))
    folder.chmod(0o500)
    request.getfixturevalue("nobody")
    with pytest.raises(ImageError) as caught:
        write_image(picture, picture.pixels, folder / "b.png")
    assert caught.value.code == "no-permission"


def header_only(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(bytes(100))
    rest = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + rest


def test_sizes_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    """The pixels are missing, so "too large" can only come from the header."""
    path = tmp_path / "huge.png"
    path.write_bytes(header_only(30000, 30000))
    error = refused(path, "too-large", "30000 x 30000 = 900 megapixels; the limit is 100")
    assert "--max-pixels" in error.hint
    path.write_bytes(header_only(2000, 2000))
    refused(path, "too-large", "= 4 megapixels; the limit is 3.999999", max_pixels=3_999_999)
    refused(path, "too-large", "= 4000000 pixels; the limit is 999.", max_pixels=999)
    refused(path, "damaged", max_pixels=4_000_000)


def test_a_picture_above_100_megapixels_is_restored_where_that_is_wished() -> None:
    """--max-pixels would raise nothing if the pipeline had a limit of its own there."""
    from face_restore_worker.pipeline.inputs import checked_image

    image = np.broadcast_to(np.uint8(0), (10_000, 26_000, 3))
    assert checked_image(image).shape == image.shape
    with pytest.raises(ImageError, match="268 megapixels"):
        checked_image(np.broadcast_to(np.uint8(0), (10_000, 27_000, 3)))


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    path = save_pillow(tmp_path / "a.png", np.zeros((size[1], size[0], 3), np.uint8))
    refused(path, "too-small", f"{size[0]} x {size[1]}")


def test_sixteen_pixels_are_enough(tmp_path: Path) -> None:
    assert read_image(save_pillow(tmp_path / "a.png", photo(16, 16))).width == 16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number(tmp_path: Path, value: float) -> None:
    pixels = photo(dtype=np.float32)
    pixels[4, 5, 1] = value
    refused(save_tiff(tmp_path / "a.tif", pixels), "unsupported", "1 samples .*not a number")


def test_floats_that_are_not_from_0_to_1(tmp_path: Path) -> None:
    pixels = photo(dtype=np.float32) * 255
    refused(save_tiff(tmp_path / "a.tif", pixels), "unsupported", "0 to 1 is expected")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_sample_types(tmp_path: Path, dtype: type) -> None:
    path = save_tiff(tmp_path / "a.tif", photo().astype(dtype))
    assert "8 or 16 bit" in refused(path, "unsupported").hint


def test_too_many_channels(tmp_path: Path) -> None:
    five = np.dstack([photo(), photo()[..., :2]])
    refused(save_tiff(tmp_path / "a.tif", five), "unsupported", "5 channels")


@pytest.mark.parametrize(
    "name", ["two words.png", "Köpfe 😀.png", "line\nbreak.png", "-o.png", "[a].png"]
)
def test_names(tmp_path: Path, name: str) -> None:
    path = save_pillow(tmp_path / name, photo())
    np.testing.assert_array_equal(read_image(path).pixels, photo())
    path.write_bytes(b"x")
    error = refused(path, "not-a-picture")
    assert "\n" not in error.message


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    try:
        path.write_bytes(save_pillow(tmp_path / "a.png", photo()).read_bytes())
    except OSError:
        pytest.skip("this file system wants Unicode")
    assert read_image(path).width == 64
    path.write_bytes(b"x")
    assert r"\xff\xfe.png" in refused(path, "not-a-picture").message


def test_the_command_names_the_file_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a b.jpg"
    path.write_bytes(save_pillow(tmp_path / "c.jpg", photo(200, 300)).read_bytes()[:2000])
    assert main(["restore", str(path), "-o", str(tmp_path / "out.jpg")]) == 1
    _, err = capsys.readouterr()
    assert "a b.jpg is damaged or cut short" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a b.jpg", "c.jpg"]


def test_a_folder_without_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert main(["restore", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "no pictures in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("samples")
    found = []
    for suffix in (".png", ".jpg", ".webp", ".tif", ".gif"):
        options = {} if suffix == ".gif" else {"exif": exif_block(6)}
        found.append(save_pillow(folder / f"a{suffix}", photo(), **options).read_bytes())
    return found


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    which=st.integers(0, 4),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_an_image_error(
    tmp_path: Path, samples: list[bytes], which: int, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(samples[which])
    for place, value in changes:
        data[min(len(data) - 1, int(place * len(data)))] = value
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    try:
        picture = read_image(path, max_pixels=10**6)
    except ImageError:
        return
    assert picture.pixels.dtype in (np.uint8, np.uint16, np.float32)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 500),
)
def test_damaged_exif_is_recognised_or_harmless(
    changes: list[tuple[int, int]], length: int
) -> None:
    block = bytearray(exif.strip_prefix(exif_block(6)))
    for place, value in changes:
        if place < len(block):
            block[place] = value
    try:
        result = exif.upright(bytes(block[:length]), 48, 64)
        assert len(result) == len(block[:length])
        Image.Exif().load(exif.build(exif.parse(result)))
    except TagError:
        return
