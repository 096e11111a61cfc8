"""Where the project keeps its files; plug-in and worker must agree on it.

The defaults are those of platformdirs for the application "gimp-face-restore". `FACE_RESTORE_HOME`
puts everything below one folder, `FACE_RESTORE_MODELS` moves the models alone.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from face_restore_shared.errors import FaceRestoreError

APP = "gimp-face-restore"


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where HOME is missing


def _xdg(name: str, default: str) -> Path:
    # Inside a Flatpak XDG_* point into the sandbox; HOST_XDG_* hold the session's own values.
    key = "HOST_" + name if "FLATPAK_ID" in os.environ else name
    value = os.environ.get(key, "")
    return Path(value) if Path(value).is_absolute() else _home() / default


def _windows() -> Path:
    value = os.environ.get("LOCALAPPDATA", "")
    return Path(value) if value else _home() / "AppData" / "Local"


def _override(name: str) -> Path | None:
    value = os.environ.get(name, "")
    return Path(os.path.abspath(os.path.expanduser(value))) if value else None  # noqa: PTH100, PTH111


def data_dir() -> Path:
    """Models and the installation."""
    home = _override("FACE_RESTORE_HOME")
    if home is not None:
        return home / "data"
    if sys.platform == "win32":
        return _windows() / APP
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / APP
    return _xdg("XDG_DATA_HOME", ".local/share") / APP


def state_dir() -> Path:
    """Connection file, lock and logs."""
    home = _override("FACE_RESTORE_HOME")
    if home is not None:
        return home / "state"
    if sys.platform in ("win32", "darwin"):
        return data_dir()
    return _xdg("XDG_STATE_HOME", ".local/state") / APP


def cache_dir() -> Path:
    """What can be made again, such as kernels compiled for this machine's GPU."""
    home = _override("FACE_RESTORE_HOME")
    if home is not None:
        return home / "cache"
    if sys.platform == "win32":
        return _windows() / APP / "cache"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / APP
    return _xdg("XDG_CACHE_HOME", ".cache") / APP


def models_dir() -> Path:
    """Installed models."""
    return _override("FACE_RESTORE_MODELS") or data_dir() / "models"


def shown(path: Path) -> str:
    """The path as text that every encoder takes, also where its name is no UTF-8."""
    return str(path).encode("utf-8", "replace").decode("utf-8")


def connection_file() -> Path:
    """Says where the running worker listens and how to log in; only there while one runs."""
    return state_dir() / "worker.json"


def lock_file() -> Path:
    """Held by the running worker; the file itself stays."""
    return state_dir() / "worker.lock"


def log_file() -> Path:
    """The worker's log; older ones beside it as worker.log.1 and .2."""
    return state_dir() / "logs" / "worker.log"


def output_file() -> Path:
    """What a detached worker writes to its standard streams: start-up failures and crashes."""
    return state_dir() / "logs" / "worker-output.log"


def private_folder(path: Path) -> Path:
    """Make `path` a folder only its owner can enter (mode 0700), and return it.

    Missing parents are made 0700 as well. Raises FaceRestoreError (code "folder") when it cannot
    be made, is a symbolic link or no folder, or belongs to somebody else.
    """
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode):
            raise _folder_error(path, "it is not a folder (symbolic links are not followed)")
        if os.name == "posix":
            if info.st_uid != os.geteuid():
                raise _folder_error(path, "it belongs to another user")
            if info.st_mode & 0o077:
                path.chmod(0o700)
    except OSError as error:
        raise _folder_error(path, str(error.strerror or error)) from error
    return path


def _folder_error(path: Path, why: str) -> FaceRestoreError:
    return FaceRestoreError(
        f"The folder {path} cannot be used: {why}.",
        hint="Mend it, or set FACE_RESTORE_HOME to a folder of your own.",
        code="folder",
    )
