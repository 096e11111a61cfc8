"""The models a Restorer works with: resolved by name, loaded when first needed, kept, let go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from face_restore_worker.errors import ModelError
from face_restore_worker.pipeline.backends import FaceNetwork, Network, load_network
from face_restore_worker.pipeline.device import choose_device, choose_precision, free_caches

if TYPE_CHECKING:
    from face_restore_worker.models.store import ModelStore, ResolvedModel
    from face_restore_worker.pipeline.detect import FaceDetector
    from face_restore_worker.pipeline.parsing import FaceParser


class LoadedModels:
    """One restorer, one detector and the parser, on one device; arguments as for ``Restorer``.

    Raises:
        DeviceError: the device or precision is unknown or not there.
        ModelError: the model is unknown or not installed.
    """

    def __init__(
        self,
        model: str,
        device: str,
        precision: str,
        detector: str,
        models_dir: str | Path | None,
        given: Network | None,
    ) -> None:
        self._model = model
        self._precision = precision
        self._detector = detector
        self._models_dir = models_dir
        self._given = given
        if given is not None and device == "auto":
            device = str(getattr(given, "device", "cpu"))  # where the caller has put it
        self._device = choose_device(device)
        if precision != "auto":
            choose_precision(precision, self._device)  # refuse a wrong one now
        self._network: FaceNetwork | None = None
        self._network_key: tuple[str, str] | None = None
        self._resolved: ResolvedModel | None = None
        self._finder: FaceDetector | None = None
        self._finder_key = ""
        self._parser: FaceParser | None = None
        self._parser_known = False
        if given is None:
            self._resolve("auto")

    @property
    def is_given(self) -> bool:
        """Whether the network was given instead of a model."""
        return self._given is not None

    @property
    def is_loaded(self) -> bool:
        """Whether some network is loaded."""
        return self._network is not None

    def identity(self, model: str = "auto") -> tuple[str, str, str | None]:
        """The restorer's id, its name to show, and what the user should know about it."""
        if self._given is not None:
            return "network", "given network", None
        resolved = self._resolve(model)
        return resolved.id, resolved.name, resolved.note

    def detector_name(self) -> str:
        """The name of the detector that is loaded, or would be."""
        if self._finder is not None:
            return self._finder.name
        return self._store().resolve_detector(self._detector).name

    def device_in_use(self) -> str:
        """Where the network runs, or would run."""
        return self._network.device if self._network else self._device

    def rest(self) -> None:
        """Let go of memory that the network keeps from face to face."""
        if self._network is not None:
            self._network.rest()

    def unload(self) -> None:
        """Let go of everything."""
        self._network = self._network_key = None
        self._finder, self._finder_key = None, ""
        self._parser, self._parser_known = None, False
        free_caches(self._device)

    def network(self, model: str = "auto", precision: str = "auto") -> FaceNetwork:
        """The restorer; "auto" is what the Restorer was made with."""
        if precision == "auto":
            precision = self._precision
        path = "" if self._given is not None else str(self._resolve(model).path)
        key = (path, precision)
        if self._network is None or self._network_key != key:
            self._network = None  # two networks at once might not fit
            self._network = self._new_network(model, precision)
            self._network_key = key
        return self._network

    def _new_network(self, model: str, precision: str) -> FaceNetwork:
        if self._given is not None:
            given = self._given
            return FaceNetwork(lambda device, precision: given, self._device)
        resolved = self._resolve(model)
        if precision == "auto" and resolved.architecture == "local-restorer":
            precision = "fp32"  # it is small: nothing is gained by less
        return load_network(resolved, self._device, choose_precision(precision, self._device))

    def detector(self, name: str = "auto") -> FaceDetector:
        """The detector; "auto" is what the Restorer was made with."""
        from face_restore_worker.pipeline.detect import load_detector

        wanted = self._detector if name == "auto" else name
        if self._finder is None or self._finder_key != wanted:
            resolved = self._store().resolve_detector(wanted)
            self._finder = load_detector(
                resolved.path, resolved.id, device=self._device, name=resolved.name
            )
            self._finder_key = wanted
        return self._finder

    def parser(self, wish: str = "auto") -> FaceParser | None:
        """ParseNet, None where it is not installed; wish "parse" insists (ModelError)."""
        if not self._parser_known:
            resolved = self._store().resolve_parser()
            if resolved is not None:
                from face_restore_worker.pipeline.facexlib_nets import load_parsenet
                from face_restore_worker.pipeline.parsing import FaceParser

                network = load_parsenet(resolved.path, device=self._device)
                self._parser = FaceParser(network, self._device)
            self._parser_known = True
        if wish == "parse" and self._parser is None:
            raise ModelError(
                "The mask by face parts needs ParseNet, which is not installed.",
                hint="Run `face-restore models download parsenet`, or leave the mask at auto.",
                code="model-missing",
            )
        return self._parser

    def _store(self) -> ModelStore:
        from face_restore_worker.models.store import ModelStore

        return ModelStore(self._models_dir)

    def _resolve(self, model: str) -> ResolvedModel:
        if model not in ("auto", self._model):
            return self._store().resolve_restorer(model)
        if self._resolved is None:
            self._resolved = self._store().resolve_restorer(self._model)
        return self._resolved
