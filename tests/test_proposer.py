"""Looking for small faces only where they may be: the proposer, its places, sheets of pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from face_restore_shared.options import DetectOptions
from face_restore_worker.errors import CheckpointError
from face_restore_worker.network.proposer import RANGES, FaceProposer, PreparedProposer
from face_restore_worker.pipeline import packing, propose, pyramid, search
from face_restore_worker.pipeline.detect import FaceDetector
from face_restore_worker.pipeline.propose import Places, Proposer
from face_restore_worker.pipeline.pyramid import Level, Picture, Rect
from hypothesis import given, settings
from hypothesis import strategies as st
from marker_faces import MarkerNetwork, draw_marker
from safetensors.torch import save_file
from scene_factory import background

BOX = st.tuples(st.floats(0, 900), st.floats(0, 700), st.floats(1, 80), st.floats(1, 80))


# --- rectangles and sheets ----------------------------------------------------------------------


@given(st.lists(BOX, max_size=40))
def test_the_rectangles_hold_every_box_and_are_no_larger_than_one(boxes: list[Any]) -> None:
    array = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes]).reshape(-1, 4)
    bounds = (0, 0, 1000, 800)
    rects = packing.within(packing.cover(array), bounds)
    for x0, y0, x1, y1 in array:
        assert any(
            r[0] <= x0 and r[1] <= y0 and r[2] >= min(x1, 1000) and r[3] >= min(y1, 800)
            for r in rects
        )
    if boxes:
        low, high = array[:, :2].min(axis=0), array[:, 2:].max(axis=0)
        assert packing.area(rects) <= np.prod(high - low + 2 * len(rects)) + 2 * len(rects)


def test_far_boxes_get_rectangles_of_their_own() -> None:
    boxes = np.array([(10, 10, 30, 30), (12, 14, 35, 33), (900, 700, 950, 720)], float)
    bounds = (0, 0, 940, 800)
    assert packing.within(packing.cover(boxes), bounds) == [(10, 10, 35, 33), (900, 700, 940, 720)]
    assert packing.within(packing.cover(boxes + 2000), bounds) == []
    assert packing.within(packing.cover(np.empty((0, 4))), bounds) == []


@given(st.lists(st.tuples(st.integers(1, 256), st.integers(1, 256)), max_size=30))
def test_pieces_lie_apart_on_their_sheets(sizes: list[tuple[int, int]]) -> None:
    kinds = ((64, 64), (128, 128), (256, 128), (256, 256))
    sheets = packing.pack(sizes, kinds, 8)
    assert sorted(number for _, items in sheets for number, _, _ in items) == list(
        range(len(sizes))
    )
    for (across, down), items in sheets:
        assert (across, down) in kinds
        taken = np.zeros((down + 8, across + 8), dtype=int)
        for number, x, y in items:
            width, height = sizes[number]
            assert x + width <= across
            assert y + height <= down
            taken[y : y + height + 8, x : x + width + 8] += 1
        assert taken.max(initial=0) <= 1


def test_a_sheet_is_no_larger_than_its_pieces_need() -> None:
    kinds = ((64, 64), (256, 128), (256, 256))
    sheets = packing.pack(6 * [(120, 120)], kinds, 8)
    assert [size for size, _ in sheets] == [(256, 256), (256, 128)]
    assert [size for size, _ in packing.pack([(64, 64)], kinds, 8)] == [(64, 64)]


def test_too_large_a_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than the largest sheet"):
        packing.pack([(257, 3)], ((64, 64), (256, 256)), 8)


# --- the network --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> FaceProposer:
    """With random weights and norms that do something."""
    torch.manual_seed(3)
    net = FaceProposer()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_prepared_it_says_the_same(
    network: FaceProposer, dtype: torch.dtype, tolerance: float
) -> None:
    pixels = torch.randint(0, 256, (2, 66, 98, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(pixels.float().permute(0, 3, 1, 2))
    assert expected.shape == (2, 2, 8, 12)
    found = PreparedProposer(network, dtype)(pixels)
    spread = float(expected.std())
    assert spread > 1e-3
    assert float((found - expected).abs().max()) < tolerance * max(spread, 1)


def test_another_file_is_refused(tmp_path: Any) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not the proposer's network"):
        Proposer(tmp_path / "other.safetensors", 0.3)


class _Bright:
    """Passes cells that are bright: one output for each of the first two channels."""

    dtype = torch.float32

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        inner = pixels[:, 1:-1, 1:-1, :2].permute(0, 3, 1, 2)
        return torch.nn.functional.max_pool2d(inner, 8) - 200


class _Spots(Proposer):
    """A proposer for bright spots, whichever way they are turned."""

    def __init__(self) -> None:
        self._logit = 0.0
        self._network = _Bright()  # type: ignore[assignment]


@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.parametrize("shape", [(40, 72), (33, 101), (1300, 45)])
def test_places_lie_where_they_were_seen(quarter: int, shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    spots = [(3, 5), (shape[1] - 1, shape[0] - 1), (shape[1] // 2, shape[0] // 2)]
    for x, y in spots:
        image[y, x, 0] = 255
    image[7, 20, 1] = 255
    level = Level(1.0, shape[1], shape[0], Picture(image))
    places = _Spots().places(level, (0, 0, shape[1], shape[0]), (quarter,))
    for x, y in spots:
        assert np.abs(places.small - (x + 0.5, y + 0.5)).max(axis=1).min() <= 8
    assert len(places.large) == 1
    assert np.abs(places.large[0] - (20.5, 7.5)).max() <= 8
    assert all(np.abs(np.array(spots) - p).max(axis=1).min() <= 8 for p in places.small)


def test_places_on_the_seams_of_tiles_are_not_lost() -> None:
    image = np.zeros((3000, 64, 3), np.uint8)
    image[5::16, 30, 0] = 255
    image.flags.writeable = False  # as pictures that came in one frame are
    level = Level(1.0, 64, 3000, Picture(image))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propose, "STRIP_PIXELS", 64 * 1024)
        places = _Spots().places(level, (0, 0, 64, 3000))
        patch.setattr(propose, "STRIP_PIXELS", 64 * 4096)
        whole = _Spots().places(level, (0, 0, 64, 3000))
    assert whole.looked_at == 8 * 375 < places.looked_at
    for found in (places, whole):
        for y in range(5, 3000, 16):
            assert np.abs(found.small - (30.5, y + 0.5)).max(axis=1).min() <= 8


# --- the search ---------------------------------------------------------------------------------


class _Knowing:
    """A proposer that knows where the faces are, to a cell, and errs once."""

    def __init__(self, truths: list[tuple[float, float, float]]) -> None:
        self.truths = truths

    def places(self, level: Level, area: Rect, quarters: Any = (0,)) -> Places:
        found: list[list[tuple[float, float]]] = [[(100.0, 100.0)], []]
        for x, y, size in self.truths:
            at = (x / level.factor // 8 * 8 + 4, y / level.factor // 8 * 8 + 4)
            for places, (low, high) in zip(found, RANGES, strict=True):
                if low <= size / level.factor <= high:
                    places.append(at)
        small, large = (np.array(p).reshape(-1, 2) for p in found)
        return Places(small, large, 1)


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=1, deadline=None)
def test_a_guided_search_finds_what_the_full_one_does(seed: int, rotations: bool) -> None:
    check_guided(seed, rotations)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=12, deadline=None)
def test_a_guided_search_finds_what_the_full_one_does_at_length(seed: int, rotations: bool) -> None:
    check_guided(seed, rotations)


def check_guided(seed: int, rotations: bool) -> None:
    """Five faces, sizes and turns at random: found by both, and the guided search sees less."""
    random = np.random.default_rng(seed)
    scene = np.zeros((900, 1500, 3), np.uint8)
    truths = []
    for column in range(5):
        size = float(np.exp(random.uniform(np.log(14), np.log(200))))
        x, y = column * 300 + random.uniform(130, 170), random.uniform(140, 760)
        draw_marker(scene, x, y, size, float(random.uniform(-180, 180)) if rotations else 5.0)
        truths.append((x, y, size))
    options = DetectOptions(rotations=rotations)
    networks = [MarkerNetwork(upright=rotations) for _ in range(2)]
    full = FaceDetector(networks[0]).detect(scene, options)
    guided = FaceDetector(networks[1], proposer=_Knowing(truths)).detect(  # type: ignore[arg-type]
        scene, options
    )
    assert len(full) == len(guided) == len(truths)
    assert networks[1].seen < 0.6 * networks[0].seen
    key = lambda face: face.centre  # noqa: E731
    for a, b in zip(sorted(full, key=key), sorted(guided, key=key), strict=True):
        np.testing.assert_allclose(a.landmarks, b.landmarks, atol=0.25)


def test_asked_for_doubtful_faces_everything_is_searched() -> None:
    scene = np.zeros((700, 900, 3), np.uint8)
    draw_marker(scene, 600, 500, 30)
    detector = FaceDetector(MarkerNetwork(), proposer=_Knowing([]))  # type: ignore[arg-type]
    assert detector.detect(scene) == []
    assert len(detector.detect(scene, DetectOptions(threshold=0.3))) == 1


def test_where_places_are_everywhere_the_level_is_searched_as_a_whole() -> None:
    picture = Picture(background(900, 700))
    levels = pyramid.build_levels(picture, 1)
    y, x = np.mgrid[20:700:60, 20:900:60]
    truths = [(float(a), float(b), 20.0) for a, b in zip(x.ravel(), y.ravel(), strict=True)]
    found = search.guide(
        _Knowing(truths),  # type: ignore[arg-type]
        levels,
        [pyramid.magnified(picture, 2)],
        (0, 0, 900, 700),
        (0,),
    )
    assert found.of(levels[0]) is None
    few = search.guide(_Knowing(truths[:3]), levels, [], (0, 0, 900, 700), (0,))  # type: ignore[arg-type]
    rects: list[Rect] | None = few.of(levels[0])
    assert rects is not None
    assert packing.area(rects) < 0.2 * 900 * 700


def test_the_two_finest_levels_are_guided_and_the_coarser_ones_never() -> None:
    picture = Picture(np.zeros((2700, 3600, 3), np.uint8))
    levels, magnified = pyramid.build_levels(picture, 1), [pyramid.magnified(picture, 2)]
    assert [level.factor for level in levels] == [1, 3, 9, 27]
    truths = [(2000.0, 2000.0, 20.0), (900.0, 900.0, 200.0)]
    wanted = (0, 0, picture.width, picture.height)
    found = search.guide(_Knowing(truths), levels, magnified, wanted, (0,))  # type: ignore[arg-type]
    assert set(found.rects) == {0.5, 1.0, 3.0}
    for factor, (x, y, side) in ((0.5, truths[0]), (1.0, truths[0]), (3.0, truths[1])):
        low, high = ((v / factor - 0.6 * side / factor, v / factor + 0.6 * side / factor)
                     for v in (x, y))  # fmt: skip
        assert any(
            r[0] <= low[0] and low[1] <= r[2] and r[1] <= high[0] and high[1] <= r[3]
            for r in found.rects[factor]
        )
    # A level that fits on one sheet is searched as a whole.
    small = Picture(np.zeros((700, 700, 3), np.uint8))
    levels = pyramid.build_levels(small, 1)
    guided = search.guide(_Knowing([]), levels, [], (0, 0, 700, 700), (0,))  # type: ignore[arg-type]
    assert guided.rects == {}
