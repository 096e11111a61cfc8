"""Detection's geometry: maps, tiles, levels, crops, anchors and suppression, exactly."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from face_restore_worker.pipeline import pyramid, views
from face_restore_worker.pipeline.anchors import anchor_grid, decode
from face_restore_worker.pipeline.nms import iou, suppress, suppress_nested
from face_restore_worker.pipeline.pyramid import Picture, tiles
from face_restore_worker.pipeline.refine import crop_matrix, roll, turned_box
from face_restore_worker.pipeline.search import OVERLAP
from hypothesis import given
from hypothesis import strategies as st
from marker_faces import TEMPLATE
from scene_factory import background

# --- maps, tiles and crops ----------------------------------------------------------------------


@given(
    quarter=st.integers(-3, 7), width=st.integers(1, 40), height=st.integers(1, 40), data=st.data()
)
def test_turned_maps_back_exactly(quarter: int, width: int, height: int, data: Any) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    piece = np.zeros((height, width))
    piece[y, x] = 1
    row, column = np.argwhere(np.rot90(piece, quarter))[0]
    middle = np.array([column + 0.5, row + 0.5])
    back = views.map_points(middle, views.turned(quarter, width, height))
    np.testing.assert_array_equal(back, [x + 0.5, y + 0.5])


@given(
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(0.01, 100),
    shift=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
)
def test_maps_compose_invert_and_change_convention(
    angle: float, scale: float, shift: tuple[float, float]
) -> None:
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
    points = np.array([(0.0, 0.0), (17.5, -3.0), (1000.0, 400.0)])
    there = views.map_points(points, matrix)
    tolerance = 1e-7 * (1 + scale + 1 / scale)
    np.testing.assert_allclose(
        views.map_points(there, views.inverse(matrix)), points, atol=tolerance
    )
    both = views.compose(views.inverse(matrix), matrix)
    np.testing.assert_allclose(views.map_points(points, both), points, atol=tolerance)
    centred = views.map_points(points - 0.5, views.edge_to_centre(matrix)) + 0.5
    np.testing.assert_allclose(centred, there, atol=tolerance)


@given(length=st.integers(1, 9000), side=st.sampled_from([256, 1024]), start=st.integers(0, 500))
def test_tiles_cover_with_overlap(length: int, side: int, start: int) -> None:
    found = tiles((start, 0, start + length, 1), side, OVERLAP, 32)
    assert found[0][0] == start
    assert found[-1][2] == start + length
    assert all(x1 - x0 <= side for x0, _, x1, _ in found)
    for left, right in pairwise(found):
        assert left[2] - right[0] >= OVERLAP
    if len(found) > 1:
        assert all((x1 - x0) % 32 == 0 for x0, _, x1, _ in found)


@given(st.floats(-math.pi, math.pi), st.floats(20, 900), st.floats(0.3, 3))
def test_crop_turns_a_face_upright_and_back(angle: float, size: float, aspect: float) -> None:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    landmarks = TEMPLATE @ turn.T * size / 2 + 1000
    assert math.isclose(math.cos(roll(landmarks) - angle), 1, abs_tol=1e-9)
    box = np.array([1000 - size / 2, 1000 - size / 2, 1000 + size / 2, 1000 + size / 2])
    matrix = crop_matrix(box, angle)
    upright = views.map_points(landmarks, matrix)
    assert abs(roll(upright)) < 1e-9
    np.testing.assert_allclose(upright.mean(axis=0)[0], 112, atol=1e-6)
    # the box of an ellipse turned by a quarter has its sides exchanged
    tall = np.array([160 - 50 * aspect, 110, 160 + 50 * aspect, 210])
    quarter = crop_matrix(box, math.pi / 2)
    turned = turned_box(tall, math.pi / 2, views.inverse(quarter))
    ratio = (turned[2] - turned[0]) / (turned[3] - turned[1])
    assert math.isclose(ratio, 1 / aspect, rel_tol=1e-9)


def test_anchors_follow_the_networks_order() -> None:
    anchors = anchor_grid(64, 96)
    assert anchors.shape == (2 * (8 * 12 + 4 * 6 + 2 * 3), 3)
    np.testing.assert_array_equal(anchors[:3], [[4, 4, 16], [4, 4, 32], [12, 4, 16]])
    np.testing.assert_array_equal(anchors[-1], [80, 48, 512])
    boxes, points = decode(np.zeros((1, 4)), np.full((1, 10), 10.0), anchors[1:2])
    np.testing.assert_array_equal(boxes, [[-12, -12, 20, 20]])
    np.testing.assert_array_equal(points[0], np.full((5, 2), 36))


def test_anchors_are_facexlibs() -> None:
    from face_restore_worker.pipeline.facexlib_nets import import_torchvision

    import_torchvision()
    from facexlib.detection.retinaface import generate_config
    from facexlib.detection.retinaface_utils import PriorBox

    for height, width in ((64, 96), (33, 70)):
        theirs = PriorBox(generate_config("mobile0.25"), image_size=(height, width)).forward()
        ours = anchor_grid(height, width)
        pixels = theirs.numpy() * np.array([width, height, width, height])
        np.testing.assert_allclose(pixels[:, :3], ours, atol=1e-3)


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from([2, 3, 5]),
    st.integers(0, 1000),
)
def test_shrinking_averages_whole_blocks(width: int, height: int, factor: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    native = pyramid.Level(1, width, height, Picture(image))
    small = pyramid.shrink(native, factor)
    assert small.shape == (-(-height // factor), -(-width // factor), 3)
    if height >= factor and width >= factor:
        block = image[:factor, :factor].astype(float).mean(axis=(0, 1))
        np.testing.assert_allclose(small[0, 0], block, atol=0.51)


def test_shrinking_in_bands_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).integers(0, 256, (301, 203, 3), dtype=np.uint8)
    level = pyramid.Level(1, 203, 301, Picture(image))
    once = pyramid.shrink(level, 3)
    monkeypatch.setattr(pyramid, "_BAND_BYTES", 4000)
    np.testing.assert_array_equal(pyramid.shrink(level, 3), once)


def test_a_magnified_tile_equals_the_magnified_whole() -> None:
    level = pyramid.magnified(Picture(background(90, 70)), 3)
    whole = level.read((0, 0, 270, 210))
    np.testing.assert_array_equal(level.read((50, 31, 203, 160)), whole[31:160, 50:203])


# --- suppression --------------------------------------------------------------------------------


def test_suppression_keeps_the_best_of_each_face() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 50, 50], [34, 34, 40, 40]], float)
    scores = np.array([0.8, 0.9, 0.7, 0.95])
    assert suppress(boxes, scores).tolist() == [3, 1, 2]
    assert suppress_nested(boxes, scores).tolist() == [3, 1]
    assert suppress(np.empty((0, 4)), np.empty(0)).tolist() == []
    assert iou(boxes[:1], boxes[1:2])[0, 0] == pytest.approx(90 / 110)
