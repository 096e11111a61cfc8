"""Detection: exact coordinates at every scale, options, any form of picture, bounded work."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from face_restore_shared.options import DetectOptions
from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline import detect
from face_restore_worker.pipeline.detect import FaceDetector
from face_restore_worker.pipeline.search import TILE
from face_restore_worker.pipeline.types import Face
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from marker_faces import MarkerNetwork, draw_marker
from numpy.typing import NDArray
from scene_factory import Truth, as_depth, background, paste_astronaut

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
@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])
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
    # The drawn faces need black around them, also where the level they are seen on is shrunk: the
    # stand-in network takes what touches its input's edge, or the padding there, for cut off.
    gap = 2 + 0.02 * size
    x = size / 2 + gap + where[0] * (width - size - 2 * gap)
    y = size / 2 + gap + where[1] * (height - size - 2 * gap)
    scene = black(width, height)
    truth = draw_marker(scene, x, y, size, degrees)
    faces = detector().detect(as_depth(scene, dtype), EVERYWHERE)
    assert len(faces) == 1
    assert_same(faces[0], truth)


@pytest.mark.parametrize(
    "size", [13, 40, 130, 320, *(pytest.param(n, marks=pytest.mark.slow) for n in (106, 700, 2100))]
)
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


@pytest.mark.slow
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


def test_a_crowd_elsewhere_hides_no_selected_face(
    crowd: tuple[NDArray[np.uint8], list[Truth]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, truths = crowd
    monkeypatch.setattr(detect, "MAX_FACES", 1)
    for truth in truths[:2]:
        x, y = (round((truth.box[i] + truth.box[i + 2]) / 2) for i in (0, 1))
        selection = np.zeros(scene.shape[:2], np.uint8)
        selection[y - 4 : y + 4, x - 4 : x + 4] = 255
        # The rectangle around these holds all faces: the mask must choose.
        selection[:4, :4] = selection[-4:, -4:] = 255
        assert heights(detector().detect(scene, None, selection)) == [round(truth.height)]


@pytest.mark.parametrize(
    "degrees", [0, 90, 130, *(pytest.param(n, marks=pytest.mark.slow) for n in (180, -90))]
)
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


@pytest.mark.slow
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
