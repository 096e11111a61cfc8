"""Finding the worker through its connection file, and starting it where that is possible."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from face_restore_shared import connection as connection_module
from face_restore_shared import paths, wire
from face_restore_shared.connection import USERNAME, Connection
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import PROTOCOL_VERSION
from face_restore_shared.zmtp import PeerLost, ZmtpClient
from face_restore_shared.zmtp_frames import AuthenticationRefused, ProtocolViolation

from restore_faces.bundled import Paths, read_paths
from restore_faces.errors import PluginError
from restore_faces.i18n import _
from restore_faces.starting import Requested, Spawned, Start, sandbox_name

POLL_SECONDS = 0.1
ATTEMPTS = 3  # the file may be of a worker that was replaced a moment ago
PING_SECONDS, PATIENCE_SECONDS = 0.5, 2.4
REFUSAL_SECONDS = 4.0  # Windows takes two to say that nothing listens at a port
MAX_MESSAGE = 8 << 30


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

        Raises ConnectionFileError, and wire.ProtocolMismatch for a worker of another version; not
        for one that has left its file behind, as before an update.
        """
        found = connection_module.read(self.connection_file)
        if found is None:
            return None
        if found.protocol != PROTOCOL_VERSION and (_died(found) or _is_closed(found.port)):
            return None
        wire.raise_mismatch(found.protocol, peer="worker")
        return found

    def connect(self, timeout: float = 5.0) -> ZmtpClient | None:
        """A connection to the running worker, None when none runs.

        Raises PluginError (codes "wrong-token", "worker-silent", "worker-foreign"),
        ConnectionFileError, wire.ProtocolMismatch.
        """
        left = ATTEMPTS
        while True:
            found = self.find()
            if found is None:
                return None
            began = time.monotonic()
            left -= 1
            try:
                return _open(found, timeout)
            except (AuthenticationRefused, ProtocolViolation, PeerLost) as error:
                lost = isinstance(error, PeerLost)
                if _died(found) or (lost and self._replaced_or_gone(found)):
                    return None
                # One that hung up at once is just ending or was replaced; a silent one is not.
                if left == 0 or (lost and time.monotonic() - began > timeout / 2):
                    raise _unusable(found, error) from error
            time.sleep(POLL_SECONDS)

    def _replaced_or_gone(self, found: Connection) -> bool:
        """Whether nothing listens at its port any more (its process may be in another sandbox)."""
        return self.find() != found or _is_closed(found.port)

    def ensure(self, on_wait: Callable[[str], None]) -> ZmtpClient:
        """A connection to a worker, started when none runs.

        on_wait: called with the stage (progress.text) again and again while one is waited for.
        Raises as `connect`, and PluginError (code "worker-start") when none can be started.
        """
        client = self.connect()
        if client is not None:
            return client
        start = self._start()
        try:
            while True:
                on_wait(start.stage)
                client = self.connect()
                if client is not None:
                    return client
                start.check()
                time.sleep(POLL_SECONDS)
        finally:
            start.end()

    def start_problem(self) -> PluginError | None:
        """Why none can be started, as far as that is known before it is tried."""
        if sandbox_name() or self._settings.worker_command:
            return None
        return PluginError(
            _("No worker is running, and the plug-in does not know how to start it ({why}).")
            .format(why=self._settings.problem or "worker_command"),
            hint=_("Install the plug-in again: face-restore gimp install"),
            code="worker-start",
        )  # fmt: skip

    def _start(self) -> Start:
        sandbox, problem = sandbox_name(), self.start_problem()
        if sandbox:
            return Requested(self.connection_file.parent, sandbox)
        if problem is not None:
            raise problem
        return Spawned(self._settings.worker_command, self.output_file)


def _died(found: Connection) -> bool:
    """Whether the worker of this file has ended for certain: its port may be another's by now.

    A sandbox has process numbers of its own, and not every system tells when a process was born.
    """
    if found.born is None or sandbox_name():
        return False
    return connection_module.birth(found.pid) != found.born


def _is_closed(port: int) -> bool:
    """Whether nothing listens at this port of this machine."""
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), timeout=REFUSAL_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _unusable(found: Connection, error: FaceRestoreError) -> PluginError:
    """Why the worker of this file cannot be talked to."""
    message, code = _("The worker (process {pid}) does not answer."), "worker-silent"
    if isinstance(error, AuthenticationRefused):
        message, code = (
            _("The worker refused the connection: the token does not fit."),
            "wrong-token",
        )
    elif isinstance(error, ProtocolViolation):
        message, code = _("Another program answers in place of the worker."), "worker-foreign"
    return PluginError(
        message.format(pid=found.pid),
        hint=_("Restart it in a terminal: face-restore worker restart"),
        code=code,
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
