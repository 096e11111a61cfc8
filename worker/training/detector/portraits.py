"""The portraits in memory: which are held out, where the face is, face-free scraps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from degrade import Image
from detect import detect
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Portrait:
    """A decoded portrait: uint8 BGR [H, W, 3] and its face box (x0, y0, x1, y1), px, if found."""

    name: str
    image: Image
    box: NDArray[np.float32] | None

    @property
    def face_box(self) -> NDArray[np.float32]:
        """The face box; raises ValueError if the teacher found no face."""
        if self.box is None:
            raise ValueError(f"the teacher found no face in {self.name}")
        return self.box

    @property
    def face_size(self) -> float:
        """The geometric mean of the face box's sides in px."""
        x0, y0, x1, y1 = self.face_box
        return float(np.sqrt((x1 - x0) * (y1 - y0)))


def is_held_out(path: Path) -> bool:
    """Whether a person is kept for evaluation: one in ten, by the SHA-256 of the name's number.

    By person rather than by file, so that ``000032.jpg`` and ``000032_wiki.jpg`` stay together.
    """
    person = str(int(path.stem.split("_")[0]))
    return int(hashlib.sha256(person.encode()).hexdigest(), 16) % 10 == 1


def list_images(data: Path, held_out: bool, folders: Sequence[str]) -> list[Path]:
    """The JPEGs of the training or the held-out persons, sorted.

    Raises FileNotFoundError if there are none.
    """
    found = [p for name in folders for p in sorted((data / name).glob("*.jpg"))]
    chosen = [p for p in found if is_held_out(p) == held_out]
    if not chosen:
        raise FileNotFoundError(
            f"no JPEGs in {', '.join(folders)} under {data}: give the data folder with --data"
        )
    return chosen


def load(paths: Sequence[Path], teacher: nn.Module, threshold: float = 0.8) -> list[Portrait]:
    """Decode the files and let the teacher find each one's best face.

    Raises ValueError for a file that OpenCV cannot decode.
    """
    portraits = []
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path} is not an image OpenCV can decode; remove or replace it")
        found = detect(teacher, image, threshold)
        box = found.boxes[0].copy() if len(found.boxes) else None
        portraits.append(Portrait(path.stem, image, box))
    return portraits


def face_free_parts(portraits: Sequence[Portrait]) -> list[Image]:
    """The torso below each face and the background beside it (uint8 BGR, 40 px or more)."""
    parts = []
    for portrait in portraits:
        if portrait.box is None:
            continue
        width = portrait.image.shape[1]
        x0, y0, x1, y1 = portrait.box
        below = int(y1 + 0.12 * (y1 - y0))
        left, right = int(x0 - 0.35 * (x1 - x0)), int(x1 + 0.35 * (x1 - x0))
        cuts = (
            portrait.image[below:],
            portrait.image[:, : max(left, 0)],
            portrait.image[:, min(right, width) :],
        )
        parts += [c for c in cuts if min(c.shape[:2]) >= 40]
    return parts
