"""Starting a worker that outlives whoever starts it, untouched by the starter's surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from face_restore_shared import paths

OUTPUT_KEPT = 256 * 1024

# What GIMP, AppImage and desktop bundles set for their own libraries and Python.
_SCRUBBED_PREFIXES = ("PYTHON", "GIMP", "GEGL", "BABL", "GTK_", "GDK_PIXBUF", "GIO_", "GI_")
_SCRUBBED = ("APPDIR", "APPIMAGE", "ARGV0", "OWD", "LD_PRELOAD", "__PYVENV_LAUNCHER__")
_BUNDLED = ("APPDIR", "APPIMAGE", "GIMP3_PLUGINDIR", "GIMP3_DATADIR")
_FOLDERS = ("FACE_RESTORE_HOME", "FACE_RESTORE_MODELS", "FACE_RESTORE_CATALOGUE")


def environment() -> dict[str, str]:
    """The environment for a worker, without what belongs to GIMP or a bundle.

    LD_LIBRARY_PATH stays unless a bundle set it: some systems need it for CUDA.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_SCRUBBED_PREFIXES) and name not in _SCRUBBED
    }
    if any(name in os.environ for name in _BUNDLED):
        env.pop("LD_LIBRARY_PATH", None)
    for name in _FOLDERS:  # the worker lives in another folder
        if env.get(name):
            env[name] = os.path.abspath(os.path.expanduser(env[name]))  # noqa: PTH100, PTH111
    return env


def prepare_output(path: Path) -> int:
    """Make room in the file of a worker's standard streams; returns where new text will begin.

    Raises FaceRestoreError when its folder cannot be used.
    """
    paths.private_folder(path.parent)
    try:
        size = path.stat().st_size
        if size <= OUTPUT_KEPT:
            return size
        os.truncate(path, 0)
    except OSError:  # not there; whatever else is wrong shows when it is opened
        pass
    return 0


def spawn(command: Sequence[str], output: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process of its own session, its streams in `output`, in the home folder.

    Raises OSError when it cannot be started, or `output` not be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    home = os.path.expanduser("~")  # noqa: PTH111 - does not raise
    detach: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":  # detached, own group, no window
        detach = {"creationflags": 0x00000008 | 0x00000200 | 0x08000000}
    with os.fdopen(os.open(output, flags, 0o600), "ab") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=home if os.path.isdir(home) else None,  # noqa: PTH112
            env=env,
            **detach,
        )


def tail(path: Path, offset: int, lines: int) -> list[str]:
    """The last lines written to `output` since `offset`; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read(OUTPUT_KEPT).decode("utf-8", "replace")
    except OSError:
        return []
    return text.strip().splitlines()[-lines:]
