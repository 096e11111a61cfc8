"""The faces that ``--faces`` numbers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from face_restore_worker.cli import settings
from face_restore_worker.cli.report import in_order
from face_restore_worker.errors import ImageError

if TYPE_CHECKING:
    from face_restore_worker.client.arrays import DetectOutcome
    from face_restore_worker.pipeline.types import Face


@dataclass(frozen=True)
class Choice:
    """Some faces of a picture by number, the numbers rising; who found them, and what it says."""

    faces: dict[int, Face]
    detector: str = ""
    notes: list[str] = field(default_factory=list)


def choose(found: DetectOutcome, args: argparse.Namespace, name: str) -> Choice:
    """The faces that the arguments number, or all.

    name: of the picture, printable. Raises ImageError (code "no-such-face") for a number too large.
    """
    ordered = in_order(found.faces)
    numbers = sorted(args.faces.numbers) or range(1, len(ordered) + 1)
    missing = [number for number in numbers if number > len(ordered)]
    if missing:
        count = {0: "no face", 1: "one face"}.get(len(ordered), f"{len(ordered)} faces")
        limits = [] if ordered else settings.search_limits(args)
        raise ImageError(
            f"{name} has {count}, so there is no face {missing[0]}.",
            hint=" ".join(
                ["`face-restore detect` shows the faces and their numbers.", *limits, *found.notes]
            ),
            code="no-such-face",
        )
    return Choice({n: ordered[n - 1] for n in numbers}, found.detector, found.notes)
