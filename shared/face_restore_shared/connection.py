"""The connection file: how clients find the running worker and log in to it.

JSON, mode 0600, in a folder of mode 0700, replaced atomically, removed when the worker ends. It is
trusted only when it is the user's own regular file that nobody else can read or write.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from face_restore_shared.errors import ConnectionFileError
from face_restore_shared.paths import private_folder

MAX_FILE = 16 * 1024
USERNAME = "face-restore"
_ENDPOINT = re.compile(r"tcp://127\.0\.0\.1:([1-9][0-9]{0,4})")
_TOKEN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Connection:
    """What the connection file holds.

    endpoint: "tcp://127.0.0.1:PORT". token: 256 bits as 64 hex digits, the PLAIN password; it
    never shows in repr(). pid: of the worker. protocol: the version it speaks. version: of the
    package. started: seconds since the epoch. log: path of the worker's log. born: see `birth`;
    with pid it names the process whatever the clock does, None where the system does not say.
    """

    endpoint: str
    token: str = field(repr=False)
    pid: int
    protocol: int
    version: str
    started: float
    log: str
    born: int | None = None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        return int(self.endpoint.rpartition(":")[2])

    def public(self) -> dict[str, Any]:
        """Everything but the token, for messages and logs."""
        values = asdict(self)
        del values["token"]
        return values


def birth(pid: int) -> int | None:
    """When a process started, in the system's ticks since the machine did (Linux: proc(5), stat).

    The same number for the process's whole life, also when the clock is set; None when there is
    no such process or the system does not say.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        # The name, in parentheses, may hold anything; starttime is the 22nd field.
        return int(text.rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def write(path: Path, connection: Connection) -> None:
    """Write the file atomically, mode 0600, in a folder of mode 0700.

    Raises FaceRestoreError when the folder cannot be used and OSError when writing fails.
    """
    import tempfile  # only the worker writes: clients start sooner

    private_folder(path.parent)
    # mkstemp makes the file 0600 and never follows or overwrites what is there.
    handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(connection), file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def read(path: Path) -> Connection | None:
    """The file's content, None when there is no file.

    Raises ConnectionFileError when it is malformed, no regular file, not the user's own, or open
    to others.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        # Windows has no O_NOFOLLOW.
        if path.is_symlink():
            raise _error(path, "is a symbolic link")
        handle = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _error(path, f"cannot be opened ({error.strerror})") from error
    try:
        _check_owner(path, os.fstat(handle))
        data = _read(handle)
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror})") from error
    finally:
        os.close(handle)
    if len(data) > MAX_FILE:
        raise _error(path, "is too large")
    return parse(data, path)


def parse(data: bytes, path: Path) -> Connection:
    """A Connection from the file's bytes; `path` is for the message of ConnectionFileError."""
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _error(path, "is not valid JSON") from error
    if not isinstance(values, dict):
        raise _error(path, "does not hold a JSON object")
    checks = {
        "endpoint": lambda v: isinstance(v, str) and _good_endpoint(v),
        "token": lambda v: isinstance(v, str) and _TOKEN.fullmatch(v) is not None,
        "pid": lambda v: type(v) is int and 0 < v < 1 << 32,
        "protocol": lambda v: type(v) is int and 0 <= v <= 1_000_000,
        "version": lambda v: isinstance(v, str) and len(v) <= 100,
        "started": lambda v: type(v) in (int, float) and 0 <= v < 1e12,
        "log": lambda v: isinstance(v, str) and len(v) <= 4096,
    }
    for name, good in checks.items():
        if name not in values:
            raise _error(path, f"lacks the field {name}")
        if not good(values[name]):
            raise _error(path, f"has a wrong value for {name}")
    born = values.get("born")
    if born is not None and not (type(born) is int and 0 <= born < 1 << 63):
        raise _error(path, "has a wrong value for born")
    return Connection(**{name: values[name] for name in checks}, born=born)


def remove(path: Path, token: str | None = None) -> None:
    """Remove the file; with `token` only when it is still that worker's."""
    if token is not None:
        try:
            current = read(path)
        except ConnectionFileError:
            return
        if current is None or current.token != token:
            return
    path.unlink(missing_ok=True)


def _good_endpoint(value: str) -> bool:
    match = _ENDPOINT.fullmatch(value)
    return match is not None and int(match[1]) <= 65535


def _read(handle: int) -> bytes:
    """The file's bytes, at most one more than MAX_FILE."""
    data = b""
    while len(data) <= MAX_FILE and (part := os.read(handle, MAX_FILE + 1 - len(data))):
        data += part
    return data


def _check_owner(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise _error(path, "is not a regular file")
    if os.name != "posix":
        return
    if info.st_uid != os.geteuid():
        raise _error(path, "belongs to another user")
    if info.st_mode & 0o077:
        raise _error(path, "can be read or written by other users")
    folder = path.parent.stat()
    if folder.st_uid not in (os.geteuid(), 0) or folder.st_mode & 0o022:
        raise _error(path, "lies in a folder other users can write to")


def _error(path: Path, why: str) -> ConnectionFileError:
    return ConnectionFileError(
        f"The worker's connection file {path} {why}.",
        hint="Remove it and start the worker again (face-restore worker restart).",
    )
