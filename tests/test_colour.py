"""The photograph's colour stays: tint, brightness, and gray to the bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from face_restore_shared.schema import RestoreOptions
from face_restore_worker import Restorer, composite
from face_restore_worker.pipeline.colour import (
    colour_shift,
    is_gray,
    keep_colour,
    luma,
    shifted,
)
from face_restore_worker.pipeline.mask import oval_mask
from face_restore_worker.pipeline.warp import Rect
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.natural import Apply, natural_photo, place_face

FREE = RestoreOptions(keep_colour=False)


def tint(x: torch.Tensor) -> torch.Tensor:
    """Redder, bluer, brighter, and with other detail: what a network may do to a face."""
    shift = torch.tensor([0.3, -0.05, 0.2]).reshape(1, 3, 1, 1).to(x)
    return (x * 1.1 + shift).clamp(-1, 1)


@pytest.mark.parametrize("size", [60, 250, 700])
def test_a_tinting_network_does_not_tint_the_photograph(size: int) -> None:
    photo = natural_photo(900, 900)
    face = place_face(size, 0.2, 450, 450)
    means = {}
    for options in (RestoreOptions(), FREE):
        network = Apply(tint, 256)
        patch = Restorer(network=network).restore(photo, [face], options=options).patches[0]
        height, width = patch.mask.shape
        before = photo[patch.y : patch.y + height, patch.x : patch.x + width] / 255
        solid = patch.mask > 0.9
        means[options.keep_colour] = np.abs((patch.rgb - before)[solid].mean(axis=0)).max()
    assert means[False] > 0.08  # the network does tint
    assert means[True] < 0.012


def test_a_tint_of_one_half_stays_out_too() -> None:
    """Lips alone made red: the shift is local, and so is what takes it back."""
    rng = np.random.default_rng(5)
    original = np.clip(0.5 + 0.05 * rng.normal(size=(256, 256, 3)), 0, 1).astype(np.float32)
    restored = original.copy()
    restored[128:, :, 0] += 0.2
    result = keep_colour(restored, original, oval_mask(256))
    assert np.abs((result - original)[175:215, 90:166].mean(axis=(0, 1))).max() < 0.01
    assert np.abs((result - original)[60:100, 90:166].mean(axis=(0, 1))).max() < 0.01


def test_background_does_not_bleed_into_the_face() -> None:
    """A background the network turns green does not turn the face magenta."""
    original = np.full((256, 256, 3), 0.5, np.float32)
    mask = oval_mask(256)
    restored = original.copy()
    restored[mask == 0] += np.array([-0.4, 0.4, -0.4], np.float32)
    result = keep_colour(restored, original, mask)
    assert np.abs(result - original)[mask > 0.5].max() < 0.01


def test_features_finer_than_the_transfer_are_the_networks() -> None:
    """Stripes of a 40th of the crop keep nine tenths of their contrast and their hue."""
    x = np.arange(512)
    wave = (0.1 * np.sin(2 * np.pi * x / (512 / 40))).astype(np.float32)
    original = np.full((512, 512, 3), 0.5, np.float32)
    restored = original + wave[None, :, None] * np.array([1.0, 0.5, 0.2], np.float32)
    result = keep_colour(restored, original, oval_mask(512))
    middle = (slice(200, 312), slice(200, 312))
    ratio = (result - 0.5)[middle].std(axis=(0, 1)) / (restored - 0.5)[middle].std(axis=(0, 1))
    assert ratio.min() > 0.9 and ratio.max() < 1.05


@settings(deadline=None, max_examples=15)
@given(
    size=st.sampled_from([40, 120, 400]),
    angle=st.floats(-3, 3),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    keep=st.booleans(),
    aligned=st.booleans(),
)
def test_a_gray_photograph_stays_gray_to_the_bit(
    size: int, angle: float, dtype: str, keep: bool, aligned: bool
) -> None:
    plane = natural_photo(300, 300, dtype)[..., :1]
    photo = np.repeat(plane, 3, axis=2)
    options = RestoreOptions(keep_colour=keep, aligned=aligned)
    restorer = Restorer(network=Apply(tint, 128))
    outcome = restorer.restore(photo, [place_face(size, angle, 150, 150)], options=options)
    result = composite(photo, outcome.patches)
    assert np.array_equal(result[..., 0], result[..., 1])
    assert np.array_equal(result[..., 0], result[..., 2])
    if not keep:
        assert not np.array_equal(result, photo)  # it was restored nevertheless
    # A one-channel picture gives the same values.
    single = composite(
        plane[..., 0],
        restorer.restore(
            plane[..., 0], [place_face(size, angle, 150, 150)], options=options
        ).patches,
    )
    assert np.array_equal(single, result[..., 0])


def test_a_face_in_gray_surroundings_of_a_colour_picture_stays_gray() -> None:
    """A black-and-white portrait on a page with colour elsewhere."""
    photo = natural_photo(400, 800)
    photo[:, :500] = photo[:, :500, 1:2]
    restorer = Restorer(network=Apply(tint, 128))
    outcome = restorer.restore(photo, [place_face(100, 0, 200, 200)], options=FREE)
    result = composite(photo, outcome.patches)
    assert np.array_equal(result[:, :500, 0], result[:, :500, 2])
    assert not np.array_equal(result, photo)


def test_gray_is_told_from_colour_by_every_pixel() -> None:
    picture = np.repeat(natural_photo(700, 900)[..., :1], 3, axis=2)
    assert is_gray(picture) and is_gray(picture[..., 0]) and is_gray(picture[..., :1])
    picture[699, 899, 2] ^= 1
    assert not is_gray(picture)


def test_luma_has_the_weights_of_bt_709() -> None:
    rgb = np.eye(3, dtype=np.float32).reshape(1, 3, 3)
    assert np.allclose(luma(rgb), [[0.2126, 0.7152, 0.0722]])
    assert np.allclose(luma(np.full((4, 4, 3), 0.3, np.float32)), 0.3)


@pytest.mark.parametrize("size", [96, 256, 200])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_part_of_the_crop_gets_what_the_whole_does(size: int, channels: tuple[int, ...]) -> None:
    random = np.random.default_rng(size)
    restored, original = random.random((2, size, size, *channels), dtype=np.float32)
    mask = np.ones((size, size), np.float32)
    shift = colour_shift(restored, original, mask)
    enlarged = cv2.resize(shift, (size, size), interpolation=cv2.INTER_LINEAR)
    whole = keep_colour(restored, original, mask)
    np.testing.assert_allclose(whole, restored + enlarged, atol=1e-6)
    rect = Rect(37, 5, 50, 91)
    part = shifted(restored, shift, rect, original, 0.25)
    np.testing.assert_allclose(part, rect.cut(whole - 0.25 * original), atol=1e-6)
