"""Download a model: licence, mirrors in order, digests, pins, conversion."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from face_restore_worker.errors import CheckpointError, ModelError
from face_restore_worker.models import files, importer
from face_restore_worker.models.catalogue import Licence, ModelEntry, ModelFile
from face_restore_worker.models.ledger import Ledger, Pin
from face_restore_worker.models.store import InstalledModel, ModelStore
from face_restore_worker.models.transfer import (
    Limits,
    Progress,
    TransferError,
    discard,
    fetch,
)

#: Another process may be downloading the same model: wait for it this long, in seconds.
_PATIENCE = 6 * 3600.0


@dataclass
class Job:
    """How to talk to the user while downloading.

    ask: shows the licence, returns whether the user accepts it; asked once for each licence.
    progress: takes how far the transfer is, about ten times a second.
    notify: takes sentences for the user.
    """

    ask: Callable[[Licence], bool]
    progress: Callable[[Progress], None] | None = None
    notify: Callable[[str], None] = lambda text: None
    limits: Limits | None = None


def download(store: ModelStore, name: str, job: Job) -> InstalledModel:
    """Download, check, convert and install a model; returns it at once when it is installed.

    Every address is tried in the catalogue's order. A file with a published SHA-256 must have it.
    One without is checked tensor by tensor against its network, and its digests are pinned: a later
    download with other tensors is refused until the user forgets the pin.

    Raises:
        ModelError: unknown or built-in model; licence not accepted (code "licence-declined"); no
            address gave the file ("download-failed", naming what failed at each); disk full or
            folder not writable.
    """
    entry = store.catalogue.get(name)
    if entry.builtin:
        raise ModelError(
            f"{entry.id} is part of the program.",
            hint="There is nothing to download.",
            code="model-builtin",
        )
    present = store.find_installed(entry)
    if present is not None:
        return present
    store.make_root()
    _accept_licence(store, entry, job)
    with _turn(store, entry, job):
        present = store.find_installed(entry)  # another process may have been quicker
        return present if present is not None else _try_all(store, entry, job)


@contextlib.contextmanager
def _turn(store: ModelStore, entry: ModelEntry, job: Job) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.model_locked(entry, timeout=0.2))
        except ModelError as error:
            if error.code != "model-busy":
                raise
            job.notify(f"Another process is installing {entry.id}; waiting for it.")
            stack.enter_context(store.model_locked(entry, timeout=_PATIENCE))
        yield


def _accept_licence(store: ModelStore, entry: ModelEntry, job: Job) -> None:
    ledger = Ledger(store)
    if ledger.accepted(entry.licence):
        return
    if not job.ask(entry.licence):
        raise ModelError(
            f"{entry.name} was not downloaded: its licence was not accepted.",
            hint="Read it and accept it, or pass --accept-license once you have.",
            code="licence-declined",
        )
    ledger.accept(entry.licence)


def _try_all(store: ModelStore, entry: ModelEntry, job: Job) -> InstalledModel:
    failures: list[str] = []
    is_pin_broken = False
    addresses = [(file, url) for file in entry.files for url in file.urls]
    for position, (file, url) in enumerate(addresses, start=1):
        host = urlsplit(url).hostname or url
        job.notify(f"Downloading {entry.name} from {host} ({position} of {len(addresses)}).")
        part = part_path(store, entry, url)
        try:
            _fetch_good(url, part, file, job)
            model = _take_in(store, entry, file, url, part)
        except _PinBrokenError as error:
            is_pin_broken = True
            failures.append(f"{host}: {error}")
        except TransferError as error:
            failures.append(f"{host}: {error}")
        except CheckpointError as error:
            discard(part)
            reason = error.message.replace(str(part), "it")
            failures.append(f"{host}: the file is not the model: {reason}")
        else:
            for path in store.leftovers(entry):
                files.unlinked(path)
            return model
        job.notify(f"  {failures[-1]}")
    raise ModelError(
        f"{entry.name} could not be downloaded. " + " ".join(f"[{text}]" for text in failures),
        hint=_failure_hint(entry, is_pin_broken),
        code="download-failed",
    )


def _fetch_good(url: str, part: Path, file: ModelFile, job: Job) -> None:
    """Fetch the file and check its published digest, if it has one."""
    was_begun = part.exists()
    while True:
        fetch(url, part, file, progress=job.progress, limits=job.limits)
        digest = files.sha256_file(part) if file.sha256 is not None else None
        if digest == file.sha256:
            return
        discard(part)
        if not was_begun:
            raise TransferError(f"its SHA-256 is {digest}, {file.sha256} was published")
        was_begun = False  # the part kept from an earlier run may have been the damaged one


def _failure_hint(entry: ModelEntry, is_pin_broken: bool) -> str:
    if is_pin_broken:
        return (
            "A publisher changed the file, or somebody else did. If you trust the new one, run "
            f"`face-restore models remove {entry.id} --forget-pin` and download again."
        )
    return (
        "Check the network (HTTPS_PROXY is honoured) and run the command again: it goes on where "
        "it ended. Or fetch the file elsewhere and run `face-restore models import FILE`."
    )


class _PinBrokenError(TransferError):
    """The file is a working model, but not the one first seen."""


def part_path(store: ModelStore, entry: ModelEntry, url: str) -> Path:
    """Where the bytes from one address gather: each address has a file of its own."""
    address = hashlib.sha256(url.encode()).hexdigest()[:12]
    return store.root / f".{entry.id}~{address}.part"


def _take_in(
    store: ModelStore, entry: ModelEntry, file: ModelFile, url: str, part: Path
) -> InstalledModel:
    """Check a complete file's tensors and pin, then install it."""
    digest, size = files.sha256_file(part), part.stat().st_size
    found = importer.recognise(part)
    if not found.fits(entry):
        raise CheckpointError(f"it is {found.describe()}, not {entry.name}.")
    if file.sha256 is None:
        _check_pin(store, entry, digest, found, url, part)
    return importer.install(
        store, entry, found, source="download", origin=url, digest=digest, size=size
    )


def _check_pin(
    store: ModelStore,
    entry: ModelEntry,
    digest: str,
    found: importer.Recognised,
    url: str,
    part: Path,
) -> None:
    """Compare with the digests first seen, or make these the ones."""
    ledger = Ledger(store)
    content = importer.content_digest(found.tensors)
    pin: Pin | None = ledger.pin(entry.id)
    if pin is None:
        ledger.add_pin(entry.id, file=digest, content=content, url=url)
    elif pin.content != content:
        discard(part)
        raise _PinBrokenError(
            f"its tensors are not those first seen on {pin.seen} at {pin.url} (SHA-256 of the file "
            f"{digest}, then {pin.file})"
        )
