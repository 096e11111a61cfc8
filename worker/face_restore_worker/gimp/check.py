"""Is what lies in a profile the plug-in of this version, whole and unchanged?"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from face_restore_shared.version import __version__

from face_restore_worker.gimp.layout import NAME, PATHS_FILE, SCRIPT, install_plugin

COMMAND_SECONDS = 60.0
_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_SHOWN = 4


def plugin_folder(profile: Path) -> Path:
    """Where the plug-in lies in a profile."""
    return profile / "plug-ins" / NAME


def is_ours(folder: Path) -> bool:
    """Whether a folder named as ours was made by us, whole or half."""
    return (folder / SCRIPT).is_file() or (folder / PATHS_FILE).is_file()


def installed_version(folder: Path) -> str | None:
    """The version that lies there; None where none can be read."""
    try:
        text = (folder / "face_restore_shared" / "version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = _VERSION.search(text)
    return found.group(1) if found else None


def find_problems(profile: Path) -> list[str]:
    """What is wrong with the plug-in's files in a profile; empty when nothing is."""
    folder = plugin_folder(profile)
    if not folder.is_dir():
        return [f"the plug-in is not installed ({folder} is missing)"]
    version = installed_version(folder)
    if version != __version__:
        return [f"version {version or 'unknown'} is installed, this program is {__version__}"]
    with tempfile.TemporaryDirectory() as name:
        expected = install_plugin(Path(name), [])
        problems = _differences(folder, expected)
    if os.name == "posix" and not _may_run(folder / SCRIPT):
        problems.append(f"{SCRIPT} is not executable")
    return problems + command_problems(folder)


def _differences(folder: Path, expected: Path) -> list[str]:
    there, wanted = _files(folder), _files(expected)
    kinds = (
        ("missing", wanted - there),
        ("not ours", there - wanted),
        ("changed", {f for f in wanted & there if _differs(folder / f, expected / f)}),
    )
    problems = []
    for kind, names in kinds:
        if names:
            shown = ", ".join(sorted(map(str, names))[:_SHOWN])
            more = len(names) - _SHOWN
            problems.append(f"{kind}: {shown}" + (f" and {more} more" if more > 0 else ""))
    return problems


def _files(folder: Path) -> set[Path]:
    # GIMP's Python leaves its compiled files there.
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _differs(file: Path, expected: Path) -> bool:
    if file.name == PATHS_FILE:  # its content is checked by itself
        return False
    return file.read_bytes() != expected.read_bytes()


def _may_run(script: Path) -> bool:
    return script.is_file() and bool(script.stat().st_mode & stat.S_IXUSR)


def worker_command() -> list[str]:
    """What runs the worker in the foreground, from any program and folder.

    The plug-in starts it without PYTHON* variables, and GIMP may have been started without the
    variables that say where our files are: what is set now is written into the command.
    """
    python = [sys.executable, "-P"]
    module = "face_restore_worker.server"
    values = {
        key: str(Path(os.environ[key]).expanduser().absolute())
        for key in ("FACE_RESTORE_HOME", "FACE_RESTORE_MODELS", "FACE_RESTORE_CATALOGUE")
        if os.environ.get(key)
    }
    paths = _import_paths()
    if not values and not paths:
        return [*python, "-m", module, "--quiet"]
    code = (
        f"import os, sys; os.environ.update({values!r}); sys.path[:0] = {paths!r}; "
        f"from {module}.process import main; sys.exit(main())"
    )
    return [*python, "-c", code, "--quiet"]


def _import_paths() -> list[str]:
    """Folders to add for a checkout that is run without being installed."""
    from importlib import metadata

    import face_restore_shared

    import face_restore_worker

    try:
        metadata.version("gimp-face-restore")
    except metadata.PackageNotFoundError:
        modules = (face_restore_worker, face_restore_shared)
        roots = [str(Path(module.__file__ or "").resolve().parents[1]) for module in modules]
        return list(dict.fromkeys(roots))
    return []


def state_dir() -> Path | None:
    """Where the plug-in finds the connection file, None for the usual place."""
    from face_restore_shared import paths

    is_moved = any(os.environ.get(key) for key in ("FACE_RESTORE_HOME", "XDG_STATE_HOME"))
    return paths.state_dir() if is_moved else None


def command_problems(folder: Path) -> list[str]:
    """What is wrong with the worker's command the plug-in was given, tried by its --help."""
    try:
        command = json.loads((folder / PATHS_FILE).read_text(encoding="utf-8"))["worker_command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{PATHS_FILE} cannot be read ({error})"]
    if not isinstance(command, list) or not command or not all(isinstance(c, str) for c in command):
        return [f"{PATHS_FILE} holds no command for the worker"]
    shown = shlex.join(command[:3])
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [*command, "--help"], capture_output=True, timeout=COMMAND_SECONDS, env=env, check=False
        )
    except FileNotFoundError:
        return [f"the worker's command does not exist any more ({shown})"]
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"the worker's command does not run: {error}"]
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return [f"the worker's command fails: {words[-1] if words else done.returncode} ({shown})"]
    return []
