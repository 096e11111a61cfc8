"""Faces are worked on beside each other: in order, bounded, and stopped where they must."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from face_restore_shared.schema import RestoreOptions
from face_restore_worker import Restorer
from face_restore_worker.errors import Cancelled
from face_restore_worker.pipeline.overlap import overlapped

from tests.natural import Identity, natural_photo, place_face

DEADLINE = 60.0  # only reached where something hangs


def test_results_come_in_order() -> None:
    steps = overlapped(
        range(7), lambda i: i * 10, lambda i, b: (i, b), lambda i, d: (*d, threading.get_ident())
    )
    found = list(steps)
    assert [f[:2] for f in found] == [(i, 10 * i) for i in range(7)]
    assert threading.get_ident() not in {f[2] for f in found}
    assert list(overlapped([], str, lambda i, b: b, lambda i, d: d)) == []


def test_the_neighbours_steps_run_beside_the_middle_one() -> None:
    begun = {(step, i): threading.Event() for step in ("before", "after") for i in range(4)}

    def before(i: int) -> int:
        begun["before", i].set()
        return i

    def during(i: int, _: int) -> int:
        if i < 3:
            assert begun["before", i + 1].wait(DEADLINE)
        if i > 0:
            assert begun["after", i - 1].wait(DEADLINE)
        return i

    def after(i: int, _: int) -> int:
        begun["after", i].set()
        return i

    assert list(overlapped(range(4), before, during, after)) == list(range(4))


def test_no_more_than_three_are_held() -> None:
    class Thing:
        pass

    alive: list[weakref.ref[Any]] = []
    most = 0

    def make(i: int) -> Thing:
        thing = Thing()
        alive.append(weakref.ref(thing))
        return thing

    def during(i: int, thing: Thing) -> Thing:
        nonlocal most
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return thing

    gc.freeze()  # what lies there already is not searched each time
    try:
        assert list(overlapped(range(12), make, during, lambda i, thing: i)) == list(range(12))
    finally:
        gc.unfreeze()
    assert 1 <= most <= 3


@pytest.mark.parametrize("step", ["before", "during", "after"])
def test_what_fails_is_raised_and_nothing_is_begun_after_it(step: str) -> None:
    begun: list[tuple[str, int]] = []

    def doing(name: str) -> Any:
        def work(i: int, *_: Any) -> int:
            begun.append((name, i))
            if (name, i) == (step, 2):
                raise OSError(f"{name} {i}")
            return i

        return work

    found = []
    with pytest.raises(OSError, match=f"{step} 2"):
        for result in overlapped(range(9), doing("before"), doing("during"), doing("after")):
            found.append(result)
    assert found == list(range(len(found)))
    assert max(i for _, i in begun) <= 4


def test_the_pipelines_patches_are_those_of_each_face_alone() -> None:
    photo = natural_photo(300, 400)
    faces = [place_face(60 + 10 * i, 0.1 * i, 90 + 80 * i, 140) for i in range(3)]
    restorer = Restorer(network=Identity(128), device="cpu")
    together = restorer.restore(photo, faces, options=RestoreOptions(mask="oval"))
    assert len(together.patches) == 3
    for face, patch in zip(faces, together.patches, strict=True):
        alone = restorer.restore(photo, [face], options=RestoreOptions(mask="oval")).patches[0]
        np.testing.assert_array_equal(patch.rgb, alone.rgb)
        np.testing.assert_array_equal(patch.mask, alone.mask)
        assert (patch.x, patch.y) == (alone.x, alone.y)


def test_a_cancelled_job_begins_no_other_face() -> None:
    photo = natural_photo(300, 400)
    faces = [place_face(60, 0.0, 90 + 80 * i, 140) for i in range(4)]
    network = Identity(128)
    restorer = Restorer(network=network, device="cpu")
    with pytest.raises(Cancelled):
        restorer.restore(photo, faces, cancelled=lambda: network.calls >= 2)
    assert network.calls == 2
