"""What the store remembers beyond the models: digests pinned and licences accepted.

Both outlive the model's removal: a licence is asked for once, and a file for which nobody published
a digest must stay the one that was seen first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from face_restore_worker.models import files
from face_restore_worker.models.catalogue import Licence
from face_restore_worker.models.records import now, read_json, write_json

if TYPE_CHECKING:
    from face_restore_worker.models.store import ModelStore


@dataclass(frozen=True)
class Pin:
    """The digests a model was first downloaded with.

    file: SHA-256 of the file as downloaded. content: digest of its tensors' names, shapes and
    values, the same from every mirror however the file is packed (``importer.content_digest``).
    """

    file: str
    content: str
    url: str
    seen: str


class Ledger:
    """``pins.json`` and ``licences.json`` in the store's folder."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self.pins_path = store.root / "pins.json"
        self.licences_path = store.root / "licences.json"

    def pin(self, model: str) -> Pin | None:
        """The model's pin, or None. Raises ``ModelError`` when the file is malformed."""
        value = (read_json(self.pins_path) or {}).get(model)
        if not isinstance(value, dict):
            return None
        return Pin(*(str(value.get(key, "")) for key in ("file", "content", "url", "seen")))

    def add_pin(self, model: str, *, file: str, content: str, url: str) -> None:
        """Pin the digests first seen; an existing pin stays."""
        value = {"file": file, "content": content, "url": url, "seen": now()}
        self._update(self.pins_path, lambda data: data.setdefault(model, value))

    def forget_pin(self, model: str) -> bool:
        """Drop a pin; false when there was none."""
        had = self.pin(model) is not None
        if had:
            self._update(self.pins_path, lambda data: data.pop(model, None))
        return had

    def accepted(self, licence: Licence) -> str | None:
        """When the user accepted this very text, or None."""
        value = (read_json(self.licences_path) or {}).get(licence.id)
        if isinstance(value, dict) and value.get("text") == _text_digest(licence):
            return str(value.get("accepted"))
        return None

    def accept(self, licence: Licence) -> str:
        """Remember that the user accepted the licence; return when."""
        value = {"accepted": now(), "text": _text_digest(licence), "name": licence.name}
        self._update(self.licences_path, lambda data: data.update({licence.id: value}))
        return value["accepted"]

    def _update(self, path: Any, change: Any) -> None:
        with self.store.locked():
            try:
                data = read_json(path) or {}
                change(data)
                write_json(path, data)
            except OSError as error:
                raise files.storage_error(error, path) from error


def _text_digest(licence: Licence) -> str:
    return hashlib.sha256(licence.text.encode()).hexdigest()
