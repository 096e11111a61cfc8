"""Finding the worker through its connection file, and starting it where that is possible."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from face_restore_shared import connection as connection_module
from face_restore_shared import paths, wire
from face_restore_shared.connection import USERNAME, Connection
from face_restore_shared.zmtp import PeerLost, ZmtpClient
from face_restore_shared.zmtp_frames import AuthenticationRefused

from restore_faces.bundled import Paths, read_paths
from restore_faces.errors import PluginError
from restore_faces.i18n import _

START_SECONDS = 60.0
POLL_SECONDS = 0.1
PING_SECONDS, PATIENCE_SECONDS = 0.5, 2.4
MAX_MESSAGE = 8 << 30

# What GIMP, AppImage and other bundles set for themselves would break the worker's Python.
_SCRUBBED_PREFIXES = ("PYTHON", "GIMP", "GEGL", "BABL", "GTK_", "GDK_PIXBUF", "GIO_", "GI_")
_SCRUBBED = ("APPDIR", "APPIMAGE", "ARGV0", "OWD", "LD_PRELOAD", "__PYVENV_LAUNCHER__")
_BUNDLED = ("APPDIR", "APPIMAGE", "GIMP3_PLUGINDIR", "GIMP3_DATADIR")


class Worker:
    """Where the worker is to be found; makes connections."""

    def __init__(self, settings: Paths | None = None) -> None:
        self._settings = read_paths() if settings is None else settings

    @property
    def connection_file(self) -> Path:
        state = self._settings.state_dir
        return paths.connection_file() if state is None else state / "worker.json"

    @property
    def output_file(self) -> Path:
        """What a worker started here writes before it has a log."""
        state = self._settings.state_dir
        return paths.output_file() if state is None else state / "logs" / "worker-output.log"

    @property
    def log(self) -> str:
        """The log's path for messages; "" when there is none yet."""
        file = self.output_file.with_name("worker.log")
        return str(file) if file.exists() else ""

    def find(self) -> Connection | None:
        """What the connection file says, None when there is none.

        Raises ConnectionFileError, and wire.ProtocolMismatch for a worker of another version.
        """
        found = connection_module.read(self.connection_file)
        if found is not None:
            wire.raise_mismatch(found.protocol, peer="worker")
        return found

    def connect(self, timeout: float = 5.0) -> ZmtpClient | None:
        """A connection to the running worker, None when none runs.

        Raises PluginError (codes "wrong-token", "worker-silent"), ConnectionFileError,
        wire.ProtocolMismatch.
        """
        refused: AuthenticationRefused | None = None
        for _attempt in range(2):
            found = self.find()
            if found is None:
                return None
            try:
                return _open(found, timeout)
            except AuthenticationRefused as error:
                refused = error  # it may just have been replaced: the file is read once more
                time.sleep(POLL_SECONDS)
            except PeerLost as error:
                if self._replaced_or_gone(found):
                    return None
                raise PluginError(
                    _("The worker (process {pid}) does not answer.").format(pid=found.pid),
                    hint=_("Restart it in a terminal: face-restore worker restart"),
                    code="worker-silent",
                ) from error
        raise PluginError(
            _("The worker refused the connection: the token does not fit."),
            hint=_("Restart it in a terminal: face-restore worker restart"),
            code="wrong-token",
        ) from refused

    def _replaced_or_gone(self, found: Connection) -> bool:
        """Whether nothing listens at its port any more (its process may be in another sandbox)."""
        import socket

        if self.find() != found:
            return True
        try:
            socket.create_connection(("127.0.0.1", found.port), timeout=1.0).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

    def ensure(self, on_start: Callable[[], None], on_wait: Callable[[], None]) -> ZmtpClient:
        """A connection to a worker, started when none runs.

        on_start: told before one is started. on_wait: called while waiting for it.
        Raises as `connect`, and PluginError (code "worker-start") when none can be started.
        """
        client = self.connect()
        if client is not None:
            return client
        self._check_startable()
        on_start()
        offset = self.output_file.stat().st_size if self.output_file.exists() else 0
        process = self._spawn()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            client = self.connect()
            if client is not None:
                return client
            status = process.poll()
            if status not in (None, 0):  # 0: another one was started at the same moment
                raise self._not_started(
                    _("It ended with status {status}.").format(status=status), offset
                )
            on_wait()
            time.sleep(POLL_SECONDS)
        raise self._not_started(
            _("It was not ready within {seconds} seconds.").format(seconds=int(START_SECONDS)),
            offset,
        )

    def _check_startable(self) -> None:
        sandbox = sandbox_name()
        if sandbox:
            raise PluginError(
                _("No worker is running, and a GIMP from {sandbox} cannot start it.").format(
                    sandbox=sandbox
                ),
                hint=_("Start it in a terminal: face-restore worker start"),
                code="worker-start",
            )
        if not self._settings.worker_command:
            raise PluginError(
                _("No worker is running, and the plug-in does not know how to start it ({why}).")
                .format(why=self._settings.problem or "worker_command"),
                hint=_("Install the plug-in again: face-restore gimp install"),
                code="worker-start",
            )  # fmt: skip

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the worker outside GIMP's process group, without GIMP's environment."""
        output = self.output_file
        paths.private_folder(output.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        home = Path("~").expanduser()
        try:
            with os.fdopen(os.open(output, flags, 0o600), "ab") as stream:
                return subprocess.Popen(
                    self._settings.worker_command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=home if home.is_dir() else None,
                    env=environment(),
                    **_detached(),
                )
        except OSError as error:
            raise PluginError(
                _("The worker could not be started: {why}.").format(why=error),
                hint=_("Install the plug-in again: face-restore gimp install"),
                code="worker-start",
            ) from error

    def _not_started(self, why: str, offset: int) -> PluginError:
        try:
            with self.output_file.open("rb") as file:
                file.seek(offset)
                tail = file.read(64 * 1024).decode("utf-8", "replace").strip().splitlines()[-3:]
        except OSError:
            tail = []
        said = " ".join(tail)
        return PluginError(
            " ".join(part for part in (_("The worker could not be started."), why, said) if part),
            hint=_("Its messages are in {path}; face-restore doctor checks the set-up.").format(
                path=self.output_file
            ),
            code="worker-start",
        )


def _open(found: Connection, timeout: float) -> ZmtpClient:
    return ZmtpClient(
        "127.0.0.1",
        found.port,
        USERNAME,
        found.token,
        timeout=timeout,
        heartbeat=PING_SECONDS,
        patience=PATIENCE_SECONDS,
        max_frame=wire.MAX_FRAME,
        max_message=MAX_MESSAGE,
    )


def sandbox_name() -> str:
    """ "Flatpak" or "Snap" when GIMP runs in one, which may not start programs; else ""."""
    if os.environ.get("FLATPAK_ID") or Path("/.flatpak-info").exists():
        return "Flatpak"
    if "gimp" in os.environ.get("SNAP_NAME", "") or "/snap/gimp" in os.environ.get("SNAP", ""):
        return "Snap"
    return ""


def environment() -> dict[str, str]:
    """The environment for the worker, without what belongs to GIMP or a bundle."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_SCRUBBED_PREFIXES) and name not in _SCRUBBED
    }
    if any(name in os.environ for name in _BUNDLED):
        env.pop("LD_LIBRARY_PATH", None)
    return env


def _detached() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": 0x00000008 | 0x00000200 | 0x08000000}  # detached, no window
    return {"start_new_session": True}
