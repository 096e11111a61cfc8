"""Which of the faces found count: one of each, where they were asked for, as many as wished."""

from __future__ import annotations

from typing import Any

import numpy as np
from face_restore_shared.options import DetectOptions
from numpy.typing import NDArray

from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.nms import suppress, suppress_nested
from face_restore_worker.pipeline.pyramid import Picture, Rect
from face_restore_worker.pipeline.types import Face
from face_restore_worker.pipeline.views import Candidates


def wanted_rect(
    picture: Picture, region: tuple[int, int, int, int] | None, selection: NDArray[Any] | None
) -> Rect | None:
    """The rectangle that centres may lie in, None where there is none."""
    x0, y0, x1, y1 = 0, 0, picture.width, picture.height
    if region is not None:
        x, y, width, height = region
        x0, y0, x1, y1 = max(x0, x), max(y0, y), min(x1, x + width), min(y1, y + height)
    if selection is not None:
        if selection.shape != (picture.height, picture.width):
            raise ImageError(
                f"The selection of {selection.shape} does not fit the picture of "
                f"{(picture.height, picture.width)} (height, width).",
                hint="Give a selection of the picture's own size.",
                code="selection-form",
            )
        selected = _selected(selection)
        columns, rows = np.flatnonzero(selected.any(axis=0)), np.flatnonzero(selected.any(axis=1))
        if len(columns) == 0:
            return None
        x0, x1 = max(x0, int(columns[0])), min(x1, int(columns[-1]) + 1)
        y0, y1 = max(y0, int(rows[0])), min(y1, int(rows[-1]) + 1)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _selected(selection: NDArray[Any]) -> NDArray[np.bool_]:
    if selection.dtype == np.bool_:
        return selection
    if selection.dtype == np.uint8:
        return selection >= 128
    raise ImageError(f"A selection is uint8 or bool, not {selection.dtype}.", code="selection-form")


def distinct(found: Candidates) -> Candidates:
    """One of those that are the same face, best score first."""
    found = found.take(suppress(found.boxes, found.scores))
    return found.take(suppress_nested(found.boxes, found.scores))


def near_wanted(
    found: Candidates, wanted: Rect, selection: NDArray[Any] | None
) -> NDArray[np.bool_]:
    """Whose centre lies in `wanted` and is selected, or may get there by the second look."""
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    slack = 0.25 * found.sides[:, None]
    first, last = centres - slack, centres + slack
    near: NDArray[np.bool_] = np.all((last >= wanted[:2]) & (first <= wanted[2:]), axis=1)
    if selection is not None:
        first, last = np.floor(np.maximum(first, 0)).astype(int), np.floor(last).astype(int) + 1
        for i in np.flatnonzero(near):
            around = selection[first[i, 1] : last[i, 1], first[i, 0] : last[i, 0]]
            near[i] = _selected(around).any()
    return near


def centred(found: Candidates, wanted: Rect, selection: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Whose centre lies in `wanted` and is selected."""
    pixels = np.floor((found.boxes[:, :2] + found.boxes[:, 2:]) / 2).astype(np.intp)
    inside: NDArray[np.bool_] = np.all((pixels >= wanted[:2]) & (pixels < wanted[2:]), axis=1)
    if selection is not None:
        pixels = pixels[inside]
        inside[inside] = _selected(selection[pixels[:, 1], pixels[:, 0]])
    return inside


def chosen(found: Candidates, options: DetectOptions) -> list[Face]:
    """The faces the options keep, best score first, in a face's own coordinates."""
    heights = found.boxes[:, 3] - found.boxes[:, 1]
    found = found.take(heights >= options.min_face)
    found = found.take(np.argsort(-found.scores, kind="stable"))
    if options.only_largest and len(found):
        found = found.take(np.array([np.argmax(found.sides)]))
    if options.max_faces:
        found = found.take(np.arange(min(len(found), options.max_faces)))
    return [
        Face(box=box, score=float(score), landmarks=points - 0.5)
        for box, score, points in zip(found.boxes, found.scores, found.landmarks, strict=True)
    ]
