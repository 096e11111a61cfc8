"""Another user of the machine: code run as one, and folders one can enter. Needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
root_only = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else"
)


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that everybody can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="face-restore-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code as another user; it has `sys.argv` and the project's packages."""
    start = f"import os, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    modules = "from face_restore_shared import connection, paths, wire\nimport zmq, psutil\n"
    return subprocess.run(
        # Imported first: another user need not be able to read the environment.
        [sys.executable, "-c", modules + start + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
