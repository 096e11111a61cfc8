"""The Restorers that are loaded, by the files they were loaded from."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from face_restore_worker.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from face_restore_worker.pipeline.restore import Restorer

log = logging.getLogger(__name__)

MOST_LOADED = 2
MOST_REFUSED = 16

Key = tuple[str, ...]


class RestorerCache:
    """At most MOST_LOADED Restorers, the one used longest ago leaving first.

    A file that changed is loaded anew. When it is refused then, what was loaded before stays in
    use, and the user is told.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # names() is called from other threads
        self._loaded: OrderedDict[Key, tuple[Key, Restorer]] = OrderedDict()
        self._refused: OrderedDict[Key, str] = OrderedDict()

    def names(self) -> list[str]:
        """The loaded models' names, each once."""
        with self._lock:
            restorers = [restorer for _, restorer in self._loaded.values()]
        return list(dict.fromkeys(restorer.model_name for restorer in restorers))

    def get(
        self, precision: str, files: Sequence[Path | None], load: Callable[[], Restorer]
    ) -> tuple[Restorer, str | None]:
        """The Restorer made of these files as they are now, and a sentence for the user.

        load: makes it when it is not there. What it raises is passed on, unless the same files
        were loaded before they changed.
        """
        place = (precision, *map(str, files))
        key = (precision, *map(_stamp, files))
        with self._lock:
            found = self._loaded.get(key)
            if found is not None:
                self._loaded.move_to_end(key)
                return found[1], None
            before = next((k for k, (where, _) in self._loaded.items() if where == place), None)
        if before is not None and key in self._refused:
            return self._loaded[before][1], self._refused[key]
        self._make_room(before)
        try:
            restorer = load()
        except (CheckpointError, ModelError) as error:
            if before is None:
                raise
            log.warning("A changed model file is refused: %s", error)
            note = f"{error.message} The model as it was loaded before is still used."
            self._refused[key] = note
            if len(self._refused) > MOST_REFUSED:
                self._refused.popitem(last=False)
            return self._loaded[before][1], note
        if before is not None:
            self._let_go(before)
        with self._lock:
            self._loaded[key] = (place, restorer)
        return restorer, None

    def rest(self) -> None:
        """Have all let go of their working memory; see Restorer.rest."""
        for _, restorer in list(self._loaded.values()):
            restorer.rest()

    def clear(self) -> None:
        """Let go of all."""
        for key in list(self._loaded):
            self._let_go(key)
        self._refused.clear()
        _empty_caches()

    def _make_room(self, kept: Key | None) -> None:
        while len(self._loaded) >= MOST_LOADED:
            self._let_go(next(key for key in self._loaded if key != kept))
            _empty_caches()

    def _let_go(self, key: Key) -> None:
        with self._lock:
            _, restorer = self._loaded.pop(key)
        restorer.unload()


def _stamp(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        info = path.stat()
    except OSError:  # whoever loads it says what is wrong
        return f"{path}:gone"
    return f"{path}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"


def _empty_caches() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
