"""File names in messages."""

from __future__ import annotations

import os
from pathlib import Path


def printable(path: Path | str) -> str:
    """A file name that can be printed on one line, whatever bytes it holds."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
