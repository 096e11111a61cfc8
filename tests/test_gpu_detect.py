"""Detection's way on a device, on torch's CPU device: the processor's finds, and ways out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from face_restore_shared.options import DetectOptions
from face_restore_worker.models.store import BUILTIN_DIR
from face_restore_worker.network.retinaface_cuda import RetinaFaceCuda
from face_restore_worker.pipeline import detect, gpu_detect, gpu_pyramid, search
from face_restore_worker.pipeline.detect import FaceDetector, load_detector
from face_restore_worker.pipeline.facexlib_nets import load_retinaface
from face_restore_worker.pipeline.gpu_bus import Bus
from face_restore_worker.pipeline.gpu_detect import DeviceDetector
from face_restore_worker.pipeline.gpu_search import DeviceNetwork
from face_restore_worker.pipeline.propose import PROPOSER_FILE, PROPOSER_THRESHOLD
from face_restore_worker.pipeline.pyramid import Picture
from face_restore_worker.pipeline.types import Face
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from marker_faces import MarkerNetwork, draw_marker
from scene_factory import as_depth, background, paste_astronaut
from torch import nn

CPU = torch.device("cpu")
PROPOSER = (BUILTIN_DIR / PROPOSER_FILE, PROPOSER_THRESHOLD)
WEIGHTS = BUILTIN_DIR / "builtin-detector.safetensors"
QUICK = DetectOptions(min_face=25)
"""Nothing is magnified."""
TYPES = [np.uint8, np.uint16, np.float32]
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawn faces' network is slow, and the processor's tiles are to be the same."""
    monkeypatch.setattr(search, "TILE", 512)


def never() -> FaceDetector:
    raise AssertionError("the processor's detector is not to be made")


def on_device(network: nn.Module, **settings: Any) -> DeviceDetector:
    chosen = {"precision": "fp32", "batches": (1, 2), "proposer": None, "usual": never} | settings
    return DeviceDetector(network, "cpu", **chosen)


def uploaded(image: np.ndarray) -> torch.Tensor:
    return gpu_pyramid.upload(Picture(image), Bus(CPU))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_alike(found: list[Face], wanted: list[Face], allowed: float = 0.25) -> None:
    """The same faces; coordinates to `allowed` pixels and a five-hundredth of the face."""
    key = lambda face: face.centre  # noqa: E731
    assert len(found) == len(wanted)
    for a, b in zip(sorted(found, key=key), sorted(wanted, key=key), strict=True):
        reach = allowed + 0.002 * b.height
        np.testing.assert_allclose(a.landmarks, b.landmarks, atol=reach, rtol=0)
        np.testing.assert_allclose(a.box, b.box, atol=2 * reach, rtol=0)
        assert a.score == pytest.approx(b.score, abs=0.1)


# --- the whole search ---------------------------------------------------------------------------


@given(
    width=st.integers(200, 900),
    height=st.integers(200, 900),
    share=st.floats(0, 1),
    where=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    degrees=st.floats(-180, 180),
    dtype=st.sampled_from(TYPES),
)
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_a_face_is_found_where_the_processor_finds_it(
    width: int, height: int, share: float, where: Any, degrees: float, dtype: Any
) -> None:
    size = 14 * (min(width, height) * 0.94 / 14) ** share
    gap = 2 + 0.02 * size
    x = size / 2 + gap + where[0] * (width - size - 2 * gap)
    y = size / 2 + gap + where[1] * (height - size - 2 * gap)
    scene = np.zeros((height, width, 3), np.uint8)
    draw_marker(scene, x, y, size, degrees)
    image = as_depth(scene, dtype)
    wanted = FaceDetector(MarkerNetwork()).detect(image)
    assert len(wanted) == 1
    assert_alike(on_device(MarkerNetwork()).detect(image), wanted)


@pytest.fixture(scope="module")
def crowd() -> np.ndarray:
    scene = np.zeros((600, 900, 3), np.uint8)
    for x, y, size, turn in ((100, 100, 60, 0), (400, 300, 200, 90), (800, 500, 30, 0)):
        draw_marker(scene, x, y, size, turn)
    return scene


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        DetectOptions(),
        DetectOptions(rotations=True, min_face=25),
        DetectOptions(min_face=45),
        DetectOptions(threshold=0.99, min_face=25),
        DetectOptions(region=(780, 480, 40, 40)),
        DetectOptions(region=(5000, 0, 20, 20)),
    ],
    ids=["usual", "turned", "large", "sure", "region", "outside"],
)
def test_options_choose_the_same_faces(crowd: np.ndarray, options: DetectOptions) -> None:
    wanted = FaceDetector(MarkerNetwork(upright=True)).detect(crowd, options)
    assert_alike(on_device(MarkerNetwork(upright=True)).detect(crowd, options), wanted)
    assert bool(wanted) is (options.threshold is None and (options.region or (0,))[0] < 900)


def test_a_selection_chooses_the_same_faces(crowd: np.ndarray) -> None:
    selection = np.zeros(crowd.shape[:2], np.uint8)
    found = on_device(MarkerNetwork())
    assert found.detect(crowd, QUICK, selection) == []
    selection[295:305, 395:405] = 255
    wanted = FaceDetector(MarkerNetwork()).detect(crowd, QUICK, selection)
    assert len(wanted) == 1
    assert_alike(found.detect(crowd, QUICK, selection), wanted)


@pytest.mark.slow
def test_a_large_photograph_is_cut_in_tiles(crowd: np.ndarray) -> None:
    scene = np.tile(crowd, (1, 2, 1))
    wanted = FaceDetector(MarkerNetwork()).detect(scene, QUICK)
    assert len(wanted) == 6
    assert_alike(on_device(MarkerNetwork()).detect(scene, QUICK), wanted)


@given(st.lists(st.tuples(st.integers(1, 256), st.integers(1, 256)), max_size=30))
def test_pieces_lie_apart_on_sheets(sizes: list[tuple[int, int]]) -> None:
    network = DeviceNetwork(
        RetinaFaceCuda(MarkerNetwork(), torch.float32, CPU, [(1, 256)]), strict=True
    )
    sheets = network._sheets(sizes)
    assert sorted(number for items in sheets for number, _, _ in items) == list(range(len(sizes)))
    for items in sheets:
        taken = np.zeros((256, 256), int)
        for number, x, y in items:
            width, height = sizes[number]
            assert x + width <= 256 and y + height <= 256
            taken[y : y + height, x : x + width] += 1
        assert taken.max() == 1


# --- with the built-in models -------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return load_retinaface(WEIGHTS)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    picture = background(1101, 907, seed=4)
    for x, y, size in ((300, 300, 200), (800, 300, 60), (900, 700, 30), (400, 750, 18)):
        paste_astronaut(picture, x, y, size)
    return picture


def builtin(plain: nn.Module, precision: str, **settings: Any) -> DeviceDetector:
    profile = detect.PROFILES["builtin-detector"]
    kept = {"threshold_default": profile.threshold, "confirm": profile.confirm}
    return on_device(plain, precision=precision, **(kept | {"proposer": PROPOSER} | settings))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_real_faces_are_the_processors(plain: nn.Module, scene: np.ndarray, precision: str) -> None:
    wanted = load_detector(WEIGHTS, "builtin-detector").detect(scene)
    assert len(wanted) == 4
    assert_alike(builtin(plain, precision).detect(scene), wanted, allowed=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"proposer": None}, {"batches": (1,)}], ids=str)
def test_real_faces_are_found_whatever_is_looked_at(
    plain: nn.Module, scene: np.ndarray, settings: dict[str, Any]
) -> None:
    wanted = load_detector(WEIGHTS, "builtin-detector").detect(scene)
    assert_alike(builtin(plain, "fp32", **settings).detect(scene), wanted, allowed=0.5)


@pytest.mark.slow
def test_what_is_fetched_at_a_time_does_not_matter(
    crowd: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = on_device(MarkerNetwork()).detect(crowd, QUICK)
    monkeypatch.setattr("face_restore_worker.pipeline.gpu_search.PENDING", 1)
    parts = on_device(MarkerNetwork(), batches=(1,)).detect(crowd, QUICK)
    assert len(whole) == 3
    assert_alike(parts, whole, allowed=1e-6)


# --- ways out -----------------------------------------------------------------------------------


class Failing(MarkerNetwork):
    """Raises the first `times` calls, of all copies together."""

    def __init__(self, times: float, error: Exception) -> None:
        super().__init__()
        self.count, self.times, self.error = [0], times, error

    def __deepcopy__(self, memo: Any) -> Failing:
        copied = Failing(self.times, self.error)
        copied.count = self.count
        return copied

    def forward(self, batch: torch.Tensor) -> Any:
        self.count[0] += 1
        if self.count[0] <= self.times:
            raise self.error
        return super().forward(batch)


class Overflowing(MarkerNetwork):
    """Gives infinity in fp16, and in fp32 as well where nothing `heals` it."""

    def __init__(self, heals: bool) -> None:
        super().__init__()
        self.heals = heals

    def forward(self, batch: torch.Tensor) -> Any:
        offsets, scores, points = super().forward(batch.float())
        if batch.dtype == torch.float16 or not self.heals:
            offsets[:] = torch.inf
        return offsets, scores, points


FULL = torch.OutOfMemoryError("CUDA out of memory")


def test_a_full_device_is_tried_once_more(crowd: np.ndarray) -> None:
    found = on_device(Failing(1, FULL))
    assert len(found.detect(crowd, QUICK)) == 3 and found.notes == []


@pytest.mark.slow
def test_a_device_that_stays_full_leaves_it_to_the_processor(crowd: np.ndarray) -> None:
    made: list[FaceDetector] = []

    def usual() -> FaceDetector:
        made.append(FaceDetector(MarkerNetwork()))
        return made[-1]

    found = on_device(Failing(2, FULL), usual=usual)
    assert (
        len(found.detect(crowd, QUICK)) == 3
        and found.notes == [gpu_detect.ON_CPU]
        and len(made) == 1
    )
    assert len(found.detect(crowd, QUICK)) == 3 and found.notes == []  # there is room again


def test_other_errors_are_not_hidden(crowd: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        on_device(Failing(1, RuntimeError("shapes cannot be multiplied"))).detect(crowd, QUICK)


@pytest.mark.slow
def test_a_network_that_overflows_runs_in_fp32_from_then_on(crowd: np.ndarray) -> None:
    found = on_device(Overflowing(heals=True), precision="fp16")
    assert len(found.detect(crowd, QUICK)) == 3
    assert found.notes == [gpu_detect.IN_FP32.format("fp16")] and found.precision == "fp32"
    assert len(found.detect(crowd, QUICK)) == 3 and found.notes == []
    assert on_device(Overflowing(heals=False), precision="fp16").detect(crowd, QUICK) == []


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_no_room_for_fp32_is_a_full_device(crowd: np.ndarray, times: int) -> None:
    found = on_device(
        Overflowing(heals=True), precision="fp16", usual=lambda: FaceDetector(MarkerNetwork())
    )
    whole, calls = found._prepared, []

    def full(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise FULL
        return whole(*arguments)

    found._prepared = full  # type: ignore[method-assign]
    told = [gpu_detect.IN_FP32.format("fp16")]
    assert len(found.detect(crowd, QUICK)) == 3
    assert found.notes == (told if times == 1 else [*told, gpu_detect.ON_CPU])
    assert len(found.detect(crowd, QUICK)) == 3 and found.notes == []


class Enough(Exception):
    pass


@pytest.mark.parametrize("full", [False, True])
def test_a_search_nobody_waits_for_ends(crowd: np.ndarray, full: bool) -> None:
    network = Failing(9 if full else 0, FULL)
    found = on_device(network, usual=lambda: FaceDetector(MarkerNetwork()))
    calls: list[int] = []

    def watch() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Enough

    found.watch = watch
    with pytest.raises(Enough):
        found.detect(crowd, QUICK)


@pytest.mark.slow
def test_the_user_is_told(crowd: np.ndarray) -> None:
    from face_restore_worker import Restorer
    from face_restore_worker.pipeline.loaded import LoadedModels

    from tests.natural import Identity

    found = on_device(Failing(4, FULL), usual=lambda: FaceDetector(MarkerNetwork()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoadedModels, "detector", lambda self, name="auto": found)
        restorer = Restorer(network=Identity(64))
        assert restorer.detect(crowd, QUICK) and gpu_detect.ON_CPU in restorer.search_notes(crowd)
        assert gpu_detect.ON_CPU in restorer.restore(crowd, detect=QUICK).notes


# --- who uses it --------------------------------------------------------------------------------


def test_cuda_devices_get_this_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Stand(DeviceDetector):
        def __init__(self, network: nn.Module, device: str, **settings: Any) -> None:
            made.append(device)
            assert next(network.parameters()).device == CPU
            super().__init__(network, "cpu", **settings)

    monkeypatch.setattr(gpu_detect, "DeviceDetector", Stand)
    monkeypatch.setattr(detect, "choose_precision", lambda name, device: "fp32")
    found = load_detector(WEIGHTS, "builtin-detector", device="cuda:1")
    profile = detect.PROFILES["builtin-detector"]
    assert made == ["cuda:1"] and isinstance(found, DeviceDetector)
    assert found.budget == profile.budgets[1] and found.confirm == profile.confirm
    assert isinstance(found._usual(), FaceDetector) and found._usual().budget == profile.budgets[0]
    assert [shape[0] for shape in found.sheets.shapes] == [1, 4]


def test_a_device_without_room_for_it_leaves_detection_to_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise FULL

    monkeypatch.setattr(gpu_detect, "DeviceDetector", full)
    monkeypatch.setattr(detect, "choose_precision", lambda name, device: "fp32")
    found = load_detector(WEIGHTS, "builtin-detector", device="cuda")
    assert type(found) is FaceDetector and found.notes == [detect.NO_ROOM]
    assert found.proposer is not None and found.network.device == CPU


@pytest.mark.parametrize("right", [True, False])
def test_a_graph_is_used_only_if_it_gives_the_same(
    right: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fast = RetinaFaceCuda(MarkerNetwork(), torch.float32, CPU, [(1, 64), (2, 64)])
    assert not fast.recorded

    def fake(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        def replay() -> None:
            run()
            if not right:
                for size in fast._sizes.values():
                    size._result = size._result + 1.0

        return replay

    monkeypatch.setattr("face_restore_worker.network.cuda.recorded.capture", fake)
    for size in fast._sizes.values():
        size.record(torch.zeros_like(size.given))
    assert fast.recorded is right
    assert ("graph of the detector is not used" in caplog.text) is not right


if torch.cuda.is_available():  # elsewhere there is nothing to report, not even a skip

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_on_a_gpu(scene: np.ndarray, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = detect.choose_precision
        chosen = lambda name, on: precision if on == "cuda" else whole(name, on)  # noqa: E731
        monkeypatch.setattr(detect, "choose_precision", chosen)
        wanted = load_detector(WEIGHTS, "builtin-detector").detect(scene)
        found = load_detector(WEIGHTS, "builtin-detector", device="cuda")
        assert isinstance(found, DeviceDetector) and found.precision == precision
        assert found.sheets.network.recorded and found.crops.network.recorded
        assert found.proposer.network.recorded
        first, second = found.detect(scene), found.detect(scene)
        assert_alike(first, wanted, allowed=0.5)
        assert found.notes == []
        assert [face.score for face in first] == [face.score for face in second]
