"""The catalogue of models: what exists, where it comes from, what it may be used for.

The data is ``catalogue.json`` next to this file. Another file of the same form can be
given by the environment variable ``FACE_RESTORE_CATALOGUE`` (for a mirror of one's own) or to
``load_catalogue``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from face_restore_worker.errors import ModelError

CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")
CATALOGUE_VARIABLE = "FACE_RESTORE_CATALOGUE"
FORMAT = 1
KINDS = ("restorer", "detector", "parser")
FORMATS = ("torch", "safetensors", "onnx", "builtin")
#: An approximate size may be off by this fraction before a download is refused.
SIZE_TOLERANCE = 0.05
#: No model of the catalogue comes near this; a body of unknown length is cut off here.
MAX_BYTES = 2 * 1024**3

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_address(url: str) -> None:
    """Raise ``ModelError`` unless the address is https, or http to this machine's loopback."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise ModelError(
        f"The address {url} is not https.",
        hint="Models are fetched over https only (http is allowed to localhost alone).",
        code="model-address",
    )


@dataclass(frozen=True)
class Licence:
    """What a model may be used for. ``text`` is shown and accepted before a download."""

    id: str
    name: str
    text: str
    url: str | None = None


@dataclass(frozen=True)
class ModelFile:
    """One published file and the addresses that serve it, in the order to try them.

    urls: https addresses of byte-identical copies.
    sha256: published digest, lower-case hexadecimal, or None where nobody published one.
    bytes: size; when ``exact`` is false it is approximate (see ``SIZE_TOLERANCE``).
    """

    urls: tuple[str, ...]
    sha256: str | None = None
    bytes: int | None = None
    exact: bool = False

    def size_problem(self, size: int) -> str | None:
        """Say what is wrong with a file of ``size`` bytes, or None."""
        if self.bytes is None:
            return None if size <= MAX_BYTES else f"{size} bytes are more than any model has"
        if self.exact and size != self.bytes:
            return f"it has {size} bytes, {self.bytes} were expected"
        if abs(size - self.bytes) > SIZE_TOLERANCE * self.bytes:
            return f"it has {size} bytes, about {self.bytes} were expected"
        return None

    @property
    def max_bytes(self) -> int:
        """The most bytes worth reading of this file."""
        if self.bytes is None:
            return MAX_BYTES
        return self.bytes if self.exact else int(self.bytes * (1 + SIZE_TOLERANCE))


@dataclass(frozen=True)
class ModelEntry:
    """A model of the catalogue.

    architecture: "gpen", "local-restorer", "retinaface-resnet50", "retinaface-mobile0.25",
        "parsenet" or "bisenet": says which network its tensors belong to.
    size: side in pixels of the aligned crop it works on, None for detectors.
    channels: of a GPEN, its channel counts at 4, 8, ... size pixels; () where any will do.
    same_as: id of the model whose network and weights this one holds in another published form.
    """

    id: str
    name: str
    kind: str
    architecture: str
    purpose: str
    licence: Licence
    format: str
    size: int | None = None
    channels: tuple[int, ...] = ()
    files: tuple[ModelFile, ...] = ()
    aliases: tuple[str, ...] = ()
    same_as: str | None = None

    @property
    def builtin(self) -> bool:
        """Whether the model ships inside the package."""
        return self.format == "builtin"

    @property
    def sha256(self) -> str | None:
        """Published digest of the first file, if any."""
        return self.files[0].sha256 if self.files else None

    @property
    def bytes(self) -> int | None:
        """Size of the first file whose size is known, exact or approximate."""
        return next((f.bytes for f in self.files if f.bytes is not None), None)

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` is the id or an alias; upper and lower case are the same."""
        wanted = name.casefold()
        return wanted == self.id or wanted in (a.casefold() for a in self.aliases)


@dataclass(frozen=True)
class Catalogue:
    """All models, in the order to list them."""

    models: tuple[ModelEntry, ...]

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self.models)

    def find(self, name: str, kind: str | None = None) -> ModelEntry | None:
        """Return the model with this id or alias (ids first), or None."""
        among = [m for m in self.models if kind is None or m.kind == kind]
        for model in among:
            if model.id == name.casefold():
                return model
        return next((m for m in among if m.answers_to(name)), None)

    def get(self, name: str, kind: str | None = None) -> ModelEntry:
        """Like ``find``; raises ``ModelError`` naming the known models when there is none."""
        model = self.find(name, kind)
        if model is None:
            known = ", ".join(m.id for m in self.models if kind is None or m.kind == kind)
            what = kind or "model"
            raise ModelError(
                f'There is no {what} called "{name}".',
                hint=f"Known are: {known}. `face-restore models list` tells more.",
                code="model-unknown",
            )
        return model


def load_catalogue(path: str | Path | None = None) -> Catalogue:
    """Read and check a catalogue: ``path``, else ``$FACE_RESTORE_CATALOGUE``, else the package's.

    Raises ``ModelError`` (code "catalogue") saying which entry and field is wrong.
    """
    file = Path(path or os.environ.get(CATALOGUE_VARIABLE) or CATALOGUE_FILE)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model catalogue {file} cannot be read: {error}.",
            hint=f"Reinstall, or correct {CATALOGUE_VARIABLE} where it is set.",
            code="catalogue",
        ) from error
    try:
        return parse_catalogue(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"The model catalogue {file} is not valid: {reason}.",
            hint=f"Reinstall, or correct {CATALOGUE_VARIABLE} where it is set.",
            code="catalogue",
        ) from error


def parse_catalogue(data: Mapping[str, Any]) -> Catalogue:
    """Turn the JSON object into dataclasses. Raises KeyError, TypeError or ValueError."""
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
    licences = {
        key: Licence(key, _text(value, "name"), _text(value, "text"), value.get("url"))
        for key, value in data["licences"].items()
    }
    models = tuple(_parse_entry(value, licences) for value in data["models"])
    ids = [m.id for m in models]
    for twice in {i for i in ids if ids.count(i) > 1}:
        raise ValueError(f"{twice} is listed twice")
    for model in models:
        if model.same_as is not None and model.same_as not in ids:
            raise ValueError(f"{model.id}: same_as names {model.same_as}, which is not listed")
    return Catalogue(models)


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value[key]
    if not isinstance(text, str) or not text:
        raise ValueError(f"{key} must be a text, not {text!r}")
    return text


def _parse_entry(value: Mapping[str, Any], licences: Mapping[str, Licence]) -> ModelEntry:
    name = _text(value, "id")
    if not _ID.fullmatch(name):
        raise ValueError(f"{name!r} cannot be an id (lower-case letters, digits, . _ -)")
    for key, allowed in (("kind", KINDS), ("format", FORMATS), ("licence", tuple(licences))):
        if value[key] not in allowed:
            raise ValueError(f"{name}: {key} is {value[key]!r}, not one of {', '.join(allowed)}")
    size = value.get("size")
    if size is not None and (type(size) is not int or not 16 <= size <= 8192):
        raise ValueError(f"{name}: size is {size!r}, not a number of pixels")
    files = tuple(_parse_file(f, name) for f in value["files"])
    if bool(files) == (value["format"] == "builtin"):
        raise ValueError(f"{name}: files must be given, and none for a built-in model")
    return ModelEntry(
        id=name,
        name=_text(value, "name"),
        kind=value["kind"],
        architecture=_text(value, "architecture"),
        purpose=_text(value, "purpose"),
        licence=licences[value["licence"]],
        format=value["format"],
        size=size,
        channels=tuple(int(c) for c in value.get("channels", ())),
        files=files,
        aliases=tuple(str(a) for a in value.get("aliases", ())),
        same_as=value.get("same_as"),
    )


def _parse_file(value: Mapping[str, Any], name: str) -> ModelFile:
    urls = tuple(value["urls"])
    if not urls:
        raise ValueError(f"{name}: a file without an address")
    for url in urls:
        try:
            check_address(url)
        except ModelError as error:
            raise ValueError(f"{name}: {error.message.rstrip('.')}") from error
    digest, size, exact = value.get("sha256"), value.get("bytes"), value.get("exact", False)
    if digest is not None and not _DIGEST.fullmatch(digest):
        raise ValueError(f"{name}: {digest!r} is not a SHA-256 digest in lower-case hexadecimal")
    if size is not None and (type(size) is not int or not 0 < size <= MAX_BYTES):
        raise ValueError(f"{name}: bytes is {size!r}")
    if type(exact) is not bool or (exact and size is None):
        raise ValueError(f"{name}: exact is {exact!r} with bytes {size!r}")
    return ModelFile(urls, digest, size, exact)
