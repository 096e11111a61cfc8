"""The worker's log: rotating, private to the user, without pixels and without the token."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path

from face_restore_shared.paths import private_folder

MAX_BYTES = 1_000_000
KEPT = 3  # files in all
_FORMAT = "%(asctime)s %(levelname)s %(threadName)s: %(message)s"


class _PrivateRotatingFile(logging.handlers.RotatingFileHandler):
    """A rotating file of mode 0600; a full or read-only disk loses lines, never the worker."""

    def _open(self):  # type: ignore[no-untyped-def]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        return os.fdopen(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line: reporting to stderr could fail on the same disk."""


def set_up(path: Path, level: str, *, also_stderr: bool) -> logging.Logger:
    """Log to `path` (and to stderr when the worker runs in the foreground)."""
    logger = logging.getLogger("face_restore_worker")
    logger.setLevel(level.upper())
    formatter = logging.Formatter(_FORMAT)
    try:
        private_folder(path.parent)
        handler: logging.Handler = _PrivateRotatingFile(
            str(path), maxBytes=MAX_BYTES, backupCount=KEPT - 1, encoding="utf-8"
        )
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    except OSError as error:
        print(f"The log {path} cannot be written ({error}); going on without.", file=sys.stderr)
    if also_stderr:
        stream = logging.StreamHandler()
        stream.setFormatter(formatter)
        logger.addHandler(stream)
    logger.propagate = False
    return logger
