"""Temporary files beside the outputs: each is its writer's alone, and goes when that was killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

_NAME = re.compile(r"\.face-restore-[0-9a-f]{12}\.part")
_O_BINARY = getattr(os, "O_BINARY", 0)


def open_part(folder: Path) -> tuple[Path, int]:
    """A new, empty temporary file in the folder, and its descriptor.

    It stays locked while the descriptor is open: that tells it from a leftover.
    Raises OSError when it cannot be made.
    """
    while True:
        part = folder / f".face-restore-{secrets.token_hex(6)}.part"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
        _try_lock(handle)
        # Another run may have taken it for a leftover before it was locked.
        with contextlib.suppress(FileNotFoundError):
            part.lstat()
            return part, handle
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of runs that were killed; those in use by others stay.

    What cannot be removed is left: it takes room, and does no harm.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - names alone are compared
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove_unused(folder / name)


def _remove_unused(part: Path) -> None:
    if not stat.S_ISREG(part.lstat().st_mode):
        return
    if os.name == "nt":  # where an open file cannot be removed anyway
        part.unlink()
        return
    handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if _try_lock(handle):
            part.unlink()
    finally:
        os.close(handle)


if os.name == "nt":  # pragma: no cover

    def _try_lock(handle: int) -> bool:
        return True

else:

    def _try_lock(handle: int) -> bool:
        """Lock the file; False when another holds it, or its file system knows no locks."""
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
