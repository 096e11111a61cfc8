"""The Restorer: faces of a photograph found, restored one by one, and handed back as patches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from face_restore_shared.schema import DetectOptions, FaceTarget, RestoreOptions
from numpy.typing import NDArray

from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.align import alignment_matrix, template_landmarks
from face_restore_worker.pipeline.backends import FaceNetwork, Network
from face_restore_worker.pipeline.device import device_name
from face_restore_worker.pipeline.gpu_steps import steps_of
from face_restore_worker.pipeline.inputs import checked_faces, checked_image
from face_restore_worker.pipeline.loaded import LoadedModels
from face_restore_worker.pipeline.overlap import overlapped
from face_restore_worker.pipeline.paste import whole_picture
from face_restore_worker.pipeline.steps import Job, Progress, Run, Work
from face_restore_worker.pipeline.types import Face, RestoreOutcome

if TYPE_CHECKING:
    from face_restore_worker.pipeline.detect import FaceDetector

Image = NDArray[Any]
Float32 = NDArray[np.float32]

_DETECTION_SHARE = 0.1  # of a picture's progress
TOLD_FROM = 1.5
"""The user is told where faces are only searched from this much above the size asked for."""
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

    def rest(self) -> None:
        """Let go of memory kept from face to face; models stay, the next face takes it anew."""
        with self._lock:
            self._models.rest()

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
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Face]:
        """The faces of a picture, best score first.

        Args:
            image: (H, W, 3) RGB or (H, W) or (H, W, 1) gray; uint8, uint16, or float32 in [0, 1].
            selection: (H, W) uint8 or bool; only faces whose centre is selected count.
            cancelled: asked again and again.

        Raises:
            ImageError: the picture cannot be used. CheckpointError, ModelError: no detector.
            Cancelled.
        """
        with self._lock:
            options = options or DetectOptions()
            finder = self._models.detector(options.detector)
            picture = checked_image(image)
            with _watched(finder, Run(None, cancelled)):
                return finder.detect(picture, options, selection)

    def search_notes(
        self,
        image: Image,
        options: DetectOptions | None = None,
        selection: NDArray[Any] | None = None,
    ) -> list[str]:
        """What the user should know of how ``detect`` searches such a picture, and how the last
        search went; mostly nothing."""
        with self._lock:
            options = options or DetectOptions()
            finder = self._models.detector(options.detector)
            return [*_search_notes(finder, checked_image(image), options, selection), *finder.notes]

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
            image: as for ``detect``; at least 16 x 16 pixels, at most 268 megapixels.
            faces: those to restore; None for all that ``detect`` finds.
            options, detect: how to restore, how to look for faces; None for the defaults.
            selection: as for ``detect``.
            progress: called with stage, face (from 1), number of faces, fraction done.
            cancelled: asked before each face, and again and again while faces are searched.

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
            run = Run(progress, cancelled)
            network = self._prepare(run, options)
            if options.aligned:
                points = template_landmarks(options.template, network.size)
                face, matrix = whole_picture(picture.shape, network.size, points)
                run.outcome.faces = [face]
                jobs = [Job(0, 1, face, matrix)]
            else:
                found = self._faces(run, picture, given, detect, selection)
                run.outcome.faces = found
                jobs = list(self._alignable(run, found, options, network.size))
            run.faces = len(jobs)
            work = steps_of(Work(self._models, run, picture, network, options))
            for patch, notes in overlapped(jobs, work.align, work.restore, work.paste):
                run.keep(patch, notes)
            run.report("pasting", 1.0)
            return run.outcome

    def _prepare(self, run: Run, options: RestoreOptions) -> FaceNetwork:
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
        run: Run,
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
        run.outcome.notes += _search_notes(finder, picture, options, selection)
        run.report("detecting", 0.0)
        with run.timed("detecting"), _watched(finder, run):
            found = finder.detect(picture, options, selection)
        run.outcome.notes += finder.notes
        run.outcome.detector = finder.name
        run.done = _DETECTION_SHARE
        if not found:
            run.outcome.notes.append(NO_FACE)
        return found

    def _alignable(
        self, run: Run, faces: list[Face], options: RestoreOptions, size: int
    ) -> Iterator[Job]:
        index = 0
        for number, face in enumerate(faces, 1):
            strength = options.strength if face.strength is None else face.strength
            if strength == 0:
                continue  # would change nothing
            try:
                matrix = alignment_matrix(face.landmarks, options.template, size)
            except ImageError as error:
                run.outcome.notes.append(f"Face {number} was left alone: {error.message}")
                continue
            yield Job(index, number, face, matrix)
            index += 1


@contextmanager
def _watched(finder: FaceDetector, run: Run) -> Iterator[None]:
    """A search that ends when the run is cancelled."""
    finder.watch = run.check_cancelled
    try:
        yield
    finally:
        finder.watch = None


def _search_notes(
    finder: FaceDetector, picture: Image, options: DetectOptions, selection: NDArray[Any] | None
) -> list[str]:
    if selection is not None and options.region is None:
        selected = selection if selection.dtype == np.bool_ else selection >= 128
        x, y, width, height = cv2.boundingRect(selected.astype(np.uint8))
        options = replace(options, region=(x, y, max(width, 1), max(height, 1)))
    smallest = finder.smallest_searched(picture.shape, options)
    if smallest <= TOLD_FROM * options.min_face:
        return []
    from face_restore_worker.pipeline.detect import PROFILES

    is_light = finder.budget in PROFILES["retinaface-mobile0.25"].budgets
    helps = "A selection" if is_light else "The light detector or a selection"
    return [
        f"{finder.name} looked for faces from about {smallest:.0f} pixels only: smaller ones would "
        f"take too long in so large a picture. {helps} of a part finds them."
    ]
