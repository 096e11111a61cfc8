"""Soft masks, and pasting with them: no seams, no edges, no bit changed elsewhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from face_restore_worker import Restorer, composite
from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.mask import covers_face, oval_mask, parse_mask
from face_restore_worker.pipeline.types import Patch
from face_restore_worker.pipeline.warp import full_scale

from tests.natural import Identity, place_face

torch.set_num_threads(2)


def cut(image: np.ndarray, patch: Patch) -> np.ndarray:
    height, width = patch.mask.shape
    return image[patch.y : patch.y + height, patch.x : patch.x + width]


# -- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["ffhq", "gpen"])
@pytest.mark.parametrize("softness", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("size", [64, 512, 2048])
def test_oval_is_soft_and_ends_before_the_crop(template: str, softness: float, size: int) -> None:
    mask = oval_mask(size, template, softness)
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert not edge.any()
    assert covers_face(mask, template)
    if softness >= 1 and size >= 512:
        steps = max(np.abs(np.diff(mask, axis=0)).max(), np.abs(np.diff(mask, axis=1)).max())
        assert steps < 0.05


@pytest.mark.parametrize("softness", [0.0, 1.0, 3.0])
def test_a_parsers_mask_never_shows_the_crops_border(softness: float) -> None:
    """Even a face that fills the crop fades out along a rounded line."""
    mask = parse_mask(np.ones((512, 512), np.float32), 1024, softness)
    assert mask.shape == (512, 512)
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert not edge.any()
    steps = max(np.abs(np.diff(mask, axis=0)).max(), np.abs(np.diff(mask, axis=1)).max())
    assert steps < (0.12 if softness < 1 else 0.06)
    # A straight edge would be the same along a row: the level line must bend.
    line = np.argmax(mask > 0.5, axis=0)[150:362]
    assert line.max() - line.min() > 3
    assert mask[256, 256] > 0.99


def test_a_parsers_small_find_does_not_cover_the_face() -> None:
    face = np.zeros((512, 512), np.uint8)
    face[40:80, 40:80] = 255
    assert not covers_face(parse_mask(face, 512))
    assert not covers_face(parse_mask(np.zeros((512, 512), bool), 512))


# -- compositing -----------------------------------------------------------------------------------


def disc_patch(x: float, y: float, radius: float, value: float, side: int = 240) -> Patch:
    """A soft disc of one value on a picture of `side` pixels."""
    yy, xx = np.mgrid[0:side, 0:side]
    t = np.clip((radius - np.hypot(xx - x, yy - y)) / (0.5 * radius), 0, 1)
    mask = (t * t * (3 - 2 * t)).astype(np.float32)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rgb = np.full((*part.shape, 3), value, np.float32)
    face = place_face(radius, 0, x, y)
    return Patch(face, np.eye(2, 3), 512, int(columns[0]), int(rows[0]), rgb, part)


@pytest.mark.parametrize("distance", [20, 50, 80, 110])
def test_overlapping_faces_meet_without_a_seam(distance: int) -> None:
    photo = np.full((240, 240, 3), 0.5, np.float32)
    patches = [disc_patch(90, 120, 70, 0.1), disc_patch(90 + distance, 120, 60, 0.9)]
    result = composite(photo, patches)
    step = max(np.abs(np.diff(result, axis=0)).max(), np.abs(np.diff(result, axis=1)).max())
    assert step < 0.12  # switching to the higher mask at once would step by up to 0.8
    # Neither brighter nor darker than what is mixed.
    assert result.min() >= 0.1 - 1e-6 and result.max() <= 0.9 + 1e-6


def test_the_higher_mask_wins_and_order_does_not_matter() -> None:
    photo = np.full((240, 240, 3), 0.5, np.float32)
    patches = [
        disc_patch(90, 120, 60, 0.1),
        disc_patch(150, 120, 60, 0.9),
        disc_patch(120, 170, 50, 0.3),
    ]
    results = [composite(photo, order) for order in itertools.permutations(patches)]
    for result in results[1:]:
        assert np.allclose(result, results[0], atol=1e-6)
    assert results[0][120, 70, 0] == pytest.approx(0.1, abs=0.01)
    assert results[0][120, 170, 0] == pytest.approx(0.9, abs=0.01)


def test_each_face_has_its_own_strength() -> None:
    photo = np.full((240, 240, 3), 100, np.uint8)
    near, far = disc_patch(60, 60, 40, 1.0), disc_patch(180, 180, 40, 1.0)
    near.strength, far.strength = 0.5, 0.0
    result = composite(photo, [near, far], strength=0.5)
    assert result[60, 60, 0] == round(100 + 0.25 * 155)
    assert result[180, 180, 0] == 100


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(240, 240, 3), (240, 240), (240, 240, 1)])
def test_strength_zero_and_inputs_stay(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    full = full_scale(dtype)
    photo = (rng.random(shape) * full).astype(dtype)
    patch = disc_patch(100, 100, 60, 0.7)
    before = photo.copy(), patch.rgb.copy(), patch.mask.copy()
    assert np.array_equal(composite(photo, [patch], 0.0), photo)
    assert np.array_equal(composite(photo, []), photo)
    result = composite(photo, [patch])
    assert result.shape == shape and result.dtype == np.dtype(dtype)
    assert np.allclose(result[100, 100] / full, 0.7, atol=0.5 / full + 1e-6)
    assert np.array_equal(photo, before[0])
    assert np.array_equal(patch.rgb, before[1]) and np.array_equal(patch.mask, before[2])


def test_floats_outside_the_range_stay_where_no_mask_is() -> None:
    photo = np.full((240, 240, 3), 7.5, np.float32)
    photo[0, 0] = np.nan
    photo[:, 200:] = -3.25
    result = composite(photo, [disc_patch(100, 100, 60, 0.7)])
    assert np.isnan(result[0, 0]).all()
    assert (result[:, 200:] == -3.25).all() and (result[5, 5] == 7.5).all()
    assert result[100, 100, 0] == pytest.approx(0.7)


def test_sixteen_bits_stay_sixteen_bits() -> None:
    """More levels than 8 bits could hold come back from the pasted region."""
    ramp = np.linspace(20000, 24000, 240 * 240).reshape(240, 240)
    photo = np.repeat(ramp[..., None], 3, axis=2).astype(np.uint16)
    outcome = Restorer(network=Identity(512)).restore(photo, [place_face(100, 0, 120, 120)])
    result = composite(photo, outcome.patches)
    patch = outcome.patches[0]
    opaque = patch.mask > 0.5
    levels = len(np.unique(cut(result, patch)[opaque]))
    assert levels > 256 and levels > 0.9 * len(np.unique(cut(photo, patch)[opaque]))


def test_patches_of_another_picture_are_refused() -> None:
    photo = np.zeros((100, 100, 3), np.uint8)
    with pytest.raises(ImageError) as caught:
        composite(photo, [disc_patch(150, 150, 40, 0.5)])
    assert caught.value.code == "patch-mismatch"
    with pytest.raises(ImageError):
        composite(photo, [], strength=1.5)
