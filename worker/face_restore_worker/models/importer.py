"""Take a model file in: find out what it is, check every tensor, keep it as safetensors.

Checkpoints are untrusted: reading one never executes code (see the ``checkpoints``
package).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from face_restore_shared.paths import shown

from face_restore_worker.errors import CheckpointError, ModelError
from face_restore_worker.models import files
from face_restore_worker.models.catalogue import Catalogue, ModelEntry
from face_restore_worker.models.ledger import Ledger
from face_restore_worker.models.records import ModelRecord, now
from face_restore_worker.models.store import InstalledModel, ModelStore
from face_restore_worker.models.structure import COUNTER, check_structure

if TYPE_CHECKING:
    from torch import Tensor

    from face_restore_worker.checkpoints.sniff import Kind


@dataclass(frozen=True)
class Recognised:
    """A model file read and checked.

    tensors: canonical name -> tensor on the CPU, float32 (counters int64), all finite.
    architecture: as in ``ModelEntry``. size, channels: of a GPEN, else None and ().
    format: "torch", "safetensors" or "onnx".
    """

    tensors: dict[str, Tensor]
    architecture: str
    format: str
    size: int | None = None
    channels: tuple[int, ...] = ()

    def describe(self) -> str:
        """What it is, for people: "a GPEN network for 512-pixel faces"."""
        if self.architecture == "gpen":
            return f"a GPEN network of size {self.size} with {_join(self.channels)} channels"
        return f"a {self.architecture} network"

    def fits(self, entry: ModelEntry) -> bool:
        """Whether the tensors are those of this model's network."""
        if entry.builtin or entry.architecture != self.architecture:
            return False
        if self.architecture != "gpen":
            return True
        return entry.size == self.size and entry.channels in ((), self.channels)


def recognise(path: Path) -> Recognised:
    """Read a model file and find out which network it belongs to.

    Raises:
        CheckpointError: it is absent, not a model of a known network, damaged, or holds values
            that are not finite; the message names what is wrong.
    """
    from face_restore_worker.checkpoints.gpen import read_gpen_state
    from face_restore_worker.checkpoints.sniff import Kind, sniff
    from face_restore_worker.checkpoints.state import require_finite, require_plain

    path = Path(path)
    kind = sniff(path)
    packing = {Kind.SAFETENSORS: "safetensors", Kind.ONNX: "onnx"}.get(kind, "torch")
    tensors = _read_tensors(path, kind)
    architecture = files.architecture_of(set(tensors))
    if architecture not in (None, "gpen"):
        weights = {n: t for n, t in tensors.items() if not n.endswith(COUNTER)}
        require_plain(weights, str(path), path.stat().st_size)
        require_finite(weights, str(path))
        checked = check_structure(tensors, architecture, path)
        return Recognised(checked, architecture, packing)
    del tensors
    state, gpen = read_gpen_state(path)
    return Recognised(dict(state), "gpen", packing, gpen.size, tuple(gpen.channels))


def import_file(
    store: ModelStore,
    path: str | Path,
    *,
    name: str | None = None,
    notify: Callable[[str], None] | None = None,
) -> InstalledModel:
    """Install a model from a file of the user's. The file itself is only read.

    Args:
        name: id or alias of the model it is meant to be; None to find out.
        notify: takes sentences for the user.

    Raises ``CheckpointError`` for a wrong or damaged file, ``ModelError`` when it cannot be stored.
    """
    path = Path(path).expanduser()
    wanted = store.catalogue.get(name) if name is not None else None
    found = recognise(path)
    entry = _choose(store.catalogue, found, wanted, path)
    if notify is not None:
        notify(f"{path.name} is {entry.name}.")
        notify(f"Licence: {entry.licence.text}")
    digest = files.sha256_file(path)
    with store.model_locked(entry):
        return install(
            store,
            entry,
            found,
            source="import",
            origin=shown(path.resolve()),
            digest=digest,
            size=path.stat().st_size,
        )


def install(
    store: ModelStore,
    entry: ModelEntry,
    found: Recognised,
    *,
    source: str,
    origin: str,
    digest: str,
    size: int,
) -> InstalledModel:
    """Write a recognised model into the store. The caller holds the model's lock.

    source, origin: see ``ModelRecord``. digest, size: of the file it was read from.
    """
    with _written(store, entry, found.tensors) as written:
        record = ModelRecord(
            id=entry.id,
            kind=entry.kind,
            architecture=entry.architecture,
            sha256=files.sha256_file(written),
            bytes=written.stat().st_size,
            source=source,
            origin=origin,
            source_sha256=digest,
            source_bytes=size,
            source_format=found.format,
            published=digest in {f.sha256 for f in entry.files},
            installed=now(),
            licence=entry.licence.id,
            licence_accepted=Ledger(store).accepted(entry.licence),
        )
        return store.commit(entry, written, record)


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors' names, shapes and values, sorted by name.

    It does not depend on the file's packing, so the same weights have the same digest as .pt, .pth
    and .safetensors. Values are hashed as little-endian bytes of their dtype.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous().numpy()
        little = value.astype(value.dtype.newbyteorder("<"), copy=False)
        total.update(f"{name}\0{little.dtype.str}\0{little.shape}\0".encode())
        total.update(little.reshape(-1).data)
    return total.hexdigest()


def _join(channels: tuple[int, ...]) -> str:
    return "-".join(map(str, channels))


@contextlib.contextmanager
def _written(store: ModelStore, entry: ModelEntry, tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """Write the tensors to a temporary file inside the store's folder; gone again at the end."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    store.make_root()
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    files.require_space(store.root, needed, entry.name)
    path = store.model_path(entry)
    try:
        # A folder of its own, because safetensors makes temporary files beside the one it writes.
        folder = Path(tempfile.mkdtemp(dir=store.root, prefix=f".{entry.id}~", suffix=".tmp"))
    except OSError as error:
        raise files.storage_error(error, store.root) from error
    written = folder / path.name
    try:
        save_file(_unshared(tensors), written)
        with written.open("rb+") as stream:
            os.fsync(stream.fileno())
        yield written
    except SafetensorError as error:
        raise _write_error(error, path) from error
    except OSError as error:
        raise files.storage_error(error, path) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_error(error: Exception, path: Path) -> ModelError:
    """safetensors wraps the system's error in a text of its own: "... (os error 28) ..."."""
    match = re.search(r"os error (\d+)", str(error))
    if match:
        number = int(match[1])
        return files.storage_error(OSError(number, os.strerror(number)), path)
    return ModelError(f"{path} could not be written: {error}.", code="storage")


def _choose(
    catalogue: Catalogue, found: Recognised, wanted: ModelEntry | None, path: Path
) -> ModelEntry:
    if wanted is not None:
        if found.fits(wanted):
            return wanted
        raise CheckpointError(
            f"{path} is {found.describe()}, not {wanted.name}.",
            hint="Leave out --as to let the file tell what it is.",
        )
    fitting = [entry for entry in catalogue if found.fits(entry)]
    if not fitting:
        raise CheckpointError(
            f"{path} is {found.describe()}, which is none of the known models.",
            hint="Give its path as the model to use it as it is.",
        )
    is_onnx = found.format == "onnx"
    return next((e for e in fitting if (e.format == "onnx") == is_onnx), fitting[0])


def _read_tensors(path: Path, kind: Kind) -> dict[str, Tensor]:
    """The tensors of a PyTorch or safetensors file; {} for ONNX, which only GPEN comes in."""
    from face_restore_worker.checkpoints.safetensors_file import read_safetensors
    from face_restore_worker.checkpoints.sniff import Kind
    from face_restore_worker.checkpoints.state import flat_state
    from face_restore_worker.checkpoints.torch_file import read_torch

    if kind is Kind.ONNX:
        return {}
    content = read_safetensors(path) if kind is Kind.SAFETENSORS else read_torch(path, kind)
    return flat_state(content, str(path))


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two use the same memory: safetensors asks for that."""
    seen: set[int] = set()
    out = {}
    for name, value in tensors.items():
        value = value.contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        out[name] = value
    return out
