"""Few rectangles about many places, and few sheets holding many rectangles.

Where a detector need look at some places only, looking at each alone would be slow (small inputs
keep no processor busy, every new input size is prepared for anew), and looking at the rectangle
about all of them would look at everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.pyramid import Rect

Floats = NDArray[np.float64]


def cover(boxes: Floats) -> Floats:
    """Rectangles (M, 4) that together hold each of `boxes` (N, 4), x0, y0, x1, y1, whole.

    Starting from the rectangle about all, each is cut in two where that makes the sum of the areas
    smallest, as long as it becomes smaller.
    """
    found = []
    waiting = [np.asarray(boxes, dtype=np.float64)] if len(boxes) else []
    while waiting:
        group = waiting.pop()
        parts = _halved(group)
        if parts is None:
            found.append(np.concatenate([group[:, :2].min(axis=0), group[:, 2:].max(axis=0)]))
        else:
            waiting += parts
    return np.array(found).reshape(-1, 4)


def within(rects: Floats, bounds: Rect) -> list[Rect]:
    """Rectangles (N, 4) in whole pixels, cut to `bounds`, from top to bottom.

    Those that are empty there are left out.
    """
    low = np.maximum(np.floor(rects[:, :2]), bounds[:2]).astype(int)
    high = np.minimum(np.ceil(rects[:, 2:]), bounds[2:]).astype(int)
    shown = np.all(low < high, axis=1)
    found = np.concatenate([low, high], axis=1)[shown].tolist()
    return sorted(map(tuple, found), key=lambda r: (r[1], r[0], r[3], r[2]))


def _halved(boxes: Floats) -> list[Floats] | None:
    """The two groups with the smallest rectangles, None where one for all is as good."""
    if len(boxes) == 1:
        return None
    width, height = boxes[:, 2:].max(axis=0) - boxes[:, :2].min(axis=0)
    best, halves = width * height, None
    for axis in (0, 1):
        ordered = boxes[np.argsort(boxes[:, axis], kind="stable")]
        total = _growing(ordered)[:-1] + _growing(ordered[::-1])[::-1][1:]
        cut = int(total.argmin()) + 1
        if total[cut - 1] < best:
            best, halves = total[cut - 1], [ordered[:cut], ordered[cut:]]
    return halves


def _growing(boxes: Floats) -> Floats:
    """The areas of the rectangles about the first, the first two, ... of the boxes: (N,)."""
    low = np.minimum.accumulate(boxes[:, :2], axis=0)
    high = np.maximum.accumulate(boxes[:, 2:], axis=0)
    size = high - low
    areas: Floats = size[:, 0] * size[:, 1]
    return areas


def area(rects: Sequence[Rect]) -> int:
    """The sum of the rectangles' areas."""
    return sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in rects)


Placement = tuple[int, int, int]
"""Number of an item and where on its sheet its first pixel lies: x, y."""


Size = tuple[int, int]
"""Width and height."""

Sheet = tuple[Size, list[Placement]]
"""Its size and what lies on it."""


def pack(sizes: Sequence[Size], sheets: Sequence[Size], gap: int) -> list[Sheet]:
    """Put rectangles on sheets, on shelves, the tallest first.

    Args:
        sizes: width and height of each rectangle.
        sheets: sizes of the sheets there are, the smallest area first; the last is as wide and as
            high as any, and no rectangle is larger than it.
        gap: pixels left free between rectangles.

    Returns:
        The sheets, each the smallest one that holds its rectangles in this order.

    Raises:
        ValueError: a rectangle is larger than any sheet.
    """
    if any(w > sheets[-1][0] or h > sheets[-1][1] for w, h in sizes):
        raise ValueError(f"a rectangle is larger than the largest sheet, {sheets[-1]} pixels")
    waiting = sorted(range(len(sizes)), key=lambda i: (-sizes[i][1], -sizes[i][0], i))
    used = []
    while waiting:
        placed, left = _shelves(waiting, sizes, sheets[-1], gap)
        chosen = sheets[-1]
        there = [item for item, _, _ in placed]
        for size in sheets[:-1]:
            tighter, over = _shelves(there, sizes, size, gap)
            if not over:
                chosen, placed = size, tighter
                break
        used.append((chosen, placed))
        waiting = left
    return used


def _shelves(
    items: Sequence[int], sizes: Sequence[Size], sheet: Size, gap: int
) -> tuple[list[Placement], list[int]]:
    """What fits on one sheet, item after item, each on the first shelf with room for it."""
    placed: list[Placement] = []
    left: list[int] = []
    shelves: list[list[int]] = []  # top, height, used width
    bottom = 0
    for item in items:
        width, height = sizes[item]
        shelf = next((s for s in shelves if height <= s[1] and s[2] + width <= sheet[0]), None)
        if shelf is None and bottom + height <= sheet[1] and width <= sheet[0]:
            shelf = [bottom, height, 0]
            shelves.append(shelf)
            bottom += height + gap
        if shelf is None:
            left.append(item)
            continue
        placed.append((item, shelf[2], shelf[0]))
        shelf[2] += width + gap
    return placed, left
