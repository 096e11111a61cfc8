"""The command line as a process of its own, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Home:
    """A folder for everything the program keeps, and commands that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("FACE_RESTORE")}
        self.env |= {"FACE_RESTORE_HOME": str(folder), "OMP_NUM_THREADS": "2"}
        roots = [str(ROOT / "worker"), str(ROOT / "shared")]
        self.env["PYTHONPATH"] = os.pathsep.join(roots)

    def command(self, *arguments: object) -> list[str]:
        """The full command line."""
        return [sys.executable, "-m", "face_restore_worker.cli", *map(str, arguments)]

    def run(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        """Run to the end; text of both streams is kept."""
        options = {"timeout": 240, "cwd": self.folder, **options}
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            self.command(*arguments),
            env=self.env,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            **options,
        )

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start and go on."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )


@contextmanager
def home(folder: Path) -> Iterator[Home]:
    """A home whose worker is ended afterwards."""
    made = Home(folder)
    try:
        yield made
    finally:
        made.run("worker", "stop")


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition holds; fails after a time no working program needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
