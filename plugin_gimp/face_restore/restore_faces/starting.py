"""Getting a worker started: by this process where it may start programs, else by asking for it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from face_restore_shared import paths, spawning
from face_restore_shared.errors import FaceRestoreError

from restore_faces.errors import PluginError
from restore_faces.i18n import _

START_SECONDS = 60.0
NOTICE_SECONDS = 10.0  # a request that nobody took by then will not be taken
REQUEST = "start-request"  # installer/face-restore-worker.path watches it


class Start(Protocol):
    """A worker that was started or asked for, and is waited for now."""

    stage: str  # for the progress (progress.text)

    def check(self) -> None:
        """Raise PluginError (code "worker-start") when waiting any longer is of no use."""

    def end(self) -> None:
        """Waiting is over."""


class Spawned:
    """A worker started by this process, outside GIMP's process group and environment.

    output: a file for what it writes before it has a log.
    """

    stage = "starting"

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self._output = output
        self._offset = spawning.prepare_output(output)
        self._deadline = time.monotonic() + START_SECONDS
        try:
            self._process = spawning.spawn(command, output, spawning.environment())
        except OSError as error:
            raise PluginError(
                _("The worker could not be started: {why}.").format(why=error),
                hint=_("Install the plug-in again: face-restore gimp install"),
                code="worker-start",
            ) from error

    def check(self) -> None:
        status = self._process.poll()
        if status not in (None, 0):  # 0: another one was started at the same moment
            raise self._failed(_("It ended with status {status}.").format(status=status))
        if time.monotonic() > self._deadline:
            raise self._failed(
                _("It was not ready within {seconds} seconds.").format(seconds=int(START_SECONDS))
            )

    def end(self) -> None:
        """Nothing: the worker stays."""

    def _failed(self, why: str) -> PluginError:
        tail = spawning.tail(self._output, self._offset, 3)
        said = f'"{" ".join(tail)}"' if tail else ""
        return PluginError(
            " ".join(part for part in (_("The worker could not be started."), why, said) if part),
            hint=_("Its messages are in {path}; face-restore doctor checks the set-up.").format(
                path=self._output
            ),
            code="worker-start",
        )


class Requested:
    """A worker asked for with a file, from a sandbox that may not start programs.

    systemd's path unit takes the file away and starts the worker. Where nobody does, the user has
    some seconds to start one in a terminal, which the progress tells, and is told so at last.
    """

    stage = "requested"

    def __init__(self, folder: Path, sandbox: str) -> None:
        self._file = folder / REQUEST
        self._sandbox = sandbox
        now = time.monotonic()
        self._notice, self._deadline = now + NOTICE_SECONDS, now + START_SECONDS
        try:
            paths.private_folder(folder)
            self._file.touch(mode=0o600)
        except (OSError, FaceRestoreError) as error:
            raise self._failed() from error

    def check(self) -> None:
        now = time.monotonic()
        if now > self._deadline or (now > self._notice and self._file.exists()):
            raise self._failed()

    def end(self) -> None:
        """Take a request back that nobody took: it would start a worker at some later time."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _failed(self) -> PluginError:
        return PluginError(
            _("No worker is running, and a GIMP from {sandbox} cannot start it.").format(
                sandbox=self._sandbox
            ),
            hint=_("Start it in a terminal: face-restore worker start"),
            code="worker-start",
        )


def sandbox_name() -> str:
    """ "Flatpak" or "Snap" when GIMP runs in one, which may not start programs; else ""."""
    if os.environ.get("FLATPAK_ID") or Path("/.flatpak-info").exists():
        return "Flatpak"
    if "gimp" in os.environ.get("SNAP_NAME", "") or "/snap/gimp" in os.environ.get("SNAP", ""):
        return "Snap"
    return ""
