"""The plug-in's folder as GIMP wants it: plug-in, shared code, msgpack, where the worker is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import face_restore_shared
from face_restore_shared.errors import FaceRestoreError

NAME = "face_restore"
SCRIPT = "face_restore.py"
PATHS_FILE = "face_restore_paths.json"
VENDORED = "vendor"
# msgpack's compiled part fits one Python only; its pure one fits all.
_MSGPACK = ("__init__.py", "exceptions.py", "ext.py", "fallback.py")


def plugin_source() -> Path:
    """The plug-in's own files: in the checkout, or in the installed package's data.

    Raises FaceRestoreError (code "plug-in-files") when they are in neither.
    """
    package = Path(__file__).resolve().parent
    places = (package / NAME, package.parents[2] / "plugin_gimp" / NAME)
    for place in places:
        if (place / SCRIPT).is_file():
            return place
    raise FaceRestoreError(
        f"The plug-in's files are missing (looked in {places[0]} and {places[1]}).",
        hint="Install the program again.",
        code="plug-in-files",
    )


def install_plugin(
    target_plugins_dir: Path, worker_command: list[str], state_dir: Path | None = None
) -> Path:
    """Put the plug-in into GIMP's folder plug-ins; returns its own folder there.

    An older one is replaced as a whole, so nothing of it is left. Made beside it first: GIMP never
    sees half of it.
    worker_command: runs a worker in the foreground. state_dir: where the worker keeps its
    connection file, None for the usual place.
    Raises FaceRestoreError (code "plug-in-files") and OSError.
    """
    target_plugins_dir.mkdir(parents=True, exist_ok=True)
    final = target_plugins_dir / NAME
    # GIMP looks only for NAME/NAME.py, so this one is not run.
    fresh = target_plugins_dir / f".{NAME}.new-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _fill(fresh, worker_command, state_dir)
        old = target_plugins_dir / f".{NAME}.old-{os.getpid()}"
        if final.exists():
            final.rename(old)
        fresh.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final


def _fill(folder: Path, worker_command: list[str], state_dir: Path | None) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.po", "*.pot")
    shutil.copytree(plugin_source(), folder, ignore=ignored)
    shared = Path(face_restore_shared.__file__ or "").resolve().parent
    shutil.copytree(shared, folder / "face_restore_shared", ignore=ignored)
    _vendor_msgpack(folder / VENDORED / "msgpack")
    values: dict[str, object] = {"worker_command": worker_command}
    if state_dir is not None:
        values["state_dir"] = str(state_dir)
    (folder / PATHS_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (folder / SCRIPT).chmod(0o755)


def _vendor_msgpack(folder: Path) -> None:
    """msgpack's pure-Python files, as installed here; it runs without its compiled part."""
    import msgpack

    source = Path(msgpack.__file__ or "").resolve().parent
    folder.mkdir(parents=True)
    for name in _MSGPACK:
        shutil.copyfile(source / name, folder / name)
    for licence in source.parent.glob("msgpack-*.dist-info/**/COPYING"):
        shutil.copyfile(licence, folder / "COPYING")
