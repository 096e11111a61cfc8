"""Finding the faces of a photograph of any size with a RetinaFace.

RetinaFace misses faces of more than about 600 px and, whatever its smallest anchor, many of less
than about 30. So it runs on a pyramid: the photograph magnified where small faces are asked for,
as it is, and shrunk by 3, 9, 27, ..., in tiles wherever a level is large, each level overlapping
its neighbours' range. The largest levels are searched only where a proposer sees something that
may be a small face (see propose.py, search.py). One suppression over all levels follows, then a
second look at each face (see refine.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from face_restore_shared.options import DetectOptions
from numpy.typing import NDArray

from face_restore_worker.models.store import BUILTIN_DIR
from face_restore_worker.pipeline import pyramid, search
from face_restore_worker.pipeline.device import choose_precision, free_caches, is_out_of_memory
from face_restore_worker.pipeline.propose import (
    PROPOSER_FILE,
    PROPOSER_THRESHOLD,
    PlaceFinder,
    Proposer,
)
from face_restore_worker.pipeline.pyramid import Picture, Rect, Scale
from face_restore_worker.pipeline.refine import Crops, Looker, refine
from face_restore_worker.pipeline.types import Face
from face_restore_worker.pipeline.views import Candidates, Network, Scanner
from face_restore_worker.pipeline.wanted import centred, chosen, distinct, near_wanted, wanted_rect

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

MIN_ON_COARSE = 16.0
"""Smaller ones (in pixels of a shrunk level) are the finer level's, which sees them better."""
MAX_ON_MAGNIFIED = 64.0
"""Larger ones (in pixels of a magnified level) are seen without magnifying. What such a level alone
takes for a larger face is mostly something else: letters, for example."""
REACH = 30.0
"""Height in the network's pixels from which it finds nearly every face (measured: a MobileNet-0.25
RetinaFace finds 93 % at 32 px and 50 % at 24 px)."""
MAGNIFICATIONS = {3: 0.25, 2: 1.0}
"""Factor and the share of the budget it may take: tripling finds faces of 14 to 18 pixels, and is
worth it only where it is quick."""
TILE_COST = 1.35
"""Pixels put through the network per pixel of the finest level: overlaps and coarser levels."""
TRUSTED = 0.8
"""Share of the usual threshold: asked for less certain faces, the proposer is not listened to."""
MAX_FACES = 1000
"""Bounds the second look; no photograph shows more faces than this one by one."""
SHEETS = {"mobile0.25": (1, 4), "resnet50": (1,)}
"""Sheets that a GPU looks at together: one of the small network is too little work for it, several
of the large one need too much memory."""
NO_ROOM = "The GPU has too little free memory for the detector: it runs on the processor."


@dataclass(frozen=True)
class Profile:
    """How a detector's weights behave; see FaceDetector. budgets: for the CPU, for a GPU."""

    variant: str
    threshold: float
    reach: float
    confirm: float
    refine_all: bool
    budgets: tuple[float, float]


PROFILES = {
    "retinaface-resnet50": Profile("resnet50", 0.8, REACH, 0.0, False, (16.0, 2000.0)),
    "retinaface-mobile0.25": Profile("mobile0.25", 0.8, REACH, 0.0, True, (560.0, 4000.0)),
    "builtin-detector": Profile("mobile0.25", 0.75, REACH, 0.25, True, (560.0, 4000.0)),
}


def load_detector(
    path: str | Path,
    model_id: str,
    *,
    device: torch.device | str = "cpu",
    name: str = "",
) -> FaceDetector:
    """The detector of a model file, with the settings that suit its weights.

    model_id: the catalogue's id; unknown ones are taken for one of facexlib's by their tensors.
    Half precision on CUDA; where its memory does not suffice, the processor's detector with a note.
    Raises CheckpointError where the file is not that network.
    """
    import torch

    from face_restore_worker.pipeline.facexlib_nets import load_retinaface

    profile = PROFILES.get(model_id)
    variant = profile.variant if profile else None
    kind = torch.device(device).type
    network = load_retinaface(path, variant=variant, device="cpu" if kind == "cuda" else device)
    if profile is None:
        light = sum(p.numel() for p in network.parameters()) < 2_000_000
        profile = PROFILES["retinaface-mobile0.25" if light else "retinaface-resnet50"]
    settings: dict[str, Any] = {
        "threshold_default": profile.threshold,
        "name": name or model_id,
        "reach": profile.reach,
        "confirm": profile.confirm,
        "refine_all": profile.refine_all,
    }
    if kind == "cuda":
        return _on_gpu(network, str(device), profile, settings)
    if kind == "cpu":
        return _on_cpu(network, profile, settings)
    return FaceDetector(network, device=device, budget=profile.budgets[0], **settings)


def _on_cpu(network: nn.Module, profile: Profile, settings: dict[str, Any]) -> FaceDetector:
    scanner, second = _scanners(network)
    return FaceDetector(
        network,
        scanner=scanner,
        second=second,
        proposer=Proposer(BUILTIN_DIR / PROPOSER_FILE, PROPOSER_THRESHOLD),
        budget=profile.budgets[0],
        **settings,
    )


def _on_gpu(
    network: nn.Module, device: str, profile: Profile, settings: dict[str, Any]
) -> FaceDetector:
    from face_restore_worker.pipeline.gpu_detect import DeviceDetector

    def usual() -> FaceDetector:
        return _on_cpu(network, profile, settings)

    try:
        return DeviceDetector(
            network,
            device,
            batches=SHEETS[profile.variant],
            precision=choose_precision("auto", device),
            proposer=(BUILTIN_DIR / PROPOSER_FILE, PROPOSER_THRESHOLD),
            usual=usual,
            budget=profile.budgets[1],
            **settings,
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("The detector does not fit on %s: %s", device, error)
    free_caches(device)  # outside the handler, whose traceback keeps the tensors alive
    detector = usual()
    detector.notes.append(NO_ROOM)
    return detector


def _scanners(network: nn.Module) -> tuple[Scanner | None, Scanner | None]:
    """The quick forms for the first look and, in fp32, for the second."""
    import torch

    from face_restore_worker.network.retinaface_cpu import RetinaFaceCpu, is_mobile

    if not is_mobile(network):
        return None, None
    second = RetinaFaceCpu(network)
    half = choose_precision("auto", "cpu") == "bf16"
    return RetinaFaceCpu(network, torch.bfloat16) if half else second, second


@dataclass(frozen=True)
class Task:
    """What to search of a photograph, and how.

    wanted: the rectangle that faces' centres may lie in, or a little beside. scale: network pixels
    per pixel of the photograph of the finest level: 3, 2, 1, 1/2, 1/3, ... quarters: turns of
    np.rot90. guided: whether the proposer may say where to look.
    """

    picture: Picture
    wanted: Rect
    scale: float
    quarters: tuple[int, ...]
    threshold: float
    guided: bool

    @property
    def shrink(self) -> int:
        """Factor of the finest level that is not magnified."""
        return max(round(1 / self.scale), 1)

    @property
    def magnifications(self) -> range:
        """Of the magnified levels, the largest first.

        Faces of about 30 pixels are seen worst at 3 times their size: each magnification counts.
        """
        return range(round(self.scale), 1, -1)


def seen_well(found: Candidates, level: Scale, *, finest: bool) -> Candidates:
    """Without what another level shows better. finest: of those that are not magnified."""
    smallest = MIN_ON_COARSE * level.factor if level.factor > 1 and not finest else 0.0
    largest = MAX_ON_MAGNIFIED * level.factor if level.factor < 1 else np.inf
    return found.take((found.sides >= smallest) & (found.sides <= largest))


class FaceDetector:
    """Finds faces with a RetinaFace network.

    Args:
        network: see ``views.Network``; already on `device`, in evaluation mode.
        device: where it runs.
        threshold_default: score from which a find is a face where the options name none, 0 to 1.
        name: shown to the user.
        reach: height in the network's own pixels from which it finds nearly every face; decides how
            far the photograph is magnified for `min_face`.
        budget: megapixels the first pass may put through the network for one photograph. Where
            min_face asks for more, the search begins at larger faces: see `smallest_searched`.
        confirm: score a face must reach at the second look, too, where all are looked at twice;
            0 for networks that seldom err.
        refine_all: look at each face twice. False leaves out those the first pass saw at a good
            size, for networks whose first look is as good and whose second is expensive.
        scanner, second: quicker forms of `network` for the first look and for the second; None is
            `network` itself.
        proposer: says where the largest levels need to be searched; None searches all of them.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device | str = "cpu",
        threshold_default: float = 0.8,
        name: str = "",
        reach: float = REACH,
        budget: float = 400.0,
        confirm: float = 0.0,
        refine_all: bool = True,
        scanner: Scanner | None = None,
        second: Scanner | None = None,
        proposer: PlaceFinder | None = None,
    ) -> None:
        self.network = Network(network, device, scanner)
        self.second = Network(network, device, second)
        self.proposer = proposer
        self.threshold_default = threshold_default
        self.name = name
        self.reach = reach
        self.budget = budget
        self.confirm = confirm
        self.refine_all = refine_all
        self.notes: list[str] = []
        """What the user should know of how the last search went."""

    @property
    def watch(self) -> Callable[[], None] | None:
        """Called again and again during a search; it may raise, to end one nobody waits for."""
        return self.network.watch

    @watch.setter
    def watch(self, watch: Callable[[], None] | None) -> None:
        self.network.watch = self.second.watch = watch

    def detect(
        self,
        image: NDArray[Any],
        options: DetectOptions | None = None,
        selection: NDArray[Any] | None = None,
    ) -> list[Face]:
        """The faces of `image`, best score first; an empty list where there are none.

        image: (H, W, 3) RGB or (H, W) gray, uint8, uint16 or float32 in [0, 1], any size.
        selection: (H, W), uint8 or bool; only faces whose centre is selected (128 or more) count.
        Raises ImageError for arrays of another form.
        """
        options = options or DetectOptions()
        picture = Picture(image)
        wanted = wanted_rect(picture, options.region, selection)
        if wanted is None:
            return []
        threshold = self.threshold_default if options.threshold is None else options.threshold
        task = Task(
            picture,
            wanted,
            self._finest_scale(wanted, options),
            (0, 1, 2, 3) if options.rotations else (0,),
            threshold,
            guided=threshold >= self.threshold_default * TRUSTED,
        )
        found, looker = self._first_look(task)
        faces = distinct(found)
        faces = faces.take(near_wanted(faces, wanted, selection).nonzero()[0][:MAX_FACES])
        faces = distinct(self._refined(looker, faces))
        return chosen(faces.take(centred(faces, wanted, selection)), options)

    def _first_look(self, task: Task) -> tuple[Candidates, Looker]:
        """What all levels show, nothing suppressed between them, and what takes a second look."""
        levels = pyramid.build_levels(task.picture, task.shrink)
        magnified = [pyramid.magnified(task.picture, times) for times in task.magnifications]
        guide = None
        if self.proposer is not None and task.guided:
            guide = search.guide(self.proposer, levels, magnified, task.wanted, task.quarters)
        found = []
        quick = self.network.scanner is not None
        for level in [*magnified, *levels]:
            places = None if guide is None else guide.of(level)
            if places is None:
                tiles = search.tiles_of(level, task.wanted, entire=level is levels[-1], quick=quick)
                parts = search.search_tiles(
                    self.network, level, tiles, task.quarters, task.threshold
                )
            else:
                parts = search.search_places(
                    self.network, level, places, task.quarters, task.threshold
                )
            found += [seen_well(part, level, finest=level is levels[0]) for part in parts]
        return Candidates.join(found), Crops(self.second, levels)

    def smallest_searched(self, shape: tuple[int, ...], options: DetectOptions) -> float:
        """Height in pixels from which nearly every face is found in a picture of (H, W, ...).

        At least `min_face`; more where that would exceed the budget.
        """
        rect = (0, 0, shape[1], shape[0])
        if options.region is not None:
            x, y, width, height = options.region
            rect = (x, y, min(x + width, shape[1]), min(y + height, shape[0]))
        return max(options.min_face, self.reach / self._finest_scale(rect, options))

    def _finest_scale(self, wanted: Rect, options: DetectOptions) -> float:
        """Network pixels per pixel of the photograph of the finest level: 3, 2, 1, 1/2, 1/3, ..."""
        needed = self.reach / max(options.min_face, 1.0)
        width, height = wanted[2] - wanted[0], wanted[3] - wanted[1]
        megapixels = width * height / 1e6 * (4 if options.rotations else 1)
        affordable = math.sqrt(self.budget / (megapixels * TILE_COST))
        for times, share in MAGNIFICATIONS.items():
            if times - 0.9 < needed and times <= affordable * math.sqrt(share):
                return times
        shrink = min(math.floor(1 / needed), max(width, height) // pyramid.COARSEST_SIDE)
        return 1 / max(shrink, math.ceil(1 / affordable), 1)

    def _refined(self, looker: Looker, faces: Candidates) -> Candidates:
        if self.refine_all or len(faces) == 0:
            return refine(looker, faces, mirror=True, confirm=self.confirm)
        size = faces.sides / faces.scales
        again = (size < 60) | (size > 320)
        looked = refine(looker, faces.take(again), mirror=False, confirm=0)
        boxes, landmarks = faces.boxes.copy(), faces.landmarks.copy()
        boxes[again], landmarks[again] = looked.boxes, looked.landmarks
        return Candidates(boxes, landmarks, faces.scores, faces.scales)
