"""Where a level of the photograph may show small faces, so that a detector looks nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.errors import CheckpointError
from face_restore_worker.pipeline import pyramid
from face_restore_worker.pipeline.pyramid import Pixels, Rect, Scale

if TYPE_CHECKING:
    import torch

    from face_restore_worker.network.proposer import FaceProposer

Floats = NDArray[np.float64]
Frames = dict[tuple[int, int, int], "torch.Tensor"]
"""The network's inputs by height, width and turn, to be used again: memory costs time to get."""

STRIP_PIXELS = 7 << 20
"""A level is looked at in strips of about so many pixels, as wide as itself: so hardly anything is
looked at twice, nothing is copied, and what the network keeps stays below 100 MB in bf16."""
STRIP_WIDTH, STRIP_HEIGHT = 8192, 512
"""The widest strip, and its least height."""
OVERLAP = 128
"""Of neighbouring strips; a strip's answers are taken from beyond the middle of it on."""
PROPOSER_FILE = "builtin-proposer.safetensors"
PROPOSER_THRESHOLD = 0.4
"""Belongs to those weights: see their card."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where faces may be centred, pixel-edge coordinates of the level looked at.

    small, large: (N, 2) places for faces of the sizes in ``network.proposer.RANGES``.
    looked_at: cells looked at.
    """

    small: Floats
    large: Floats
    looked_at: int


def load_network(path: str | Path) -> FaceProposer:
    """The proposer's network with the weights of a file, in fp32 on the CPU.

    Raises CheckpointError where the file is not that network.
    """
    from safetensors.torch import load_file

    from face_restore_worker.network.proposer import FaceProposer

    network = FaceProposer()
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{Path(path).name!r} is not the proposer's network: {error}",
            hint="The package is damaged: install it again.",
            code="wrong-network",
        ) from error
    return network


class PlaceFinder(Protocol):
    """Says where a level may show faces; see Proposer."""

    def places(self, level: Any, area: Rect, quarters: Sequence[int] = (0,)) -> Places:
        """See Proposer.places."""


class Proposer:
    """The proposer's network on the processor.

    path: its weights. threshold: from which a cell may show a face, 0 to 1; calibrated with them.
    Raises CheckpointError where the file is not that network.
    """

    def __init__(self, path: str | Path, threshold: float) -> None:
        import torch

        from face_restore_worker.network.proposer import PreparedProposer
        from face_restore_worker.pipeline.device import choose_precision

        network = load_network(path)
        half = choose_precision("auto", "cpu") == "bf16"
        self._network = PreparedProposer(network, torch.bfloat16 if half else torch.float32)
        self._logit = logit(threshold)

    def places(self, level: Scale, area: Rect, quarters: Sequence[int] = (0,)) -> Places:
        """The places of `area` (in the level's pixels) that may show a face.

        quarters: turns of np.rot90 the level is looked at in; a place of any of them counts.
        """
        frames: Frames = {}
        width = min(area[2] - area[0], STRIP_WIDTH)
        height = max(STRIP_PIXELS // width, STRIP_HEIGHT)
        tiles = pyramid.tiles(area, STRIP_WIDTH, OVERLAP, height=height)
        found: list[list[Floats]] = [[], []]
        looked_at = 0
        for tile in tiles:
            passes = self._passes(level.read(tile), quarters, frames)
            looked_at += passes[0].size
            for maps, cells in zip(found, passes, strict=True):
                maps.append(kept_cells(cells, tile, area))
        small, large = (np.concatenate(parts) for parts in found)
        return Places(small, large, looked_at)

    def _passes(self, pixels: Pixels, quarters: Sequence[int], frames: Frames) -> NDArray[np.bool_]:
        """Which cells of a piece pass in any turn of it: (2, rows, columns)."""
        from face_restore_worker.network.proposer import STRIDE

        height, width = pixels.shape[:2]
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        passes = np.zeros((2, rows, columns), dtype=bool)
        for quarter in quarters:
            logits = self._logits(np.rot90(pixels, quarter), quarter, frames)
            passes |= logits[:, :rows, :columns] >= self._logit
        return passes

    def _logits(self, view: Pixels, quarter: int, frames: Frames) -> NDArray[np.float32]:
        """The answers on a turned piece, turned back: (2, at least rows, at least columns)."""
        import torch

        from face_restore_worker.network.proposer import BORDER, GRAIN, GRAY

        height, width = view.shape[:2]
        key = (height, width, quarter)
        # What is filled up must lie right and below once turned back.
        extra = (-height % GRAIN, -width % GRAIN)
        before = (extra[0] if quarter in (1, 2) else 0, extra[1] if quarter in (2, 3) else 0)
        if key not in frames:
            size = (height + extra[0] + 2 * BORDER, width + extra[1] + 2 * BORDER, 3)
            frames[key] = torch.full(size, GRAY, dtype=self._network.dtype)
        top, left = before[0] + BORDER, before[1] + BORDER
        # Converts and frames the pixels in one pass. Torch takes neither negative strides nor, but
        # with a warning, what must not be written to; so those are copied.
        pixels = torch.from_numpy(np.require(view, requirements=["C", "W"] if quarter else ["W"]))
        frames[key][top : top + height, left : left + width].copy_(pixels)
        logits = self._network(frames[key][None])[0].numpy()
        turned: NDArray[np.float32] = np.rot90(logits, -quarter, axes=(1, 2))
        return turned


def logit(probability: float) -> float:
    """Its natural logarithm of odds."""
    return float(np.log(probability / (1 - probability)))


def kept_cells(cells: NDArray[np.bool_], tile: Rect, area: Rect) -> Floats:
    """Centres (N, 2) of a tile's cells that pass, without those of a rim that another one sees."""
    from face_restore_worker.network.proposer import STRIDE

    found = np.flatnonzero(cells)  # faster than nonzero
    if len(found) == 0:
        return np.empty((0, 2))
    rows, columns = np.divmod(found, cells.shape[1])
    points = np.stack([columns, rows], axis=1) * STRIDE + (STRIDE / 2 + np.array(tile[:2]))
    rim = OVERLAP / 2 - STRIDE  # so that tiles' cells meet whatever their phases are
    low = np.array([t + rim if t > a else t for t, a in zip(tile[:2], area[:2], strict=True)])
    high = np.array([t - rim if t < a else t for t, a in zip(tile[2:], area[2:], strict=True)])
    inside = np.all((points >= low) & (points < np.maximum(high, low + 1) + STRIDE), axis=1)
    kept: Floats = points[inside]
    return kept
