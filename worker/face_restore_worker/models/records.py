"""What the store remembers in JSON: where each model came from."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from face_restore_worker.errors import ModelError

FORMAT = 1


def now() -> str:
    """The time now, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class ModelRecord:
    """Where an installed model came from.

    sha256, bytes: of the safetensors file in the store.
    source: "download" or "import"; origin: the address or file it came from.
    source_sha256, source_bytes, source_format: of the file it was converted from.
    published: whether source_sha256 equals a digest its publishers, or others, made public.
    licence: id in the catalogue; licence_accepted: when the user accepted it, None for imports.
    """

    id: str
    kind: str
    architecture: str
    sha256: str
    bytes: int
    source: str
    origin: str
    source_sha256: str
    source_bytes: int
    source_format: str
    published: bool
    installed: str
    licence: str | None = None
    licence_accepted: str | None = None

    @classmethod
    def read(cls, path: Path) -> ModelRecord | None:
        """Read a record; None when there is none. Raises ``ModelError`` when it is malformed."""
        data = read_json(path)
        if data is None:
            return None
        values = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        try:
            record = cls(**values)
        except TypeError as error:
            raise _malformed(path, str(error)) from error
        texts = (record.id, record.kind, record.architecture, record.sha256)
        if not all(isinstance(t, str) for t in texts) or type(record.bytes) is not int:
            raise _malformed(path, "a field has the wrong type")
        return record

    def write(self, path: Path) -> None:
        """Write the record atomically."""
        write_json(path, {"format": FORMAT, **asdict(self)})


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when the file is absent. Raises ``ModelError``."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _malformed(path, str(error)) from error
    if not isinstance(data, dict):
        raise _malformed(path, "it is not a JSON object")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``data`` at once: readers see the old or the new file, never half."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(data, stream, indent=2, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _malformed(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"The model store's file {path} cannot be read: {reason}.",
        hint="Delete that file and install the model again.",
        code="model-record",
    )
