"""From photograph to crop and back: an identity changes nothing, anything else lands in place."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from face_restore_shared.schema import RestoreOptions
from face_restore_worker import Restorer, composite
from face_restore_worker.pipeline.align import alignment_matrix, template_landmarks
from face_restore_worker.pipeline.paste import kept_detail
from face_restore_worker.pipeline.types import Patch
from face_restore_worker.pipeline.warp import (
    Rect,
    full_scale,
    in_strips,
    read_rect,
    warp_back,
    warp_part_back,
    warp_to_crop,
)
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.natural import (
    Apply,
    Identity,
    crop_scale,
    natural_photo,
    place_face,
    psnr,
)

PLAIN = RestoreOptions(keep_colour=False)
relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
torch.set_num_threads(2)


def cut(image: np.ndarray, patch: Patch) -> np.ndarray:
    height, width = patch.mask.shape
    return image[patch.y : patch.y + height, patch.x : patch.x + width]


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


# -- the identity --------------------------------------------------------------------------------


any_face = given(
    size=log_uniform(24, 3000),
    angle=st.floats(-math.pi, math.pi),
    across=st.tuples(st.floats(-0.1, 1.1), st.floats(-0.1, 1.1)),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    crop=st.sampled_from([512, 2048]),
    shift=st.integers(0, 1023),
    template=st.sampled_from(["ffhq", "gpen"]),
)


@pytest.mark.slow
@settings(relaxed, max_examples=3)
@any_face
@example(
    size=3000, angle=0.3, across=(0.5, 0.5), dtype="uint16", crop=512, shift=0, template="ffhq"
)
@example(size=24, angle=0.7, across=(0.5, 0.5), dtype="uint8", crop=2048, shift=0, template="ffhq")
def test_identity_restores_the_photograph(**case: Any) -> None:
    """Above 45 dB inside the mask, every bit outside; everything of the pipeline included."""
    check_identity(**case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(relaxed, max_examples=60)
@any_face
@example(
    size=500, angle=0.785, across=(0.5, 0.5), dtype="uint8", crop=2048, shift=5, template="ffhq"
)
@example(
    size=500, angle=0.785, across=(0.01, 0.99), dtype="float32", crop=2048, shift=5, template="gpen"
)
def test_identity_restores_the_photograph_at_length(**case: Any) -> None:
    check_identity(**case)


def check_identity(
    size: float,
    angle: float,
    across: tuple[float, float],
    dtype: str,
    crop: int,
    shift: int,
    template: str,
) -> None:
    """One face of any size, turn and place, in a photograph of any depth."""
    side = max(32, round(1.15 * size))
    photo = natural_photo(side, side + 9, dtype, shift)
    face = place_face(size, angle, across[0] * side, across[1] * side, template)
    options = RestoreOptions(template=template)
    outcome = Restorer(network=Identity(crop)).restore(photo, [face], options=options)
    assume(outcome.patches)
    patch = outcome.patches[0]
    result = composite(photo, outcome.patches)
    assert result.dtype == photo.dtype and result.shape == photo.shape
    inside = np.zeros(photo.shape[:2], dtype=bool)
    cut(inside, patch)[:] = patch.mask > 0
    assert inside.any()
    assert np.array_equal(result[~inside], photo[~inside])
    assert psnr(result[inside], photo[inside], full_scale(photo.dtype)) > 45
    # Not only blended with the photograph: the patch itself is as good where it shows.
    opaque = patch.mask > 0.5
    if opaque.any():
        rgb = np.clip(patch.rgb[opaque], 0, 1)
        assert psnr(rgb, cut(photo, patch)[opaque] / full_scale(photo.dtype), 1.0) > 45


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_identity_on_a_face_larger_than_the_crop_is_exact(dtype: str) -> None:
    photo = natural_photo(900, 800, dtype)
    face = place_face(700, 0.2, 400, 450)
    outcome = Restorer(network=Identity(256)).restore(photo, [face])
    result = composite(photo, outcome.patches)
    if dtype == "float32":
        assert np.abs(result - photo).max() < 1e-6
    else:
        assert np.array_equal(result, photo)


@pytest.mark.parametrize("size", [40, 150, 290, 400, 600, 1500])
def test_astronaut_survives_the_round_trip(size: int) -> None:
    """A real photograph, at the scales between "enlarged" and "shrunk"."""
    data = pytest.importorskip("skimage.data")
    photo = data.astronaut()
    face = place_face(size, 0.15, 222, 120)
    for crop in (512, 2048):
        outcome = Restorer(network=Identity(crop)).restore(photo, [face])
        result = composite(photo, outcome.patches)
        shown = cut(result, outcome.patches[0]), cut(photo, outcome.patches[0])
        assert psnr(*shown, 255) > 50


# -- geometry, with networks that change the picture -----------------------------------------------


@settings(relaxed, max_examples=25)
@given(
    size=log_uniform(40, 900),
    angle=st.floats(-math.pi, math.pi),
    crop=st.sampled_from([256, 512, 1024]),
    template=st.sampled_from(["ffhq", "gpen"]),
    offset=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_markers_painted_in_the_crop_land_on_the_landmarks(
    size: float, angle: float, crop: int, template: str, offset: tuple[float, float]
) -> None:
    """Bright spots at the template's landmarks, found again by their centre of mass."""
    side = round(1.5 * size) + 20
    photo = np.full((side, side, 3), 0.25, np.float32)
    face = place_face(size, angle, side / 2 + offset[0], side / 2 + offset[1], template)
    unit = crop_scale(size, crop)  # crop pixels in a photograph's pixel
    sigma = max(2.0, 1.0 * unit)
    yy, xx = np.mgrid[0:crop, 0:crop].astype(np.float64)
    spots = sum(
        np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
        for x, y in template_landmarks(template, crop)
    )
    painted = torch.from_numpy(spots.astype(np.float32)) - 0.5  # a background of 0.25 in [0, 1]
    network = Apply(lambda x: painted.expand_as(x).clone(), crop)
    options = RestoreOptions(template=template, keep_colour=False)
    patch = Restorer(network=network).restore(photo, [face], options=options).patches[0]
    light = patch.rgb[..., 1] - 0.25
    rows, columns = np.mgrid[0 : light.shape[0], 0 : light.shape[1]]
    tolerance = max(0.05, 0.1 / unit)
    for x, y in face.landmarks:
        near = np.hypot(columns + patch.x - x, rows + patch.y - y) < 3 * sigma / unit
        weight = np.where(near, np.maximum(light, 0), 0)
        assert weight.sum() > 0
        centre_x = (weight * (columns + patch.x)).sum() / weight.sum()
        centre_y = (weight * (rows + patch.y)).sum() / weight.sum()
        assert math.hypot(centre_x - x, centre_y - y) < tolerance


@settings(relaxed, max_examples=25)
@given(
    size=log_uniform(30, 2500),
    angle=st.floats(-math.pi, math.pi),
    crop=st.sampled_from([256, 512, 1024]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    offset=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_landmarks_of_the_photograph_land_on_the_template(
    size: float, angle: float, crop: int, dtype: str, offset: tuple[float, float]
) -> None:
    """The other way: spots on the photograph's landmarks, measured in the crop."""
    side = round(1.5 * size) + 20
    face = place_face(size, angle, side / 2 + offset[0], side / 2 + offset[1])
    unit = crop_scale(size, crop)
    sigma = max(1.5, 2.0 / unit)
    grid = np.arange(side)
    spots = sum(
        np.exp(-((grid[:, None] - y) ** 2) / (2 * sigma**2))
        * np.exp(-((grid[None] - x) ** 2) / (2 * sigma**2))
        for x, y in face.landmarks
    )
    full = full_scale(dtype)
    values = 0.25 + 0.5 * spots
    photo = (values if dtype == "float32" else np.rint(values * full)).astype(dtype)
    seen = warp_to_crop(photo, alignment_matrix(face.landmarks, "ffhq", crop), crop) - 0.25
    rows, columns = np.mgrid[0:crop, 0:crop]
    for x, y in template_landmarks("ffhq", crop):
        near = np.hypot(columns - x, rows - y) < 2.5 * sigma * unit
        weight = np.where(near, np.maximum(seen - 2 / 255, 0), 0)
        centre_x = (weight * columns).sum() / weight.sum()
        centre_y = (weight * rows).sum() / weight.sum()
        assert math.hypot(centre_x - x, centre_y - y) < max(0.1, 0.1 * unit)


@settings(relaxed, max_examples=25)
@given(
    size=log_uniform(30, 1200),
    angle=st.floats(-math.pi, math.pi),
    crop=st.sampled_from([256, 512]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
)
def test_an_inverting_network_inverts_the_photograph(
    size: float, angle: float, crop: int, dtype: str
) -> None:
    """On a smooth picture that holds at every scale, also where only the change is pasted."""
    side = round(1.3 * size) + 10
    y, x = np.mgrid[0:side, 0:side] / side
    smooth = np.stack([0.2 + 0.6 * x, 0.8 - 0.5 * y, 0.5 + 0.3 * np.sin(3 * (x + y))], axis=-1)
    full = full_scale(dtype)
    photo = smooth.astype(np.float32) if dtype == "float32" else np.rint(smooth * full)
    photo = photo.astype(dtype)
    face = place_face(size, angle, side / 2, side / 2)
    network = Apply(lambda x: -x, crop)
    outcome = Restorer(network=network).restore(photo, [face], options=PLAIN)
    result = composite(photo, outcome.patches)
    patch = outcome.patches[0]
    solid = patch.mask == patch.mask.max()
    wanted = 1 - cut(smooth, patch)[solid]
    got = cut(result, patch)[solid] / full
    assert np.abs(got - wanted).max() < 0.01


def test_what_the_photograph_cannot_hold_does_not_alias() -> None:
    """The finest stripes a crop can show average out; coarse ones stay."""
    photo = np.full((200, 200, 3), 128, np.uint8)
    face = place_face(60, 0.4, 100, 100)
    unit = crop_scale(60, 512)
    columns = torch.arange(512.0)
    for period, amplitude in ((2.0, 0.0), (1.2 * unit, 0.0), (6 * unit, 0.5)):
        stripes = 0.5 * torch.sin(2 * math.pi * columns / period + 0.3)
        network = Apply(lambda x, s=stripes: s.expand_as(x).clone())
        patch = Restorer(network=network).restore(photo, [face], options=PLAIN).patches[0]
        seen = patch.rgb[patch.mask > 0.9].std()
        wanted = amplitude / 2 / math.sqrt(2)
        assert seen == pytest.approx(wanted, abs=0.01)


def test_noise_of_a_small_face_does_not_come_back() -> None:
    """Where the network saw the face enlarged, its result replaces the photograph."""
    photo = np.random.default_rng(3).integers(0, 255, (120, 120, 3), dtype=np.uint8)
    network = Apply(lambda x: torch.full_like(x, 0.2))
    patch = Restorer(network=network).restore(photo, [place_face(60, 0, 60, 60)], options=PLAIN)
    assert patch.patches[0].rgb.std() < 1e-3


def test_detail_finer_than_the_crop_stays() -> None:
    """The network sees a quarter of the resolution; grain finer than that is the photograph's."""
    rng = np.random.default_rng(4)
    photo = np.clip(rng.normal(128, 20, (900, 900, 3)), 0, 255).astype(np.uint8)
    face = place_face(650, 0.1, 450, 450)
    network = Apply(lambda x: x * 0.5 + 0.2, 256)
    outcome = Restorer(network=network).restore(photo, [face], options=PLAIN)
    patch = outcome.patches[0]
    solid = patch.mask > 0.99
    before, after = cut(photo, patch) / 255, patch.rgb
    grain_before = np.diff(before, axis=1)[solid[:, 1:]].std()
    grain_after = np.diff(after, axis=1)[solid[:, 1:]].std()
    assert grain_after > 0.97 * grain_before
    assert after[solid].mean() == pytest.approx(0.25 + 0.5 * before[solid].mean() + 0.1, abs=0.01)


def test_detail_fades_in_without_a_jump() -> None:
    scales = np.linspace(0.5, 3, 501)
    kept = np.array([kept_detail(s) for s in scales])
    assert kept[0] == 1 and kept[-1] == 0
    assert (np.diff(kept) <= 0).all() and np.abs(np.diff(kept)).max() < 0.01


# -- the crop ------------------------------------------------------------------------------------


@settings(relaxed, max_examples=20)
@given(
    size=log_uniform(24, 2000),
    angle=st.floats(-math.pi, math.pi),
    corner=st.tuples(st.booleans(), st.booleans()),
)
def test_a_crop_across_the_border_is_never_black(
    size: float, angle: float, corner: tuple[bool, bool]
) -> None:
    photo = np.full((300, 400, 3), 200, np.uint8)
    face = place_face(size, angle, 399 * corner[0], 299 * corner[1])
    network = Identity(256)
    options = RestoreOptions(return_aligned=True)
    outcome = Restorer(network=network).restore(photo, [face], options=options)
    for patch in outcome.patches:
        assert patch.aligned_input is not None
        assert np.abs(patch.aligned_input - 200 / 255).max() < 1e-4


@pytest.mark.parametrize("size", [512, 256, 96])
def test_shrinking_averages_every_pixel(size: int) -> None:
    """A pattern of one-pixel stripes becomes its mean, not a moire."""
    photo = np.zeros((1200, 1200, 3), np.uint8)
    photo[:, ::2] = 200
    matrix = np.array([[0.21, 0.03, 0.0], [-0.03, 0.21, 20.0]]) * (size / 256)
    crop = warp_to_crop(photo, matrix, size)
    contrast = 100 / 255
    assert np.abs(crop[8:-8, 8:-8] - contrast).max() < contrast / 5


def test_strips_cover_every_row_once_and_pass_errors_on() -> None:
    rows = np.zeros(1000, int)

    def count(top: int, bottom: int) -> None:
        rows[top:bottom] += 1

    in_strips(1000, 64, count)
    in_strips(10, 64, count)
    assert (rows[:10] == 2).all() and (rows[10:] == 1).all()

    def fail(top: int, bottom: int) -> None:
        if top:
            raise ValueError(f"rows {top} to {bottom}")

    with pytest.raises(ValueError, match="rows 64"):
        in_strips(1000, 64, fail)


@pytest.mark.parametrize("scale", [0.6, 1.1, 1.5, 3.0, 4.7, 9.0])
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_the_way_back_needs_no_more_of_the_crop_than_is_said(scale: float, angle: float) -> None:
    size = 480
    crop = natural_photo(size, size).astype(np.float32) / 255
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.array([[cos, sin, 0.0], [-sin, cos, 20.0]])
    matrix[:, 2] += 240 - matrix @ (100, 100, 1)
    rect = Rect(90, 95, 30, 100)  # more than one strip, and for large scales beyond the crop
    at = read_rect(matrix, size, rect)
    part = warp_part_back(at.cut(crop), at, size, matrix, rect)
    np.testing.assert_allclose(part, warp_back(crop, matrix, rect), atol=2e-3)
    assert at.width < size or scale > 4


def test_a_small_face_in_a_large_photograph_costs_little_memory() -> None:
    photo = np.zeros((9000, 11000, 3), np.uint8)  # 297 MB, of which few pages are ever touched
    photo[4000:4400, 4000:4400] = natural_photo(400, 400)
    face = place_face(150, 0, 4200, 4200)
    restorer = Restorer(network=Identity(512))
    tracemalloc.start()
    try:
        outcome = restorer.restore(photo, [face])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.patches
    assert peak < 60e6
