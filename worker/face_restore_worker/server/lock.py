"""The single-instance lock: one worker for each user.

The system lets go of the lock when its holder ends, however it ends, so a lock is never stale.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.paths import private_folder


class InstanceLock:
    """Held by the running worker for its whole life. The file stays; only its lock counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False when another process has it.

        Raises FaceRestoreError (code "lock") when the file cannot be made or locked at all.
        """
        private_folder(self.path.parent)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            handle = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise self._error(error) from error
        try:
            locked = _try_lock(handle)
        except OSError as error:
            os.close(handle)
            raise self._error(error) from error
        if not locked:
            os.close(handle)
            return False
        self._handle = handle
        with contextlib.suppress(OSError):  # for people and messages only: a full disk may pass
            os.truncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        return True

    def keep(self) -> bool:
        """Whether this process, which took the lock, has it still.

        Without its file, which somebody may have removed, it keeps nobody away: then it is taken
        anew, unless another process was quicker. Raises as `acquire`.
        """
        assert self._handle is not None
        try:
            if os.path.samestat(os.fstat(self._handle), self.path.lstat()):
                return True
        except OSError:
            pass  # it is gone
        before = self._handle
        if not self.acquire():
            return False
        os.close(before)
        return True

    def holder(self) -> int | None:
        """The process that took the lock last, when the file says so."""
        try:
            return int(self.path.read_bytes()[:20])
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Let another worker start."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _error(self, error: OSError) -> FaceRestoreError:
        return FaceRestoreError(
            f"The lock {self.path} cannot be taken: {error.strerror or error}.",
            hint="Set FACE_RESTORE_HOME to a folder of your own on a local disk.",
            code="lock",
        )


if os.name == "nt":  # pragma: no cover

    def _try_lock(handle: int) -> bool:
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except (PermissionError, BlockingIOError):
            return False
        return True

else:

    def _try_lock(handle: int) -> bool:
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
