"""The plug-in's arithmetic, without GIMP: regions, trimming, overlaps, colours beyond sRGB."""

from __future__ import annotations

from array import array

import numpy as np
import plugin_path  # noqa: F401
import pytest
from face_restore_worker.pipeline.composite import composite
from face_restore_worker.pipeline.types import Patch as WorkerPatch
from faces import face_at
from hypothesis import given
from hypothesis import strategies as st
from restore_faces import blend, geometry
from restore_faces.blend import Patch
from restore_faces.geometry import Rect

rects = st.builds(
    Rect, st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 60), st.integers(1, 60)
)


def pixels_of(rect: Rect) -> set[tuple[int, int]]:
    return {(x, y) for x in range(rect.x, rect.right) for y in range(rect.y, rect.bottom)}


@given(rects, rects)
def test_intersection_is_the_common_pixels(a: Rect, b: Rect) -> None:
    common = a.intersection(b)
    assert pixels_of(a) & pixels_of(b) == (set() if common.empty else pixels_of(common))
    assert a.touches(b) == (not common.empty)


@given(rects, rects)
def test_the_region_holds_the_selected_part_of_the_layer(layer: Rect, selection: Rect) -> None:
    region = geometry.region_to_read(layer, selection)
    selected = layer.intersection(selection)
    if selected.empty:
        assert region.empty
        return
    inside = region.shifted(layer.x, layer.y)
    assert pixels_of(selected) <= pixels_of(inside) <= pixels_of(layer)
    margin = max(selected.width, selected.height) // 2
    assert inside.width <= selected.width + 2 * margin
    assert inside.height <= selected.height + 2 * margin


def test_without_a_selection_the_whole_layer_is_read() -> None:
    assert geometry.region_to_read(Rect(7, -3, 40, 30), None) == Rect(0, 0, 40, 30)


@given(st.lists(rects, max_size=8))
def test_groups_are_the_connected_ones(items: list[Rect]) -> None:
    found = geometry.groups(items)
    assert sorted(i for group in found for i in group) == list(range(len(items)))
    for number, group in enumerate(found):
        for other in found[number + 1 :]:
            assert not any(items[i].touches(items[j]) for i in group for j in other)
        if len(group) > 1:
            assert all(any(items[i].touches(items[j]) for j in group if j != i) for i in group)


def patch_of(x: int, y: int, rgb: np.ndarray, mask: np.ndarray) -> Patch:
    height, width = mask.shape
    return Patch(
        Rect(x, y, width, height),
        array("f", rgb.astype(np.float32).ravel()),
        array("f", mask.astype(np.float32).ravel()),
        (x, y, x + width, y + height),
    )


def rgb_of(patch: Patch) -> np.ndarray:
    return np.array(patch.rgb, np.float32).reshape(patch.rect.height, patch.rect.width, 3)


def mask_of(patch: Patch) -> np.ndarray:
    return np.array(patch.mask, np.float32).reshape(patch.rect.height, patch.rect.width)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_trim_drops_only_zero_edges(seed: int, width: int, height: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((height, width)) * (random.random((height, width)) < 0.2)
    rgb = random.random((height, width, 3))
    patch = patch_of(3, 4, rgb, mask)
    small = blend.trim(patch)
    if not mask.any():
        assert small is patch and not patch.visible
        return
    rows, columns = np.nonzero(mask.astype(np.float32))
    top, left = rows.min(), columns.min()
    assert (small.rect.x, small.rect.y) == (3 + left, 4 + top)
    assert (small.rect.right, small.rect.bottom) == (4 + columns.max(), 5 + rows.max())
    window = (slice(top, rows.max() + 1), slice(left, columns.max() + 1))
    assert np.array_equal(mask_of(small), mask.astype(np.float32)[window])
    assert np.array_equal(rgb_of(small), rgb.astype(np.float32)[window])


def test_colours_beyond_srgb_come_back_exactly() -> None:
    original = array("f", [-0.25, 0.0, 0.5, 1.0, 1.5, float("nan")])
    restored = array("f", [0.1, 0.2, 0.3, 0.4, 0.75, 0.6])
    assert blend.keep_beyond(restored, original) == 2
    assert list(restored) == pytest.approx([0.1 - 0.25, 0.2, 0.3, 0.4, 1.25, 0.6])


def test_colours_within_srgb_are_left_alone() -> None:
    restored = array("f", [0.1, -0.2, 1.3])
    assert blend.keep_beyond(restored, array("f", [0.0, 0.5, 1.0])) == 0
    assert list(restored) == list(array("f", [0.1, -0.2, 1.3]))


def test_the_mask_is_limited_to_the_layers_alpha() -> None:
    mask = array("f", [1.0, 0.5, 1.0, 0.25])
    limited = blend.limit_to_alpha(mask, bytes([255, 255, 0, 51]))
    assert list(limited) == pytest.approx([1.0, 0.5, 0.0, 0.05])
    assert blend.limit_to_alpha(mask, b"\xff" * 4) is mask


def test_a_mask_becomes_the_alpha() -> None:
    rgb, mask = array("f", [0.0, 0.25, 0.5, 0.75, 1.0, -2.0]), array("f", [0.5, 1.0])
    assert list(blend.interleaved(rgb, mask)) == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0, -2.0, 1.0]


@pytest.mark.parametrize("offset", [(0, 0), (7, 5), (-9, 11), (30, 0)])
@pytest.mark.parametrize("count", [2, 3])
def test_overlaps_look_as_the_workers_own_composite(offset: tuple[int, int], count: int) -> None:
    """Layer over photograph, at strength 1, is what the command line writes."""
    random = np.random.default_rng(7)
    photo = random.random((80, 120, 3)).astype(np.float32)
    places = [(30 + i * offset[0], 20 + i * offset[1]) for i in range(count)]
    patches, theirs = [], []
    for x, y in places:
        rgb = random.random((20, 24, 3)).astype(np.float32)
        mask = np.clip(random.random((20, 24)) * 1.6 - 0.4, 0, 1).astype(np.float32)
        patches.append(patch_of(x, y, rgb, mask))
        face = face_at(x, y, 20)
        theirs.append(WorkerPatch(face, np.eye(2, 3), 24, x, y, rgb, mask, 1.0))
    blend.settle_overlaps(patches)
    layer = np.zeros((80, 120, 4), np.float32)
    for patch in patches:
        r = patch.rect
        layer[r.y : r.bottom, r.x : r.right, :3] = rgb_of(patch)
        layer[r.y : r.bottom, r.x : r.right, 3] = mask_of(patch)
    seen = photo + layer[..., 3:] * (layer[..., :3] - photo)
    assert np.abs(seen - composite(photo, theirs)).max() < 1e-5
