"""The Restorer: faces of a photograph found, restored one by one, and handed back as patches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from face_restore_shared.schema import DetectOptions, FaceTarget, RestoreOptions
from numpy.typing import NDArray

from face_restore_worker.errors import Cancelled, ImageError
from face_restore_worker.pipeline.align import alignment_matrix, template_landmarks
from face_restore_worker.pipeline.backends import FaceNetwork, Network
from face_restore_worker.pipeline.device import device_name
from face_restore_worker.pipeline.inputs import checked_faces, checked_image
from face_restore_worker.pipeline.loaded import LoadedModels
from face_restore_worker.pipeline.mask import covers_face, full_mask, oval_mask, parse_mask
from face_restore_worker.pipeline.paste import align_face, bring_back, finish_crop, whole_picture
from face_restore_worker.pipeline.types import Face, Patch, RestoreOutcome

if TYPE_CHECKING:
    from face_restore_worker.pipeline.parsing import FaceParser

Image = NDArray[Any]
Float32 = NDArray[np.float32]
#: stage (see face_restore_shared.schema), face counted from 1, number of faces, fraction 0 to 1.
Progress = Callable[[str, int, int, float], None]

_DETECTION_SHARE = 0.1  # of a picture's progress
NO_FACE = "No face was found: nothing was changed."


class Restorer:
    """Restores faces; keeps its models loaded between pictures. One picture at a time.

    Args:
        model: "auto", a model's id, or the path of a checkpoint.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        detector: "auto", a detector's id, or the path of a checkpoint.
        models_dir: folder of the installed models; None for the user's own.
        network: used instead of a model: a callable from (N, 3, S, S) RGB in [-1, 1] to the same
            shape, with an attribute ``size`` (S).

    Nothing is loaded before it is needed, or before ``load``.

    Raises:
        DeviceError: the device or precision is unknown or not there.
        ModelError: the model or detector is unknown or not installed.
    """

    def __init__(
        self,
        model: str | Path = "auto",
        device: str = "auto",
        precision: str = "auto",
        detector: str | Path = "auto",
        models_dir: str | Path | None = None,
        network: Network | None = None,
    ) -> None:
        self._models = LoadedModels(
            str(model), device, precision, str(detector), models_dir, network
        )
        self._lock = threading.RLock()

    # -- what it is ------------------------------------------------------------------------------

    @property
    def model_id(self) -> str:
        """The catalogue's id of the model, "file" for a file, "network" for a given network."""
        return self._models.identity()[0]

    @property
    def model_name(self) -> str:
        """The model's name to show: "GPEN-BFR-2048", "built-in, not GPEN"."""
        return self._models.identity()[1]

    @property
    def detector_name(self) -> str:
        """The name of the detector that is loaded, or would be."""
        return self._models.detector_name()

    @property
    def device_name(self) -> str:
        """The name of the device the network runs on."""
        return device_name(self._models.device_in_use())

    # -- loading ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Load network, detector and parser now. Raises CheckpointError, ModelError."""
        with self._lock:
            self._models.network()
            self._models.parser()
            if not self._models.is_given:
                self._models.detector()

    def unload(self) -> None:
        """Let go of all models and of the device's cached memory; the next call loads again."""
        with self._lock:
            self._models.unload()

    # -- work ------------------------------------------------------------------------------------

    def detect(
        self,
        image: Image,
        options: DetectOptions | None = None,
        *,
        selection: NDArray[Any] | None = None,
    ) -> list[Face]:
        """The faces of a picture, best score first.

        Args:
            image: (H, W, 3) RGB or (H, W) or (H, W, 1) gray; uint8, uint16, or float32 in [0, 1].
            selection: (H, W) uint8 or bool; only faces whose centre is selected count.

        Raises:
            ImageError: the picture cannot be used. CheckpointError, ModelError: no detector.
        """
        with self._lock:
            options = options or DetectOptions()
            finder = self._models.detector(options.detector)
            return finder.detect(checked_image(image), options, selection)

    def restore(
        self,
        image: Image,
        faces: Iterable[Face | FaceTarget] | None = None,
        *,
        options: RestoreOptions | None = None,
        detect: DetectOptions | None = None,
        selection: NDArray[Any] | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> RestoreOutcome:
        """Restore the faces of a picture, which itself is left alone: see ``composite``.

        Args:
            image: as for ``detect``; at least 16 x 16 pixels, at most 100 megapixels.
            faces: those to restore; None for all that ``detect`` finds.
            options, detect: how to restore, how to look for faces; None for the defaults.
            selection: as for ``detect``.
            progress: called with stage, face (from 1), number of faces, fraction done.
            cancelled: asked before each face.

        Returns:
            The patches, and notes for the user. A picture without a face gives no patch and a
            note; so does a face that cannot be aligned, and the others are restored.

        Raises:
            ImageError, CheckpointError, ModelError, DeviceError; Cancelled.
        """
        options = options or RestoreOptions()
        picture = checked_image(image)
        given = None if faces is None else checked_faces(faces)
        with self._lock:
            run = _Run(progress, cancelled)
            network = self._prepare(run, options)
            if options.aligned:
                points = template_landmarks(options.template, network.size)
                face, matrix = whole_picture(picture.shape, network.size, points)
                run.outcome.faces = [face]
                jobs = [(1, face, matrix)]
            else:
                found = self._faces(run, picture, given, detect, selection)
                run.outcome.faces = found
                jobs = list(self._alignable(run, found, options, network.size))
            for index, (number, face, matrix) in enumerate(jobs):
                run.next_face(index, len(jobs), number)
                self._one(run, picture, face, matrix, network, options)
            run.report("pasting", 1.0)
            return run.outcome

    def _prepare(self, run: _Run, options: RestoreOptions) -> FaceNetwork:
        """The network, loaded; the outcome's names and notes."""
        models = self._models
        with run.timed("loading-model"):
            if not models.is_loaded:
                run.report("loading-model", 0.0)
            network = models.network(options.model, options.precision)
            if options.mask != "oval" and not options.aligned:
                models.parser(options.mask)
        outcome = run.outcome
        outcome.device = device_name(network.device)
        outcome.model_id, outcome.model_name, note = models.identity(options.model)
        outcome.notes += network.notes
        if note:
            outcome.notes.append(note)
        return network

    def _faces(
        self,
        run: _Run,
        picture: Image,
        given: list[Face] | None,
        options: DetectOptions | None,
        selection: NDArray[Any] | None,
    ) -> list[Face]:
        if given is not None:
            if not given:
                run.outcome.notes.append("No face was chosen: nothing was changed.")
            return given
        run.check_cancelled()
        options = options or DetectOptions()
        with run.timed("loading-model"):
            finder = self._models.detector(options.detector)
        run.report("detecting", 0.0)
        with run.timed("detecting"):
            found = finder.detect(picture, options, selection)
        run.outcome.detector = finder.name
        run.done = _DETECTION_SHARE
        if not found:
            run.outcome.notes.append(NO_FACE)
        return found

    def _alignable(
        self, run: _Run, faces: list[Face], options: RestoreOptions, size: int
    ) -> Iterator[tuple[int, Face, NDArray[np.float64]]]:
        for number, face in enumerate(faces, 1):
            strength = options.strength if face.strength is None else face.strength
            if strength == 0:
                continue  # would change nothing
            try:
                matrix = alignment_matrix(face.landmarks, options.template, size)
            except ImageError as error:
                run.outcome.notes.append(f"Face {number} was left alone: {error.message}")
                continue
            yield number, face, matrix

    def _one(
        self,
        run: _Run,
        picture: Image,
        face: Face,
        matrix: NDArray[np.float64],
        network: FaceNetwork,
        options: RestoreOptions,
    ) -> None:
        """Restore one face and add its patch to the outcome."""
        run.report("aligning", 0.0)
        try:
            with run.timed("aligning"):
                aligned = align_face(picture, matrix, network.size)
        except ImageError as error:
            run.outcome.notes.append(f"Face {run.number} was left alone: {error.message}")
            return
        run.report("restoring", 0.03)
        with run.timed("restoring"):
            output, note = network.restore(aligned.rgb)
        if note and note not in run.outcome.notes:
            run.outcome.notes.append(note)
        run.report("pasting", 0.95)
        with run.timed("masking"):
            mask = None if options.aligned else self._mask(run, output, options)
        with run.timed("pasting"):
            weight = full_mask(network.size) if mask is None else mask
            restored = finish_crop(aligned, output, weight, options.keep_colour)
            patch = bring_back(picture, aligned, restored, mask)
        if patch is None:
            run.outcome.notes.append(
                f"Face {run.number} was left alone: it lies outside the picture."
            )
            return
        x, y, rgb, soft = patch
        strength = options.strength if face.strength is None else face.strength
        result = Patch(face, matrix, network.size, x, y, rgb, soft, strength, note)
        if options.return_aligned:
            result.aligned_input = aligned.rgb
            result.aligned_output = np.clip(replace(aligned, crop=restored).rgb, 0.0, 1.0)
        run.outcome.patches.append(result)

    def _mask(self, run: _Run, output: Float32, options: RestoreOptions) -> Float32:
        size = output.shape[0]
        parser = None if options.mask == "oval" else self._models.parser(options.mask)
        if parser is not None:
            mask = parse_mask(_parsed(parser, output), size, options.mask_softness)
            if covers_face(mask, options.template):
                return mask
            run.outcome.notes.append(
                f"The face parser did not recognise face {run.number}: its mask is an oval."
            )
        return oval_mask(size, options.template, options.mask_softness)


class _Run:
    """One picture's bookkeeping: outcome, progress, cancellation, timings."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self.outcome = RestoreOutcome()
        self.done = 0.0  # fraction of the picture before the current face
        self.face = 0  # among those to restore
        self.faces = 0
        self.number = 0  # among all
        self._progress = progress
        self._cancelled = cancelled
        self._start = 0.0

    def next_face(self, index: int, count: int, number: int) -> None:
        """Begin a face; raises Cancelled."""
        if index == 0:
            self._start = self.done
        self.check_cancelled()
        self.face, self.faces, self.number = index + 1, count, number
        self.done = self._start + (1 - self._start) * index / count

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
        """Add the time spent inside to the outcome's timings."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.outcome.timings[stage] = self.outcome.timings.get(stage, 0.0) + spent


def _parsed(parser: FaceParser, crop: Float32) -> Float32:
    import cv2

    if crop.shape[0] > 512:  # the parser would bring its answer back to the crop's size
        crop = cv2.resize(crop, (512, 512), interpolation=cv2.INTER_AREA)
    return parser(crop)
