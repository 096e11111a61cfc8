"""The models on this machine: which are installed, where they lie, which one is meant.

Each installed model is ``ID.safetensors`` with ``ID.json`` next to it (see ``records.ModelRecord``)
in one folder. The built-in models lie inside the package. No torch is imported here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_worker.errors import ModelError
from face_restore_worker.models import files
from face_restore_worker.models.catalogue import Catalogue, ModelEntry, load_catalogue
from face_restore_worker.models.records import ModelRecord

if TYPE_CHECKING:
    from filelock import BaseFileLock

BUILTIN_DIR = Path(__file__).with_name("builtin")
DEFAULT_RESTORER = "gpen-bfr-2048"
DEFAULT_DETECTORS = ("retinaface-resnet50", "retinaface-mobile0.25")
DEFAULT_PARSER = "parsenet"
GET_THE_REAL_ONE = (
    "The built-in restorer is not GPEN. To get the real one: "
    "`face-restore models download gpen-bfr-2048`, or `face-restore models import FILE`."
)


@dataclass(frozen=True)
class InstalledModel:
    """A model that can be used now. ``record`` is None for built-in models."""

    entry: ModelEntry
    path: Path
    record: ModelRecord | None = None

    @property
    def id(self) -> str:
        """The catalogue's id."""
        return self.entry.id


@dataclass(frozen=True)
class ResolvedModel:
    """The model a name stands for.

    id: the catalogue's id, or "file" for a file given by its path.
    name: the name to show: "GPEN-BFR-2048", "built-in, not GPEN", or the file's own name.
    path: a .safetensors file, or the file given (which may be .pth, .pt or .onnx).
    architecture: see ``ModelEntry``; which network loads it. None for a file given by its path
        unless it is a safetensors file that tells: the loader finds out.
    size: side of the aligned crop in pixels, None where unknown.
    note: one sentence the user should read once, or None.
    """

    id: str
    name: str
    path: Path
    kind: str
    builtin: bool = False
    architecture: str | None = None
    size: int | None = None
    note: str | None = None


class ModelStore:
    """The folder of models.

    Args:
        root: the folder; None for the user's own (``FACE_RESTORE_MODELS`` or the data folder).
        catalogue: a catalogue or a path to one; None for the package's.
        builtin_dir: folder of the built-in models; None for the package's.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        catalogue: Catalogue | str | Path | None = None,
        builtin_dir: Path | None = None,
    ) -> None:
        if root is None:
            from face_restore_shared.paths import models_dir

            root = models_dir()
        self.root = Path(root).expanduser()
        if not isinstance(catalogue, Catalogue):
            catalogue = load_catalogue(catalogue)
        self.catalogue = catalogue
        self.builtin_dir = builtin_dir or BUILTIN_DIR

    # -- what there is ---------------------------------------------------------------------------

    def model_path(self, entry: ModelEntry) -> Path:
        """Where the model's tensors lie, or would lie."""
        return (self.builtin_dir if entry.builtin else self.root) / f"{entry.id}.safetensors"

    def record_path(self, entry: ModelEntry) -> Path:
        """Where the model's record lies, or would lie."""
        return self.model_path(entry).with_suffix(".json")

    def find_installed(self, entry: ModelEntry) -> InstalledModel | None:
        """Return the model when it can be used now. Raises ``ModelError`` for a damaged record."""
        path = self.model_path(entry)
        if not path.is_file():
            return None
        if entry.builtin:
            return InstalledModel(entry, path)
        record = ModelRecord.read(self.record_path(entry))
        return InstalledModel(entry, path, record) if record is not None else None

    def installed(self) -> list[InstalledModel]:
        """Every usable model, built-in ones included, in the catalogue's order."""
        found = []
        for entry in self.catalogue:
            # One damaged record must not hide the other models; `verify` reports it.
            with contextlib.suppress(ModelError):
                model = self.find_installed(entry)
                if model is not None:
                    found.append(model)
        return found

    def present_ids(self) -> list[str]:
        """Ids of every model with a file here, usable or not: what there is to verify."""
        return [entry.id for entry in self.catalogue if self.model_path(entry).is_file()]

    def path(self, name: str) -> Path:
        """Path of an installed model's safetensors file. Raises ``ModelError``."""
        return self._require(self.catalogue.get(name)).path

    def describe(self) -> list[dict[str, Any]]:
        """The catalogue with what is installed, as plain values.

        Each: id, name, kind, installed, builtin, licence (its name), size (bytes of the installed
        file, else of the download, None where unknown), purpose, default (used by "auto").
        """
        present = {model.id: model for model in self.installed()}
        defaults = self._default_ids(set(present))
        rows = []
        for entry in self.catalogue:
            model = present.get(entry.id)
            rows.append(
                {
                    "id": entry.id,
                    "name": entry.name,
                    "kind": entry.kind,
                    "installed": model is not None,
                    "builtin": entry.builtin,
                    "licence": entry.licence.name,
                    "size": model.path.stat().st_size if model else entry.bytes,
                    "purpose": entry.purpose,
                    "default": entry.id in defaults,
                }
            )
        return rows

    # -- which one is meant ----------------------------------------------------------------------

    def resolve_restorer(self, model: str | Path = "auto") -> ResolvedModel:
        """The restorer that "auto", an id, an alias or a file's path stands for.

        "auto" is GPEN-BFR-2048 when installed, else the built-in one with a ``note`` that says how
        to get the real one. Raises ``ModelError`` when it is unknown or not installed.
        """
        if model != "auto":
            return self._resolve(model, "restorer")
        found = self._find_or_same(DEFAULT_RESTORER)
        if found is not None:
            return _resolved(found)
        return self._resolve("builtin-restorer", "restorer")

    def resolve_detector(self, model: str | Path = "auto") -> ResolvedModel:
        """The detector that "auto", an id, an alias or a file's path stands for.

        "auto" is RetinaFace ResNet-50, else MobileNet-0.25, else the built-in one.
        Raises ``ModelError`` when it is unknown or not installed.
        """
        if model != "auto":
            return self._resolve(model, "detector")
        for wanted in DEFAULT_DETECTORS:
            found = self._find_or_same(wanted)
            if found is not None:
                return _resolved(found)
        return self._resolve("builtin-detector", "detector")

    def resolve_parser(self, model: str | Path = "auto") -> ResolvedModel | None:
        """ParseNet when installed, else None; any other name must be installed or be a file."""
        if model != "auto":
            return self._resolve(model, "parser")
        found = self._find_or_same(DEFAULT_PARSER)
        return _resolved(found) if found is not None else None

    def _find_or_same(self, wanted: str) -> InstalledModel | None:
        """The model itself when installed, else one that holds the same weights."""
        candidates = [e for e in self.catalogue if e.id == wanted]
        candidates += [e for e in self.catalogue if e.same_as == wanted]
        for entry in candidates:
            found = self.find_installed(entry)
            if found is not None:
                return found
        return None

    def _default_ids(self, present: set[str]) -> set[str]:
        defaults = set()
        restorers = [DEFAULT_RESTORER]
        restorers += [e.id for e in self.catalogue if e.same_as == DEFAULT_RESTORER]
        for order in (
            (*restorers, "builtin-restorer"),
            (*DEFAULT_DETECTORS, "builtin-detector"),
            (DEFAULT_PARSER,),
        ):
            first = next((name for name in order if name in present), None)
            if first is not None:
                defaults.add(first)
        return defaults

    def _resolve(self, model: str | Path, kind: str) -> ResolvedModel:
        entry = self.catalogue.find(model, kind) if isinstance(model, str) else None
        if entry is not None and (entry.id == model or not Path(model).is_file()):
            found = self._find_or_same(entry.id)
            return _resolved(found if found is not None else self._require(entry))
        path = Path(model).expanduser()
        if path.is_file():
            return self._resolve_file(path, kind)
        if path.name != str(model) or path.suffix.lower() in files.SUFFIXES:
            raise ModelError(
                f"There is no model file {path}.",
                hint=self._installed_hint(path.name, kind),
                code="model-missing",
            )
        entry = self.catalogue.get(str(model), kind)  # raises: the name is unknown
        return _resolved(self._require(entry))

    def _resolve_file(self, path: Path, kind: str) -> ResolvedModel:
        resolved = path.resolve()
        for installed in self.installed():
            if installed.entry.kind == kind and installed.path.resolve() == resolved:
                return _resolved(installed)
        architecture = files.safetensors_architecture(resolved)
        return ResolvedModel("file", path.name, resolved, kind, architecture=architecture)

    def _installed_hint(self, name: str, kind: str) -> str:
        entry = self.catalogue.find(name, kind)
        found = self._find_or_same(entry.id) if entry is not None else None
        if found is not None:
            return f"{found.entry.name} is installed: name it as `{found.id}`."
        if entry is not None:
            return f"Check the path, or run `face-restore models download {entry.id}`."
        return "Check the path; `face-restore models list` shows the models that have names."

    def _require(self, entry: ModelEntry) -> InstalledModel:
        found = self.find_installed(entry)
        if found is not None:
            return found
        if entry.builtin:
            raise ModelError(
                f"The built-in model {self.model_path(entry)} is missing.",
                hint="The package is incomplete: install it again.",
                code="model-missing",
            )
        raise ModelError(
            f"{entry.name} is not installed.",
            hint=f"Run `face-restore models download {entry.id}`, or `face-restore models import "
            "FILE` if you have the file.",
            code="model-missing",
        )

    # -- changing what there is ------------------------------------------------------------------

    def make_root(self) -> None:
        """Make the store's folder (mode 0700). Raises ``ModelError`` when that is impossible."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(error, self.root) from error

    @contextlib.contextmanager
    def locked(self, name: str = "store", *, timeout: float = 60.0) -> Iterator[BaseFileLock]:
        """Hold the store's (or one model's) lock against other processes and threads.

        Raises ``ModelError`` (code "model-busy") when it is not free within ``timeout`` seconds.
        """
        from filelock import FileLock, Timeout

        self.make_root()
        lock = FileLock(self.root / f".{name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise ModelError(
                f"Another process is changing the models in {self.root}.",
                hint="Wait until its download or import has ended, then try again.",
                code="model-busy",
            ) from error
        except OSError as error:
            raise files.storage_error(error, self.root) from error
        try:
            yield lock
        finally:
            lock.release()

    @contextlib.contextmanager
    def model_locked(self, entry: ModelEntry, *, timeout: float = 60.0) -> Iterator[None]:
        """Keep every other download, import and removal of the model away; see ``locked``."""
        with self.locked(f"{entry.id}.install", timeout=timeout):
            yield

    def commit(self, entry: ModelEntry, tensors: Path, record: ModelRecord) -> InstalledModel:
        """Move a finished safetensors file of this disk into place, then write its record."""
        path = self.model_path(entry)
        try:
            with self.locked():
                tensors.replace(path)
                record.write(self.record_path(entry))
        except OSError as error:
            raise files.storage_error(error, path) from error
        return InstalledModel(entry, path, record)

    def remove(self, name: str) -> list[Path]:
        """Remove an installed model and what is left of its downloads; return what went.

        Raises ``ModelError`` for built-in models and when nothing of the model is there.
        """
        entry = self.catalogue.get(name)
        if entry.builtin:
            raise ModelError(
                f"{entry.id} is part of the program and cannot be removed.",
                hint="Uninstall the program to remove it.",
                code="model-builtin",
            )
        gone = []
        try:
            with self.model_locked(entry, timeout=1), self.locked():
                # The record first: without it the model counts as not installed.
                for path in (self.record_path(entry), self.model_path(entry)):
                    if path.exists():
                        path.unlink()
                        gone.append(path)
                gone += [p for p in self.leftovers(entry) if files.unlinked(p)]
        except OSError as error:
            raise files.storage_error(error, self.root) from error
        if not gone:
            self._require(entry)
        return gone

    def leftovers(self, entry: ModelEntry) -> list[Path]:
        """What interrupted downloads and imports of this model left."""
        # A "~" ends the id, so that gpen-bfr-2048 does not take gpen-bfr-2048-onnx along.
        return sorted(self.root.glob(f".{entry.id}~*"))

    def verify(self, name: str) -> list[str]:
        """Check an installed model, every byte: returns what is wrong, nothing when all is well.

        Raises ``ModelError`` when it is not installed.
        """
        from face_restore_worker.models.verify import find_problems

        entry = self.catalogue.get(name)
        if not self.model_path(entry).is_file():
            self._require(entry)
        return find_problems(self.model_path(entry), self.record_path(entry), entry.builtin)


def _resolved(model: InstalledModel) -> ResolvedModel:
    entry = model.entry
    is_substitute = entry.builtin and entry.kind == "restorer"
    return ResolvedModel(
        entry.id,
        entry.name,
        model.path,
        entry.kind,
        builtin=entry.builtin,
        architecture=entry.architecture,
        size=entry.size,
        note=GET_THE_REAL_ONE if is_substitute else None,
    )
