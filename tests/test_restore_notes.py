"""What the user is told about a search that was kept short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from face_restore_shared.options import DetectOptions
from face_restore_worker import Restorer
from face_restore_worker.errors import Cancelled
from face_restore_worker.pipeline.detect import PROFILES, FaceDetector
from marker_faces import MarkerNetwork

from tests.natural import Identity

PICTURE = np.full((2000, 3000, 3), 90, np.uint8)  # flat: passed over at once


def notes(monkeypatch: pytest.MonkeyPatch, budget: float, options: DetectOptions) -> list[str]:
    finder = FaceDetector(MarkerNetwork(), budget=budget, name="Slow")
    restorer = Restorer(network=Identity(64), device="cpu")
    monkeypatch.setattr(restorer._models, "detector", lambda name="auto": finder)
    told = restorer.restore(PICTURE, detect=options).notes
    assert restorer.search_notes(PICTURE, options) == [n for n in told if "looked for" in n]
    return told


def test_faces_too_small_for_the_budget_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = notes(monkeypatch, 2.1, DetectOptions())
    assert any("Slow looked for faces from about 60 pixels only" in note for note in told)


def test_the_light_detector_is_not_recommended_where_it_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, light_helps in (("retinaface-resnet50", True), ("builtin-detector", False)):
        budget = PROFILES[name].budgets[0] / 200  # as of a picture of 200 times as many pixels
        monkeypatch.setitem(PROFILES, name, replace(PROFILES[name], budgets=(budget, budget)))
        monkeypatch.setitem(PROFILES, "retinaface-mobile0.25", PROFILES["builtin-detector"])
        (note,) = (n for n in notes(monkeypatch, budget, DetectOptions()) if "looked for" in n)
        assert ("The light detector or a selection of a part" in note) == light_helps
        assert ("take too long in so large a picture. A selection of a part" in note) != light_helps


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_a_selection_of_a_part_is_searched_for_small_faces(
    monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    finder = FaceDetector(MarkerNetwork(), budget=2.1, name="Slow")
    restorer = Restorer(network=Identity(64), device="cpu")
    monkeypatch.setattr(restorer._models, "detector", lambda name="auto": finder)
    whole = np.full(PICTURE.shape[:2], 255, dtype)
    assert restorer.search_notes(PICTURE, selection=whole) != []
    selection = np.zeros_like(whole)
    selection[100:400, 200:600] = 255
    assert restorer.search_notes(PICTURE, selection=selection) == []
    assert not any("looked for" in n for n in restorer.restore(PICTURE, selection=selection).notes)


@pytest.mark.parametrize(
    ("budget", "options"),
    [(60.0, DetectOptions()), (2.1, DetectOptions(min_face=50)),
     (2.1, DetectOptions(region=(0, 0, 400, 300)))],
    ids=["cheap enough", "not asked for", "a region"],
)  # fmt: skip
def test_a_full_search_is_no_news(
    monkeypatch: pytest.MonkeyPatch, budget: float, options: DetectOptions
) -> None:
    assert not any("looked for faces" in note for note in notes(monkeypatch, budget, options))


def test_a_search_that_is_cancelled_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MarkerNetwork()
    finder = FaceDetector(network, reach=12)
    restorer = Restorer(network=Identity(64), device="cpu")
    monkeypatch.setattr(restorer._models, "detector", lambda name="auto": finder)
    noise = np.random.default_rng(1).integers(0, 255, (700, 2000, 3), np.uint8)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 3

    for search in (restorer.detect, restorer.restore):
        asked.clear()
        with pytest.raises(Cancelled):
            search(noise, cancelled=cancelled)  # type: ignore[operator]
        assert len(asked) == 4
    # Nothing of it stays for the next search.
    asked.clear()
    assert restorer.detect(noise) == [] and asked == []
    restorer.detect(noise, cancelled=lambda: bool(asked.append(1)))
    assert len(asked) > 3
