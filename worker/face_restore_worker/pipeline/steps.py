"""One face's way from the photograph to its patch in three steps, and the job's bookkeeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from face_restore_shared.schema import RestoreOptions
from numpy.typing import NDArray

from face_restore_worker.errors import Cancelled, ImageError
from face_restore_worker.pipeline.backends import FaceNetwork
from face_restore_worker.pipeline.loaded import LoadedModels
from face_restore_worker.pipeline.mask import covers_face, full_mask, oval_mask, parse_mask
from face_restore_worker.pipeline.paste import Aligned, align_face, bring_back, finish_crop
from face_restore_worker.pipeline.types import Face, Patch, RestoreOutcome

if TYPE_CHECKING:
    from face_restore_worker.pipeline.parsing import FaceParser

Image = NDArray[Any]
Float32 = NDArray[np.float32]
#: stage (see face_restore_shared.schema), face counted from 1, number of faces, fraction 0 to 1.
Progress = Callable[[str, int, int, float], None]

_OUTSIDE = "Face {} was left alone: it lies outside the picture."
_NOT_PARSED = "The face parser did not recognise face {}: its mask is an oval."


@dataclass(frozen=True, eq=False)
class Job:
    """A face to restore. index: among those, from 0; number: among all found, from 1."""

    index: int
    number: int
    face: Face
    matrix: NDArray[np.float64]


@dataclass(eq=False)
class Restored:
    """A face between network and photograph; aligned and output are None where it was left out."""

    aligned: Aligned | None = None
    output: Float32 | None = None
    note: str | None = None
    notes: list[str] = field(default_factory=list)


class Work:
    """The three steps of a face; each face's steps run in order, faces beside each other."""

    def __init__(
        self,
        models: LoadedModels,
        run: Run,
        picture: Image,
        network: FaceNetwork,
        options: RestoreOptions,
    ) -> None:
        self.run, self.picture, self.network, self.options = run, picture, network, options
        wanted = options.mask != "oval" and not options.aligned
        self.parser = models.parser(options.mask) if wanted else None

    def align(self, job: Job) -> Aligned | ImageError:
        """The aligned crop, or why there is none."""
        try:
            with self.run.timed("aligning"):
                return align_face(self.picture, job.matrix, self.network.size)
        except ImageError as error:
            return error

    def restore(self, job: Job, aligned: Aligned | ImageError) -> Restored:
        """The network's answer. Raises Cancelled before it begins."""
        self.run.next_face(job.index, job.number)
        return self.answer(job, aligned)

    def answer(self, job: Job, aligned: Aligned | ImageError) -> Restored:
        """The network's answer for the face begun."""
        if isinstance(aligned, ImageError):
            return Restored(notes=[f"Face {job.number} was left alone: {aligned.message}"])
        self.run.report("restoring", 0.03)
        with self.run.timed("restoring"):
            output, note = self.network.restore(aligned.rgb)
        self.run.report("pasting", 0.95)
        return Restored(aligned, output, note, [note] if note else [])

    def paste(self, job: Job, done: Restored) -> tuple[Patch | None, list[str]]:
        """The face's patch, and what the user should know about it."""
        aligned, output, notes = done.aligned, done.output, done.notes
        if aligned is None or output is None:
            return None, notes
        options = self.options
        with self.run.timed("masking"):
            mask = None if options.aligned else self._mask(job, output, notes)
        with self.run.timed("pasting"):
            weight = full_mask(aligned.size) if mask is None else mask
            restored = finish_crop(aligned, output, weight, options.keep_colour)
            patch = bring_back(self.picture, aligned, restored, mask)
        if patch is None:
            return None, [*notes, _OUTSIDE.format(job.number)]
        result = self._patch(job, *patch, done.note)
        if options.return_aligned:
            result.aligned_input = aligned.rgb
            result.aligned_output = np.clip(replace(aligned, crop=restored.crop).rgb, 0.0, 1.0)
        return result, notes

    def _patch(
        self, job: Job, x: int, y: int, rgb: Float32, mask: Float32, note: str | None
    ) -> Patch:
        own = job.face.strength
        strength = self.options.strength if own is None else own
        return Patch(job.face, job.matrix, self.network.size, x, y, rgb, mask, strength, note)

    def _mask(self, job: Job, output: Float32, notes: list[str]) -> Float32:
        size, options = output.shape[0], self.options
        if self.parser is not None:
            mask = parse_mask(_parsed(self.parser, output), size, options.mask_softness)
            if covers_face(mask, options.template):
                return mask
            notes.append(_NOT_PARSED.format(job.number))
        return oval_mask(size, options.template, options.mask_softness)


class Run:
    """One picture's bookkeeping: outcome, progress, cancellation, timings."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self.outcome = RestoreOutcome()
        self.done = 0.0  # fraction of the picture before the current face
        self.face = 0  # among those to restore
        self.faces = 0
        self.number = 0  # among all
        self._timing = threading.Lock()  # steps of different faces end at any time
        self._progress = progress
        self._cancelled = cancelled
        self._start = 0.0

    def next_face(self, index: int, number: int) -> None:
        """Begin a face; raises Cancelled."""
        if index == 0:
            self._start = self.done
        self.check_cancelled()
        self.face, self.number = index + 1, number
        self.done = self._start + (1 - self._start) * index / self.faces
        self.report("aligning", 0.0)

    def keep(self, patch: Patch | None, notes: list[str]) -> None:
        """Add a face's patch and its notes to the outcome."""
        self.outcome.notes += [note for note in notes if note not in self.outcome.notes]
        if patch is not None:
            self.outcome.patches.append(patch)

    def report(self, stage: str, fraction: float) -> None:
        """Tell a stage; fraction: of the current face, or 1 at the very end."""
        if self._progress is None:
            return
        share = (1 - self._start) / self.faces if self.faces else 0.0
        overall = min(1.0, self.done + share * fraction)
        if stage == "pasting" and fraction == 1.0:
            overall = 1.0
        self._progress(stage, self.face, self.faces, overall)

    def check_cancelled(self) -> None:
        """Raise Cancelled where the caller wants it."""
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("The restoration was cancelled.")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to the outcome's timings; from any thread."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._timing:
                timings = self.outcome.timings
                timings[stage] = timings.get(stage, 0.0) + spent


def _parsed(parser: FaceParser, crop: Float32) -> Float32:
    import cv2

    if crop.shape[0] > 512:  # the parser would bring its answer back to the crop's size
        crop = cv2.resize(crop, (512, 512), interpolation=cv2.INTER_AREA)
    return parser(crop)
