"""Detection: exact coordinates at every scale, options, any form of picture, bounded work."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import face_restore_worker.models
import numpy as np
import pytest
import torch
from face_restore_shared.options import DetectOptions
from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline import pyramid, views
from face_restore_worker.pipeline.anchors import anchor_grid, decode
from face_restore_worker.pipeline.detect import OVERLAP, TILE, FaceDetector, load_detector
from face_restore_worker.pipeline.nms import iou, suppress, suppress_nested
from face_restore_worker.pipeline.pyramid import Picture, tiles
from face_restore_worker.pipeline.refine import crop_matrix, roll, turned_box
from face_restore_worker.pipeline.types import Face
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from marker_faces import TEMPLATE, MarkerNetwork, draw_marker
from numpy.typing import NDArray
from scene_factory import Truth, as_depth, astronaut, background, paste_astronaut

BUILTIN = Path(face_restore_worker.models.__file__).with_name("builtin") / (
    "builtin-detector.safetensors"
)
EVERYWHERE = DetectOptions()


def detector(**settings: Any) -> FaceDetector:
    upright = settings.pop("upright", False)
    return FaceDetector(MarkerNetwork(upright=upright), **settings)


def black(width: int, height: int) -> NDArray[np.uint8]:
    return np.zeros((height, width, 3), np.uint8)


def assert_same(face: Face, truth: Truth) -> None:
    """To an eighth of a pixel for small faces, a thousandth of the side for large ones."""
    allowed = 0.12 + 0.001 * truth.height
    np.testing.assert_allclose(face.landmarks, truth.landmarks, atol=allowed, rtol=0)
    np.testing.assert_allclose(face.box, truth.box, atol=2 * allowed, rtol=0)


# --- geometry -----------------------------------------------------------------------------------


@given(
    width=st.integers(200, 1500),
    height=st.integers(200, 1500),
    share=st.floats(0, 1),
    where=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    degrees=st.floats(-180, 180),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
)
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_a_face_is_found_where_it_is(
    width: int,
    height: int,
    share: float,
    where: tuple[float, float],
    degrees: float,
    dtype: Any,
) -> None:
    largest = min(width, height) * 0.94
    size = 14 * (largest / 14) ** share
    # The drawn faces need black around them, also where the level they are seen on is shrunk.
    gap = 2 + 0.02 * size
    x = size / 2 + gap + where[0] * (width - size - 2 * gap)
    y = size / 2 + gap + where[1] * (height - size - 2 * gap)
    scene = black(width, height)
    truth = draw_marker(scene, x, y, size, degrees)
    faces = detector().detect(as_depth(scene, dtype), EVERYWHERE)
    assert len(faces) == 1
    assert_same(faces[0], truth)


@pytest.mark.parametrize("size", [13, 40, 106, 130, 320, 700, 2100])
def test_every_size_on_a_tiled_photograph(size: int) -> None:
    scene = black(3600, 2400)
    truths = [draw_marker(scene, max(922, size / 2 + 40), 1200.3, size, 20)]
    if size < 700:  # on the seams of the tiles, and in a corner
        truths.append(draw_marker(scene, 2800.7, 700.2, size))
        truths.append(draw_marker(scene, 3590 - size / 2, 2390 - size / 2, size, -100))
    faces = sorted(detector().detect(scene, EVERYWHERE), key=lambda f: f.centre)
    truths.sort(key=lambda t: t.box[0] + t.box[2])
    assert len(faces) == len(truths)
    for face, truth in zip(faces, truths, strict=True):
        assert_same(face, truth)


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


# --- options ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd() -> tuple[NDArray[np.uint8], list[Truth]]:
    scene = black(900, 600)
    truths = [
        draw_marker(scene, 100, 100, 60),
        draw_marker(scene, 400, 300, 200, 10),
        draw_marker(scene, 800, 500, 30),
    ]
    return scene, truths


def heights(faces: list[Face]) -> list[int]:
    return sorted(round(f.height) for f in faces)


def test_options_choose_faces(crowd: tuple[NDArray[np.uint8], list[Truth]]) -> None:
    scene, _ = crowd
    found = detector()
    assert heights(found.detect(scene)) == [30, 60, 200]
    assert heights(found.detect(scene, DetectOptions(min_face=45))) == [60, 200]
    assert heights(found.detect(scene, DetectOptions(min_face=150))) == [200]
    assert heights(found.detect(scene, DetectOptions(only_largest=True))) == [200]
    assert len(found.detect(scene, DetectOptions(max_faces=2))) == 2
    assert found.detect(scene, DetectOptions(threshold=0.99)) == []
    assert heights(found.detect(scene, DetectOptions(region=(380, 280, 40, 40)))) == [200]
    assert found.detect(scene, DetectOptions(region=(500, 0, 200, 200))) == []
    assert found.detect(scene, DetectOptions(region=(5000, 0, 20, 20))) == []


def test_a_region_finds_what_the_whole_picture_finds_there() -> None:
    scene = black(4000, 2600)
    truth = draw_marker(scene, 2000, 1300, 1800, 5)
    small = draw_marker(scene, 3500, 300, 20)
    faces = detector().detect(scene, DetectOptions(region=(1990, 1290, 20, 20)))
    assert len(faces) == 1
    assert_same(faces[0], truth)
    faces = detector().detect(scene, DetectOptions(region=(3490, 290, 20, 20)))
    assert len(faces) == 1
    assert_same(faces[0], small)


def test_only_faces_whose_centre_is_selected(
    crowd: tuple[NDArray[np.uint8], list[Truth]],
) -> None:
    scene, _ = crowd
    selection = np.zeros(scene.shape[:2], np.uint8)
    assert detector().detect(scene, selection=selection) == []
    selection[295:305, 395:405] = 255
    selection[450:, 700:] = 127  # less than half selected
    assert heights(detector().detect(scene, selection=selection)) == [200]
    assert heights(detector().detect(scene, selection=selection > 100)) == [30, 200]
    options = DetectOptions(region=(0, 0, 390, 600))
    assert detector().detect(scene, options, selection) == []
    with pytest.raises(ImageError, match="does not fit"):
        detector().detect(scene, selection=selection[:-1])
    with pytest.raises(ImageError, match="uint8 or bool"):
        detector().detect(scene, selection=selection.astype(np.int32))


@pytest.mark.parametrize("degrees", [0, 90, 180, -90, 130])
def test_turned_faces_need_rotations(degrees: float) -> None:
    scene = black(700, 500)
    truth = draw_marker(scene, 250.4, 260.7, 90, degrees)
    found = detector(upright=True)
    upright_only = found.detect(scene)
    assert len(upright_only) == (1 if degrees == 0 else 0)
    faces = found.detect(scene, DetectOptions(rotations=True))
    assert len(faces) == 1
    assert_same(faces[0], truth)


# --- form of the picture ------------------------------------------------------------------------


def test_gray_and_views_are_taken_as_they_are() -> None:
    net = _Recorder()
    gray = background(64, 48)[..., 0]
    for form in (gray, gray[..., None], np.repeat(gray[..., None], 3, 2)):
        FaceDetector(net, reach=12).detect(form)
    first, *others = net.inputs[0], net.inputs[len(net.inputs) // 3]
    for other in others:
        torch.testing.assert_close(first, other, atol=0, rtol=0)
    scene = black(400, 300)
    truth = draw_marker(scene, 150, 160, 80)
    turned = np.ascontiguousarray(scene[::-1, ::-1])[::-1, ::-1]
    assert_same(detector().detect(turned)[0], truth)
    unwritable = scene.copy()
    unwritable.flags.writeable = False
    assert_same(detector().detect(unwritable)[0], truth)


def test_not_a_number_and_infinity_do_no_harm() -> None:
    scene = black(300, 300)
    truth = draw_marker(scene, 150, 160, 80)
    image = as_depth(scene, np.float32).copy()
    image[:50, :50] = np.nan
    image[:50, 250:] = -np.inf
    faces = detector().detect(image)
    assert len(faces) == 1
    assert_same(faces[0], truth)
    assert detector().detect(np.full((64, 64, 3), np.nan, np.float32)) == []


def test_depths_give_the_same_faces() -> None:
    scene = background(400, 300)
    inputs = []
    for dtype in (np.uint8, np.uint16, np.float32):
        net = _Recorder()
        FaceDetector(net).detect(as_depth(scene, dtype))
        inputs.append(net.inputs[0])
    torch.testing.assert_close(inputs[1], inputs[0], atol=0, rtol=0)
    torch.testing.assert_close(inputs[2], inputs[0], atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 3), (16, 16, 3), (1, 500), (700, 3, 3), (33, 31, 1)])
def test_small_and_odd_pictures(shape: tuple[int, ...]) -> None:
    noise = np.random.default_rng(2).integers(0, 255, shape, dtype=np.uint8)
    assert detector().detect(noise) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((2, 3, 3, 3), np.uint8),
        np.zeros((10, 10, 3), np.int32),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros(10, np.uint8),
    ],
)
def test_other_arrays_are_refused(image: NDArray[Any]) -> None:
    with pytest.raises(ImageError):
        detector().detect(image)


class _Recorder(MarkerNetwork):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[torch.Tensor] = []

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.inputs.append(batch.clone())
        return super().forward(batch)


class _Broken(MarkerNetwork):
    """Finds faces everywhere, with coordinates that are no numbers."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        offsets, scores, points = super().forward(batch)
        return offsets * torch.nan, torch.ones_like(scores), points


def test_a_network_that_overflows_finds_nothing() -> None:
    assert FaceDetector(_Broken()).detect(background(100, 100)) == []


# --- bounds -------------------------------------------------------------------------------------


def test_work_is_bounded_by_the_budget() -> None:
    image = background(3000, 2000)
    for budget in (2.1, 8.3, 60.0):
        net = MarkerNetwork()
        found = FaceDetector(net, budget=budget)
        found.detect(image)
        assert net.seen <= budget * 1.1
        assert net.largest_input <= TILE * TILE
        smallest = found.smallest_searched(image.shape, EVERYWHERE)
        assert smallest == {2.1: 60.0, 8.3: 30.0, 60.0: 15.0}[budget]
    assert detector().smallest_searched((100, 100), DetectOptions(min_face=50)) == 50


def test_flat_parts_are_passed_over_but_not_dim_faces() -> None:
    def seen(image: NDArray[np.uint8]) -> float:
        net = MarkerNetwork()
        FaceDetector(net).detect(image)
        return net.seen

    flat = np.full((800, 1000, 3), 130, np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 1000).astype(np.uint8)[None, :, None], 800, 0)
    assert seen(flat) < 0.2
    assert seen(np.repeat(ramp, 3, 2)) < 0.2
    assert seen(background(1000, 800)) > 7
    paste_astronaut(flat, 500, 400, 24)
    assert seen(flat // 6) > 0.6  # at a sixth of the light the tile of the face is looked at


@pytest.mark.slow
def test_a_hundred_megapixels_stay_small_in_memory() -> None:
    scene = black(12_000, 8400)
    truths = [draw_marker(scene, 5000, 4100, 7900, 3), draw_marker(scene, 11_000, 500.5, 40)]
    image = scene.astype(np.uint16) * 257
    found = FaceDetector(MarkerNetwork(), budget=200)
    tracemalloc.start()
    faces = sorted(found.detect(image), key=lambda f: f.centre)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(faces) == 2
    for face, truth in zip(faces, truths, strict=True):
        assert_same(face, truth)
    assert peak < 0.5 * image.nbytes


def test_detection_is_deterministic() -> None:
    scene = background(500, 400)
    for i in range(4):
        draw_marker(scene, 70 + 110 * i, 200, 40 + 5 * i)
    first, second = (FaceDetector(MarkerNetwork(), reach=30).detect(scene) for _ in range(2))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.landmarks, b.landmarks)
        np.testing.assert_array_equal(a.box, b.box)


# --- the built-in detector ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def builtin() -> FaceDetector:
    torch.set_num_threads(2)
    return load_detector(BUILTIN, "builtin-detector")


def matched(faces: list[Face], truth: Truth) -> Face:
    overlaps = [float(iou(face.box[None], truth.box[None])[0, 0]) for face in faces]
    assert overlaps, "no face was found"
    assert max(overlaps) > 0.4
    return faces[int(np.argmax(overlaps))]


def landmark_error(face: Face, truth: Truth) -> float:
    """Mean distance in units of the eye distance."""
    eyes = np.linalg.norm(truth.landmarks[1] - truth.landmarks[0])
    return float(np.linalg.norm(face.landmarks - truth.landmarks, axis=1).mean() / eyes)


def test_builtin_finds_the_astronaut(builtin: FaceDetector) -> None:
    from scene_factory import ASTRONAUT_BOX, ASTRONAUT_LANDMARKS

    truth = Truth(ASTRONAUT_BOX, ASTRONAUT_LANDMARKS)
    faces = builtin.detect(astronaut())
    assert landmark_error(matched(faces, truth), truth) < 0.15
    assert len(faces) == 1


@pytest.mark.parametrize("height", [14, 40, 150, 500, 1000])
def test_builtin_finds_faces_of_every_size(builtin: FaceDetector, height: float) -> None:
    scene = background(1300, 1200, seed=4)
    truth = paste_astronaut(scene, 650, 580, height)
    assert landmark_error(matched(builtin.detect(scene), truth), truth) < 0.2


def test_builtin_finds_a_face_lying_down(builtin: FaceDetector) -> None:
    scene = background(500, 400, seed=5)
    truth = paste_astronaut(scene, 250, 200, 120, degrees=90)
    faces = builtin.detect(scene, DetectOptions(rotations=True))
    assert landmark_error(matched(faces, truth), truth) < 0.2


def test_builtin_finds_nothing_where_nothing_is(builtin: FaceDetector) -> None:
    assert builtin.detect(np.full((600, 800, 3), 128, np.uint8)) == []
    assert builtin.detect(background(800, 600, seed=6)) == []
