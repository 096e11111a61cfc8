"""A real worker process with a scripted engine, and with faults where they are asked for.

Environment:
    FAULT_ERRNO: "CALL:ERRNO:NAME[:AFTER]", several with spaces: from call number AFTER (0) on,
        CALL (open, fsync, flock, replace, truncate, write) of a file whose path holds NAME fails
        with this error.
    FAULT_HOLD: "imported", "locked" or "bound": the start halts there for FAULT_SECONDS (5).
    FAULT_PROTOCOL: the protocol version this worker speaks.
    FAULT_CLOCK: the wall clock jumps by a day, forth and back, whenever it is looked at.

A job's script (see fake_engine) may also have `raise=WHAT@WHERE`: WHAT is the name of an
exception, or "unspeakable", whose text cannot be had; WHERE is take, progress, face, result,
size or text.
"""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_engine import FakeEngine, _script, _trace


class Unspeakable(Exception):
    """An exception that fails to say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Faults:
    """Lets system calls fail as a disk would."""

    def __init__(self, text: str) -> None:
        self.rules = [rule.split(":") for rule in text.split()]
        self.calls: dict[str, int] = {}

    def check(self, call: str, path: object) -> None:
        """Fail when a rule says so."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        for number, (name, code, part, *after) in enumerate(self.rules):
            if name == call and part in str(path):
                key = f"{number}"
                self.calls[key] = self.calls.get(key, 0) + 1
                if self.calls[key] > int(after[0] if after else 0):
                    value = getattr(errno, code)
                    raise OSError(value, os.strerror(value), str(path))

    def install(self) -> None:
        """Put the checks before the system's calls."""
        import fcntl

        def checked(module: Any, name: str, call: str) -> None:
            original = getattr(module, name)

            def instead(path: Any, *args: Any, **more: Any) -> Any:
                self.check(call, path)
                return original(path, *args, **more)

            setattr(module, name, instead)

        for name in ("open", "fsync", "replace", "truncate", "write"):
            checked(os, name, name)
        checked(fcntl, "flock", "flock")


def hold(where: str) -> None:
    """Halt here when FAULT_HOLD says so."""
    if os.environ.get("FAULT_HOLD") == where:
        _trace(f"held {where} {os.getpid()}")
        time.sleep(float(os.environ.get("FAULT_SECONDS", "5")))


class FaultyEngine(FakeEngine):
    """A FakeEngine whose jobs can fail anywhere."""

    def run(self, request: Any, buffers: Any, *, progress: Any, cancelled: Any) -> Any:
        script = _script(request.restore.model) if hasattr(request, "restore") else {}
        what, _, where = script.get("raise", "").partition("@")

        def fail(here: str) -> None:
            if what and here == where:
                _trace(f"raised {what} at {where}")
                if what == "unspeakable":
                    raise Unspeakable
                raise getattr(builtins, what)("as told")

        def report(stage: str, *numbers: Any) -> None:
            progress(stage, *numbers)
            fail("progress" if stage == "detecting" else "face" if stage == "restoring" else "")

        fail("take")
        result, pixels = super().run(request, buffers, progress=report, cancelled=cancelled)
        fail("result")
        if where == "size":
            pixels = pixels[:-1]
        if where == "text":
            result = replace(result, notes=(Unspeakable(),))  # what no message can carry
        return result, pixels


def main() -> int:
    """Run the worker with the faults of the environment."""
    Faults(os.environ.get("FAULT_ERRNO", "")).install()
    hold("imported")
    if "FAULT_CLOCK" in os.environ:
        clock, looks = time.time, itertools.count()
        time.time = lambda: clock() + 86400 * (next(looks) % 2)
    from face_restore_shared import connection, schema, wire
    from face_restore_worker.server import lock, process, service

    if "FAULT_PROTOCOL" in os.environ:
        version = int(os.environ["FAULT_PROTOCOL"])
        from face_restore_worker.server import loop

        for module in (schema, wire, loop, service):
            module.PROTOCOL_VERSION = version
        wire.Header.__dataclass_fields__["version"].default = version
    acquire, write = lock.InstanceLock.acquire, connection.write

    def acquired(self: Any) -> bool:
        got = acquire(self)
        if got:
            hold("locked")
        return got

    def written(*args: Any) -> None:
        hold("bound")
        write(*args)

    lock.InstanceLock.acquire = acquired  # type: ignore[method-assign]
    connection.write = written
    delay = float(os.environ.get("FAKE_ENGINE_START_DELAY", "0"))
    return process.main(sys.argv[1:], lambda args: FaultyEngine(delay))


if __name__ == "__main__":
    sys.exit(main())
