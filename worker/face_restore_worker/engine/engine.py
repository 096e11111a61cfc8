"""The server's Engine made of the pipeline's Restorer: buffers in, buffers out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import DetectRequest, DetectResult, RestoreRequest, RestoreResult
from face_restore_shared.wire import Buffer

from face_restore_worker.cores import choose_threads, limit_threads
from face_restore_worker.engine.cache import RestorerCache
from face_restore_worker.engine.failures import out_of_memory

if TYPE_CHECKING:
    from face_restore_worker.pipeline.restore import Restorer
    from face_restore_worker.server.engine_api import ProgressCallback

log = logging.getLogger(__name__)


class RestorerEngine:
    """Keeps a loaded Restorer for each model lately asked for, see RestorerCache.

    device: as for Restorer. model: the one to load first. threads: as for cores.choose_threads.
    Making it imports nothing heavy; torch comes with `warm_up` or the first job.
    Raises FaceRestoreError where the environment asks for an impossible number of threads.
    """

    def __init__(
        self, device: str = "auto", model: str = "auto", threads: int | None = None
    ) -> None:
        self._device = device
        self._model = model
        self._threads = choose_threads(threads)
        self._chosen = ""
        self._restorers = RestorerCache()
        self._ready = False

    def describe(self) -> dict[str, Any]:
        """The device, once torch was asked for it, and the names of the loaded models."""
        from face_restore_worker.pipeline.device import describe_device

        device = describe_device(self._chosen) if self._chosen else {}
        return {"device": device, "models_loaded": self._restorers.names()}

    def models(self) -> list[dict[str, Any]]:
        """The catalogue and what of it is installed."""
        from face_restore_worker.models.store import ModelStore

        return ModelStore().describe()

    def warm_up(self) -> None:
        """Import torch, load the default models and run them once on a small picture.

        So the first picture does not pay for what is initialised at first use.
        """
        self._prepare()
        import numpy as np
        from face_restore_shared.schema import RestoreOptions

        restorer, _ = self._restorer(self._model, "auto", "auto")
        gray = np.full((64, 64, 3), 128, np.uint8)
        restorer.detect(gray)
        if self._chosen != "cpu":
            # Kernels are compiled and chosen at first use; a CPU would only lose seconds.
            restorer.restore(gray, options=RestoreOptions(model=self._model, aligned=True))

    def rest(self) -> None:
        """Let go of the memory that the networks keep from face to face."""
        self._restorers.rest()

    def unload(self) -> None:
        """Let go of all models and of the GPU's cached memory."""
        self._restorers.clear()

    def run(
        self,
        request: DetectRequest | RestoreRequest,
        buffers: Sequence[Buffer],
        *,
        progress: ProgressCallback,
        cancelled: Callable[[], bool],
    ) -> tuple[DetectResult | RestoreResult, list[Any]]:
        """See server.engine_api.Engine."""
        try:
            return self._run(request, buffers, progress, cancelled)
        except Exception as error:
            shown = out_of_memory(error)
            if shown is None or isinstance(error, FaceRestoreError):
                raise
            raise shown from error

    def _run(
        self,
        request: DetectRequest | RestoreRequest,
        buffers: Sequence[Buffer],
        progress: ProgressCallback,
        cancelled: Callable[[], bool],
    ) -> tuple[DetectResult | RestoreResult, list[Any]]:
        self._prepare()
        from face_restore_worker.engine import convert

        image = convert.image_array(request.image, buffers[0])
        selection = (
            convert.selection_array(request.image, buffers[1]) if request.selection else None
        )
        if isinstance(request, DetectRequest):
            restorer, note = self._restorer(self._model, "auto", request.detect.detector, progress)
            progress("detecting", 0, 0, 0.0)
            faces = restorer.detect(image, request.detect, selection=selection, cancelled=cancelled)
            notes = restorer.search_notes(image, request.detect, selection)
            notes += [] if note is None else [note]
            return convert.detect_result(image, faces, restorer, request.detect.previews, notes)
        options = request.restore
        restorer, note = self._restorer(
            self._wanted(options.model), options.precision, request.detect.detector, progress
        )
        outcome = restorer.restore(
            image,
            None if request.faces is None else [convert.face(f) for f in request.faces],
            options=options,
            detect=request.detect,
            selection=selection,
            progress=progress,
            cancelled=cancelled,
        )
        if note is not None:
            outcome.notes.append(note)
        return convert.restore_result(outcome, options)

    def _wanted(self, model: str) -> str:
        """ "auto" means what the worker was started with."""
        return self._model if model == "auto" else model

    def _prepare(self) -> None:
        """Import torch and choose the device, once; raises DeviceError."""
        if self._ready:
            return
        from face_restore_worker.pipeline.device import choose_device

        limit_threads(self._threads)
        self._chosen = choose_device(self._device)
        self._ready = True

    def _restorer(
        self, model: str, precision: str, detector: str, progress: ProgressCallback | None = None
    ) -> tuple[Restorer, str | None]:
        """The Restorer for these, loaded, and a sentence for the user."""
        from face_restore_worker.models.store import ModelStore
        from face_restore_worker.pipeline.restore import Restorer

        store = ModelStore()
        chosen = store.resolve_restorer(model)
        finder = store.resolve_detector(detector)
        parser = store.resolve_parser()

        def load() -> Restorer:
            if progress is not None:
                progress("loading-model", 0, 0, 0.0)
            restorer = Restorer(
                model=model, device=self._chosen, precision=precision, detector=detector
            )
            restorer.load()
            log.info("Loaded %s on %s", restorer.model_name, restorer.device_name)
            return restorer

        # A model that was imported anew, or a parser installed meanwhile, must be seen.
        files = (chosen.path, finder.path, None if parser is None else parser.path)
        return self._restorers.get(precision, files, load)
