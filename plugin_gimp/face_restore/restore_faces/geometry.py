"""Rectangles of whole pixels: what is read, where patches go, how large a layer must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rect:
    """x, y: the first pixel. width, height: in pixels; both above 0 unless empty."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    def shifted(self, dx: int, dy: int) -> Rect:
        return Rect(self.x + dx, self.y + dy, self.width, self.height)

    def intersection(self, other: Rect) -> Rect:
        """The common part; `empty` when there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        return Rect(x, y, min(self.right, other.right) - x, min(self.bottom, other.bottom) - y)

    def touches(self, other: Rect) -> bool:
        return not self.intersection(other).empty

    def grown(self, by: int) -> Rect:
        return Rect(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)


def union(rects: Sequence[Rect]) -> Rect:
    """The smallest rectangle around all of them; raises ValueError when there is none."""
    x, y = min(r.x for r in rects), min(r.y for r in rects)
    return Rect(x, y, max(r.right for r in rects) - x, max(r.bottom for r in rects) - y)


def region_to_read(layer: Rect, selection: Rect | None) -> Rect:
    """The part of the layer to send, in layer coordinates; `empty` when there is none.

    layer: its place in the image. selection: its bounds in the image, None for no selection.
    Half of the selection's longer side is added around it: a face at its edge is restored with
    its surroundings, and its soft mask does not end at the edge of what was read.
    """
    whole = Rect(0, 0, layer.width, layer.height)
    if selection is None:
        return whole
    inside = selection.shifted(-layer.x, -layer.y).intersection(whole)
    if inside.empty:
        return inside
    return inside.grown(max(inside.width, inside.height) // 2).intersection(whole)


def groups(rects: Sequence[Rect]) -> list[list[int]]:
    """Indices of the rectangles, those that touch (also through others) together, in order."""
    left = set(range(len(rects)))
    result = []
    while left:
        todo, found = [min(left)], set[int]()
        while todo:
            index = todo.pop()
            if index in left:
                left.remove(index)
                found.add(index)
                todo += [other for other in left if rects[index].touches(rects[other])]
        result.append(sorted(found))
    return result
