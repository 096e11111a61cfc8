"""One level of the photograph searched: all of it, tile by tile, or only some places of it.

Places are cut out and put beside each other on sheets of a few fixed sizes, so that the network
sees few and large inputs whatever there is to look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline import packing, pyramid
from face_restore_worker.pipeline.anchors import STRIDE
from face_restore_worker.pipeline.nms import suppress
from face_restore_worker.pipeline.propose import PlaceFinder
from face_restore_worker.pipeline.pyramid import AnyScale, Level, Pixels, Rect, Scale
from face_restore_worker.pipeline.views import (
    MEAN_BGR,
    Candidates,
    Matrix,
    Network,
    compose,
    placed,
    turned,
)

TILE, COARSE_TILE = 1024, 2048
"""Sides of tiles: of levels that are not shrunk, where flat tiles are passed over, or where the
network needs much memory; and of shrunk ones, where that gains nothing."""
OVERLAP = 128
FACE_MARGIN = 0.1
"""Share of its side a face keeps from a tile's cut. So every face up to OVERLAP / 1.2 = 107 pixels
lies whole in some tile; the next level shows larger ones at 36 pixels or more."""
FLAT_RANGE = 8
"""A tile is passed over where gray values differ by no more than this of 255 within FLAT_WINDOW
pixels of the photograph anywhere: sky, walls, blur. A face's eyes differ from its skin by more."""
FLAT_WINDOW = 17

PIECE = 768
"""The largest side of a piece of a level that is put on a sheet."""
SHEETS = ((256, 256), (512, 512), (PIECE, 256), (PIECE, 512), (PIECE, PIECE))
"""Widths and heights."""
GAP = 4
"""Pixels between two pieces on a sheet."""
LEAST_REACH, SMALL_REACH, LARGE_REACH = 31.0, 42.0, 93.0
"""Half sides, in pixels of the level that was looked at, of what is searched about a place for
small and for large faces: their largest half, their margin, and how far off their centre may be.
The first is for magnified levels, as faces of more than 30 pixels need no magnification. Squares of
these sides lie 6 (of a doubled level), 8 and 4 beside each other on the largest sheet."""
WORTH_IT = 0.5
"""Places that take more than this share of a level are no gain over all of it, nor are those of a
level that fits on one sheet."""


@dataclass(frozen=True)
class Guide:
    """The rectangles of levels that need to be searched; by the levels' factors."""

    rects: dict[float, list[Rect]]

    def of(self, level: Scale) -> list[Rect] | None:
        """Those of one level, None where all of it must be searched."""
        return self.rects.get(level.factor)


def guide(
    proposer: PlaceFinder,
    levels: Sequence[Scale],
    magnified: Sequence[Scale],
    wanted: Rect,
    quarters: Sequence[int],
) -> Guide:
    """Where the two finest of `levels` and the `magnified` ones need to be searched.

    A level is searched where itself shows a small or a large face: so the second finest is for
    those that are larger than the proposer knows in the finest. The third and coarser ones are
    searched as a whole, and the coarsest always: nothing else shows the largest faces.
    """
    rects: dict[float, list[Rect]] = {}
    seen = [proposer.places(level, area_of(level, wanted), quarters) for level in levels[:2]]
    least = Squares(_squares(seen[0].small, LEAST_REACH))
    for level in magnified:
        _add(rects, level, least, levels[0].factor / level.factor, wanted)
    for level, places in zip(levels[:-1], seen, strict=False):
        around = [_squares(places.small, SMALL_REACH), _squares(places.large, LARGE_REACH)]
        _add(rects, level, Squares(np.concatenate(around)), 1.0, wanted)
    return Guide(rects)


class Squares:
    """What is to be searched about places, (N, 4) in one level's pixels."""

    def __init__(self, squares: NDArray[np.float64]) -> None:
        self._squares = squares

    def __len__(self) -> int:
        return len(self._squares)

    @cached_property
    def cover(self) -> NDArray[np.float64]:
        """Rectangles about them, (M, 4); found once for all levels."""
        return packing.cover(self._squares)


def _squares(points: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    return np.concatenate([points - reach, points + reach], axis=1)


def _add(
    rects: dict[float, list[Rect]], level: Scale, squares: Squares, scale: float, wanted: Rect
) -> None:
    """Add a level's rectangles where they are worth it. scale: from the squares' pixels to its."""
    bounds = area_of(level, wanted)
    size = packing.area([bounds])
    if size <= PIECE * PIECE or len(squares) * 64 > WORTH_IT * size:
        return
    found = packing.within(squares.cover * scale, bounds)
    if packing.area(found) <= WORTH_IT * size:
        rects[level.factor] = found


def area_of(level: Scale, wanted: Rect) -> Rect:
    """What lies around `wanted` (photograph pixels), in the level's pixels."""
    x0, y0 = (max(int(v // level.factor) - OVERLAP, 0) for v in wanted[:2])
    x1, y1 = (int(-(-v // level.factor)) + OVERLAP for v in wanted[2:])
    return x0, y0, min(x1, level.width), min(y1, level.height)


def tiles_of(level: Scale, wanted: Rect, entire: bool, *, quick: bool = False) -> list[Rect]:
    """Tiles of what lies around `wanted` (photograph pixels), in the level's pixels.

    entire: cover all of the level: a large face reaches far beyond its centre.
    quick: the network is small, and larger tiles of shrunk levels need no memory to speak of.
    """
    area = (0, 0, level.width, level.height) if entire else area_of(level, wanted)
    side = COARSE_TILE if quick and level.factor > 1 else TILE
    return pyramid.tiles(area, side, OVERLAP, STRIDE)


def search_tiles(
    network: Network,
    level: Level,
    tiles: Iterable[Rect],
    quarters: Sequence[int],
    threshold: float,
) -> Iterator[Candidates]:
    """The faces of some tiles in photograph coordinates, for each turn of each."""
    for tile in tiles:
        pixels = level.read(tile)
        if level.factor <= 1 and _flat(pixels, level.factor):
            continue
        height, width = pixels.shape[:2]
        for quarter in quarters:
            view = np.ascontiguousarray(np.rot90(pixels, quarter))
            found = network.find([view], threshold)[0]
            back = compose(placed(1.0, tile[0], tile[1]), turned(quarter, width, height))
            yield _best(found, back, tile, level)


@dataclass(frozen=True, eq=False)
class Piece(Generic[AnyScale]):
    """A rectangle of a level, turned by a quarter of np.rot90, to be put on a sheet."""

    level: AnyScale
    rect: Rect
    quarter: int

    @property
    def size(self) -> packing.Size:
        """Width and height, turned."""
        width, height = self.rect[2] - self.rect[0], self.rect[3] - self.rect[1]
        return (height, width) if self.quarter % 2 else (width, height)

    def faces(self, found: Candidates, x: int, y: int) -> Candidates | None:
        """Of the faces of a sheet those of this piece, which lies at (x, y); the best of them.

        In photograph coordinates; None where no face is centred on the piece.
        """
        centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        low, high = (x, y), (x + self.size[0], y + self.size[1])
        inside = np.all((centres >= low) & (centres < high), axis=1)
        if not inside.any():
            return None
        width, height = self.rect[2] - self.rect[0], self.rect[3] - self.rect[1]
        back = compose(turned(self.quarter, width, height), placed(1.0, -x, -y))
        back = compose(placed(1.0, self.rect[0], self.rect[1]), back)
        return _best(found.take(inside), back, self.rect, self.level)


def pieces_of(
    level: AnyScale, rects: Iterable[Rect], quarters: Sequence[int], side: int = PIECE
) -> list[Piece[AnyScale]]:
    """Rectangles of a level in pieces of at most `side` pixels a side, in each turn."""
    return [
        Piece(level, piece, quarter)
        for rect in rects
        for piece in pyramid.tiles(rect, side, OVERLAP, STRIDE)
        for quarter in quarters
    ]


def search_places(
    network: Network,
    level: Level,
    rects: Iterable[Rect],
    quarters: Sequence[int],
    threshold: float,
) -> Iterator[Candidates]:
    """As search_tiles, for rectangles of any size, put together on sheets."""
    pieces = pieces_of(level, rects, quarters)
    for (across, down), items in packing.pack([piece.size for piece in pieces], SHEETS, GAP):
        sheet = np.empty((down, across, 3), np.uint8)
        sheet[:] = [round(value) for value in reversed(MEAN_BGR)]
        for number, x, y in items:
            piece = pieces[number]
            width, height = piece.size
            view = np.rot90(level.read(piece.rect), piece.quarter)
            sheet[y : y + height, x : x + width] = view
        found = network.find([sheet], threshold)[0]
        for number, x, y in items:
            faces = pieces[number].faces(found, x, y)
            if faces is not None:
                yield faces


def _best(found: Candidates, to_level: Matrix, tile: Rect, level: Scale) -> Candidates:
    """The best of those that lie whole in the tile, in photograph coordinates."""
    in_level = found.mapped(to_level)
    in_level = in_level.take(_complete(in_level, tile, level))
    best = suppress(in_level.boxes, in_level.scores)
    return in_level.take(best).scaled(level.factor)


def _complete(found: Candidates, tile: Rect, level: Scale) -> NDArray[np.bool_]:
    """Which faces keep a margin to those sides of their tile that cut through the level."""
    margin = FACE_MARGIN * found.sides
    boxes = found.boxes
    return (
        ((boxes[:, 0] - margin >= tile[0]) | (tile[0] <= 0))
        & ((boxes[:, 1] - margin >= tile[1]) | (tile[1] <= 0))
        & ((boxes[:, 2] + margin <= tile[2]) | (tile[2] >= level.width))
        & ((boxes[:, 3] + margin <= tile[3]) | (tile[3] >= level.height))
    )


def _flat(pixels: Pixels, factor: float) -> bool:
    """Whether a tile of a level of `factor` shows nothing that could be a face."""
    import cv2

    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if factor < 1:
        gray = cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    gray = cv2.blur(gray, (5, 5))  # grain is no detail
    window = np.ones((FLAT_WINDOW, FLAT_WINDOW), np.uint8)
    spread = cv2.subtract(cv2.dilate(gray, window), cv2.erode(gray, window))
    return int(spread.max()) <= FLAT_RANGE
