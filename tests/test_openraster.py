"""OpenRaster files: the layout of the specification, and layers that flatten to the result."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np
import pytest
from face_restore_worker.errors import ImageError
from face_restore_worker.images.openraster import faces_layer, write_openraster
from face_restore_worker.images.picture import Picture, unit
from face_restore_worker.images.read import read_image
from faces import patch_at
from picture_files import photo, save_pillow, save_png16, wide_profile
from PIL import Image


def layers(path: Path) -> tuple[ET.Element, dict[str, bytes], list[zipfile.ZipInfo]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        files = {info.filename: archive.read(info) for info in archive.infolist()}
        return ET.fromstring(files["stack.xml"]), files, archive.infolist()


def decode16(data: bytes, tmp_path: Path) -> np.ndarray:
    (tmp_path / "layer.png").write_bytes(data)
    picture = read_image(tmp_path / "layer.png")
    assert picture.bits == 16
    if picture.alpha is None:
        return picture.pixels
    return np.dstack([picture.pixels, picture.alpha])


def picture16(tmp_path: Path, profile: bytes | None = None) -> Picture:
    return read_image(save_png16(tmp_path / "a.png", photo(dtype=np.uint16), profile))


def test_layout(tmp_path: Path) -> None:
    save_pillow(tmp_path / "a.png", photo(), dpi=(300, 300))
    picture = read_image(tmp_path / "a.png")
    write_openraster(picture, [patch_at(20, 16, (0.9, 0.1, 0.2))], tmp_path / "b.ora", opacity=0.7)
    stack, files, infos = layers(tmp_path / "b.ora")
    assert infos[0].filename == "mimetype" and infos[0].compress_type == zipfile.ZIP_STORED
    assert files["mimetype"] == b"image/openraster"
    # Programs look for the type at a fixed place of the file.
    assert (tmp_path / "b.ora").read_bytes()[30:54] == b"mimetypeimage/openraster"
    assert (stack.get("w"), stack.get("h"), stack.get("xres")) == ("64", "48", "300")
    upper, lower = stack.findall("./stack/layer")
    assert (upper.get("name"), upper.get("opacity")) == ("Restored faces", "0.7000")
    assert (upper.get("x"), upper.get("y")) == ("20", "16")
    assert upper.get("composite-op") == lower.get("composite-op") == "svg:src-over"
    assert "a.png" in str(lower.get("name"))
    for layer in (upper, lower):
        assert str(layer.get("src")) in files
    assert Image.open(io.BytesIO(files["mergedimage.png"])).size == (64, 48)
    thumbnail = Image.open(io.BytesIO(files["Thumbnails/thumbnail.png"]))
    assert max(thumbnail.size) <= 256 and thumbnail.format == "PNG"


def test_original_is_untouched_below(tmp_path: Path) -> None:
    picture = picture16(tmp_path)
    write_openraster(picture, [patch_at(20, 16, (0.9, 0.1, 0.2))], tmp_path / "b.ora")
    _, files, _ = layers(tmp_path / "b.ora")
    np.testing.assert_array_equal(decode16(files["data/original.png"], tmp_path), picture.pixels)


@pytest.mark.parametrize("opacity", [0.0, 0.35, 1.0])
def test_layers_flatten_to_the_composite_at_that_strength(tmp_path: Path, opacity: float) -> None:
    """Overlapping faces of different strengths, flattened as a painting program does."""
    from face_restore_worker.pipeline.composite import composite

    picture = picture16(tmp_path)
    patches = [
        patch_at(10, 10, (0.9, 0.1, 0.2)),
        patch_at(20, 16, (0.1, 0.9, 0.3), strength=0.5),
        patch_at(48, 30, (0.3, 0.2, 0.8)),
    ]
    write_openraster(picture, patches, tmp_path / "b.ora", opacity=opacity)
    stack, files, _ = layers(tmp_path / "b.ora")
    upper = stack.findall("./stack/layer")[0]
    layer = unit(decode16(files["data/faces.png"], tmp_path))
    flat = unit(picture.pixels).astype(np.float64)
    x, y = int(str(upper.get("x"))), int(str(upper.get("y")))
    window = flat[y : y + layer.shape[0], x : x + layer.shape[1]]
    cover = layer[..., 3:] * float(str(upper.get("opacity")))
    window[...] = window * (1 - cover) + layer[..., :3] * cover
    expected = unit(composite(picture.pixels, patches, opacity))
    assert np.abs(flat - expected).max() < 3 / 65535
    merged = unit(decode16(files["mergedimage.png"], tmp_path))
    assert np.abs(merged - expected).max() < 3 / 65535


def test_the_layer_is_transparent_where_no_face_is(tmp_path: Path) -> None:
    x, y, rgba = faces_layer(photo(), [patch_at(4, 5, (1, 1, 1)), patch_at(40, 30, (1, 1, 1))])
    assert (x, y, rgba.shape) == (4, 5, (41, 52, 4))
    assert rgba[0:16, 20:, 3].max() == 0
    assert rgba[8, 8, 3] == 1


def test_no_face_gives_the_original_alone(tmp_path: Path) -> None:
    picture = picture16(tmp_path)
    write_openraster(picture, [], tmp_path / "b.ora")
    stack, files, _ = layers(tmp_path / "b.ora")
    assert len(stack.findall("./stack/layer")) == 1
    np.testing.assert_array_equal(decode16(files["mergedimage.png"], tmp_path), picture.pixels)


def test_alpha_stays_with_the_original(tmp_path: Path) -> None:
    rgba = np.dstack([photo(), photo()[..., :1]])
    picture = read_image(save_pillow(tmp_path / "a.png", rgba))
    write_openraster(picture, [patch_at(20, 16, (0.5, 0.5, 0.5))], tmp_path / "b.ora")
    _, files, _ = layers(tmp_path / "b.ora")
    below = np.asarray(Image.open(io.BytesIO(files["data/original.png"])))
    np.testing.assert_array_equal(below, rgba)


def test_other_profiles_become_srgb_and_it_says_so(tmp_path: Path) -> None:
    picture = picture16(tmp_path, wide_profile())
    notes = write_openraster(picture, [], tmp_path / "b.ora")
    assert "sRGB" in notes[0]
    _, files, _ = layers(tmp_path / "b.ora")
    original = decode16(files["data/original.png"], tmp_path)
    np.testing.assert_array_equal(original, picture.working())


def test_gray_pictures_become_gray_rgb(tmp_path: Path) -> None:
    picture = read_image(save_pillow(tmp_path / "a.png", photo()[..., 0]))
    write_openraster(picture, [patch_at(20, 16, (0.5, 0.5, 0.5))], tmp_path / "b.ora")
    _, files, _ = layers(tmp_path / "b.ora")
    merged = np.asarray(Image.open(io.BytesIO(files["mergedimage.png"])))
    np.testing.assert_array_equal(merged[..., 0], merged[..., 2])


def test_the_same_picture_gives_the_same_file(tmp_path: Path) -> None:
    picture = picture16(tmp_path)
    patches = [patch_at(20, 16, (0.9, 0.1, 0.2))]
    for name in ("b.ora", "c.ora"):
        write_openraster(picture, patches, tmp_path / name)
    assert (tmp_path / "b.ora").read_bytes() == (tmp_path / "c.ora").read_bytes()


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "b.ora").write_bytes(b"precious")
    with pytest.raises(ImageError, match="exists already"):
        write_openraster(picture16(tmp_path), [], tmp_path / "b.ora")
