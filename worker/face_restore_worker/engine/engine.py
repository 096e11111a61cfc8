"""The server's Engine made of the pipeline's Restorer: buffers in, buffers out."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from face_restore_shared.schema import DetectRequest, DetectResult, RestoreRequest, RestoreResult
from face_restore_shared.wire import Buffer

from face_restore_worker.cores import choose_threads, limit_threads

if TYPE_CHECKING:
    from face_restore_worker.pipeline.restore import Restorer
    from face_restore_worker.server.engine_api import ProgressCallback

log = logging.getLogger(__name__)

MOST_LOADED = 2


class RestorerEngine:
    """Keeps a loaded Restorer for each model lately asked for, at most MOST_LOADED.

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
        self._restorers: OrderedDict[tuple[str, ...], Restorer] = OrderedDict()
        self._lock = threading.Lock()  # of _restorers, for describe() from other threads
        self._ready = False

    def describe(self) -> dict[str, Any]:
        """The device, once torch was asked for it, and the names of the loaded models."""
        from face_restore_worker.pipeline.device import describe_device

        with self._lock:
            names = [restorer.model_name for restorer in self._restorers.values()]
        device = describe_device(self._chosen) if self._chosen else {}
        return {"device": device, "models_loaded": list(dict.fromkeys(names))}

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

        restorer = self._restorer(self._model, "auto", "auto")
        gray = np.full((64, 64, 3), 128, np.uint8)
        restorer.detect(gray)
        if self._chosen != "cpu":
            # Kernels are compiled and chosen at first use; a CPU would only lose seconds.
            restorer.restore(gray, options=RestoreOptions(model=self._model, aligned=True))

    def unload(self) -> None:
        """Let go of all models and of the GPU's cached memory."""
        with self._lock:
            restorers = list(self._restorers.values())
            self._restorers.clear()
        for restorer in restorers:
            restorer.unload()
        _empty_caches()

    def run(
        self,
        request: DetectRequest | RestoreRequest,
        buffers: Sequence[Buffer],
        *,
        progress: ProgressCallback,
        cancelled: Callable[[], bool],
    ) -> tuple[DetectResult | RestoreResult, list[Any]]:
        """See server.engine_api.Engine."""
        self._prepare()
        from face_restore_worker.engine import convert

        image = convert.image_array(request.image, buffers[0])
        selection = (
            convert.selection_array(request.image, buffers[1]) if request.selection else None
        )
        if isinstance(request, DetectRequest):
            restorer = self._restorer(self._model, "auto", request.detect.detector, progress)
            progress("detecting", 0, 0, 0.0)
            faces = restorer.detect(image, request.detect, selection=selection)
            return convert.detect_result(image, faces, restorer, request.detect.previews)
        options = request.restore
        restorer = self._restorer(
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
    ) -> Restorer:
        """The Restorer for these, loaded."""
        from face_restore_worker.models.store import ModelStore
        from face_restore_worker.pipeline.restore import Restorer

        store = ModelStore()
        chosen = store.resolve_restorer(model)
        finder = store.resolve_detector(detector)
        parser = store.resolve_parser()
        # A model that was imported anew, or a parser installed meanwhile, must be seen.
        stamps = [_stamp(path) for path in (chosen.path, finder.path, parser and parser.path)]
        key = (precision, *stamps)
        with self._lock:
            restorer = self._restorers.get(key)
            if restorer is not None:
                self._restorers.move_to_end(key)
                return restorer
        if progress is not None:
            progress("loading-model", 0, 0, 0.0)
        while len(self._restorers) >= MOST_LOADED:
            with self._lock:
                _, oldest = self._restorers.popitem(last=False)
            oldest.unload()
            _empty_caches()
        restorer = Restorer(
            model=model, device=self._chosen, precision=precision, detector=detector
        )
        restorer.load()
        with self._lock:
            self._restorers[key] = restorer
        log.info("Loaded %s on %s", restorer.model_name, restorer.device_name)
        return restorer


def _stamp(path: Any) -> str:
    if path is None:
        return ""
    info = path.stat()
    return f"{path}:{info.st_size}:{info.st_mtime_ns}"


def _empty_caches() -> None:
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
