"""What all fuzzing targets share: their form, and the watch over memory and system calls."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MB = 1 << 20
# What reading data must never lead to, whatever the data says.
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.putenv",
    "subprocess.Popen",
    "shutil.rmtree",
    "ctypes.dlopen",
    "socket.connect",
    "ftplib.connect",
)


class Finding(AssertionError):
    """The code under test broke one of its promises."""


@dataclass(frozen=True)
class Target:
    """Something that takes bytes from outside.

    seeds: examples to start from, made by code. check: feeds bytes to the code; raises whatever
    the code must not raise, and Finding where it breaks another promise. mutate: changes an
    input with knowledge of its form, given a random generator (None: bytes are changed blindly).
    memory: bytes of memory one input may take.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], None]
    memory: int = 64 * MB
    mutate: Callable[[bytes, Any], bytes] | None = None


class _Audit:
    """Sees forbidden events while switched on; an audit hook cannot be taken off again."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in _FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:200])


_audit: _Audit | None = None


@contextlib.contextmanager
def no_side_effects() -> Iterator[None]:
    """Raise Finding when the body starts programs, loads libraries or connects somewhere."""
    global _audit
    if _audit is None:
        _audit = _Audit()
        sys.addaudithook(_audit)
    _audit.seen.clear()
    _audit.on = True
    try:
        yield
    finally:
        _audit.on = False
    if _audit.seen:
        raise Finding(f"reading led to {_audit.seen}")


def peak_memory() -> int | None:
    """This process's largest resident size in bytes since the last reset; None where unknown."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def reset_peak() -> None:
    """Let `peak_memory` begin again at what is resident now (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Raise Finding when the body makes this process more than `limit` bytes larger."""
    reset_peak()
    before = peak_memory()
    yield
    after = peak_memory()
    if before is not None and after is not None and after - before > limit:
        raise Finding(f"one input took {(after - before) >> 20} MB; {limit >> 20} are allowed")


_folder: tempfile.TemporaryDirectory[str] | None = None


def in_file(data: bytes, suffix: str) -> Path:
    """The data as a file, always under the same name."""
    global _folder
    if _folder is None:
        memory = Path("/dev/shm")
        _folder = tempfile.TemporaryDirectory(
            prefix="face-restore-fuzz-",
            dir=memory if os.access(memory, os.W_OK) else None,
        )
    path = Path(_folder.name) / f"input{suffix}"
    # A new file each time: the one before may still be mapped.
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path
