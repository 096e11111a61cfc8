"""What the installer put beside the plug-in: shared code, msgpack, where the worker lives."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
PATHS_FILE = "face_restore_paths.json"
VENDORED = "vendor"


def prepare(folder: Path = FOLDER) -> None:
    """Make face_restore_shared and msgpack importable; GIMP's own msgpack is preferred."""
    if importlib.util.find_spec("msgpack") is None:
        sys.path.append(str(folder / VENDORED))


@dataclass(frozen=True)
class Paths:
    """worker_command: runs a worker in the foreground; empty when it is not known.

    state_dir: where the worker keeps its connection file, None for the usual place.
    problem: why the file could not be read, "" when it could.
    """

    worker_command: tuple[str, ...] = ()
    state_dir: Path | None = None
    problem: str = ""


def read_paths(folder: Path = FOLDER) -> Paths:
    """What the installer wrote; never raises: a broken file is told as `problem`."""
    file = folder / PATHS_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        command = values.get("worker_command", [])
        state = values.get("state_dir")
        if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
            raise ValueError("worker_command is not a list of texts")
        if state is not None and not isinstance(state, str):
            raise ValueError("state_dir is not a text")
    except FileNotFoundError:
        return Paths(problem=f"{file} is missing")
    except (OSError, ValueError, AttributeError) as error:
        return Paths(problem=f"{file}: {error}")
    return Paths(tuple(command), Path(state) if state else None)
