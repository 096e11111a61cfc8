"""A backend of the command line that paints every face it is told of with one colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from face_restore_shared.schema import DetectOptions, RestoreOptions
from face_restore_worker.cli.main import main
from face_restore_worker.client.arrays import DetectOutcome
from face_restore_worker.pipeline.types import Face, RestoreOutcome
from faces import face_at, patch_at

PLACES = [(40, 20), (4, 8), (22, 28)]


class Painter:
    """A backend that knows three faces and paints them with one colour."""

    def __init__(self) -> None:
        self.places = list(PLACES)
        self.colour = (0.9, 0.1, 0.2)
        self.notes: list[str] = []  # of detect
        self.calls: list[dict[str, Any]] = []
        self.before: Callable[[int], None] = lambda number: None

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def detect(
        self, image: np.ndarray, options: DetectOptions, selection: np.ndarray | None
    ) -> DetectOutcome:
        self.calls.append({"detect": options, "selection": selection})
        faces = [face_at(x, y) for x, y in self.places]
        return DetectOutcome(faces, "painter", notes=list(self.notes))

    def restore(
        self,
        image: np.ndarray,
        *,
        detect: DetectOptions,
        restore: RestoreOptions,
        faces: Sequence[Face] | None,
        selection: np.ndarray | None,
        listener: Callable[[str, int, int, float], None],
    ) -> RestoreOutcome:
        self.before(sum("restore" in call for call in self.calls))
        self.calls.append({"restore": restore, "detect": detect, "selection": selection})
        places = self.places
        if faces is not None:
            places = [(int(face.box[0]), int(face.box[1])) for face in faces]
        for number in range(len(places)):
            listener("restoring", number + 1, len(places), number / len(places))
        aligned = 32 if restore.return_aligned else 0
        patches = [
            patch_at(x, y, self.colour, strength=restore.strength, aligned=aligned)
            for x, y in places
        ]
        return RestoreOutcome(
            patches,
            [patch.face for patch in patches],
            "painter-1",
            "the painter",
            "painter",
            "easel",
            ["paint is wet"],
            {"restoring": 0.5},
        )


def run(*arguments: object) -> int:
    """`face-restore restore` with these arguments; its exit status."""
    return main(["restore", *map(str, arguments)])
