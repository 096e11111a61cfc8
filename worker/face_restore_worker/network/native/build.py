"""Compile the kernels beside this file, where there is a C compiler and an x86-64 processor.

    python -m face_restore_worker.network.native.build

Standard library only, and it imports nothing of the package: the installation runs it as a file
(`installer/hatch_build.py`). Without the library everything works, slower.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / ("kernels.dll" if sys.platform == "win32" else "kernels.so")
COMPILERS = ("cc", "gcc", "clang")
PLAIN = "library.c"  # asks the processor what it has, so it must run on any
_FLAGS = ["-std=c11", "-O3", "-fPIC", "-fno-math-errno"]
_AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "bf16", "vnni")] + ["-mfma"]
_SECONDS = 300


def source_version() -> int:
    """64 bits of a digest of the sources and of how they are compiled."""
    digest = hashlib.sha256(" ".join(_FLAGS + _AVX512).encode())
    for file in sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")]):
        # Whatever line ends a checkout has.
        digest.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n"))
    return int.from_bytes(digest.digest()[:8], "big")


def compiler() -> list[str] | None:
    """The command of a C compiler: $CC, else the first of cc, gcc and clang; None without one."""
    wish = shlex.split(os.environ.get("CC", ""))
    for command in [wish] if wish else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    return None


def build(*more_flags: str, library: Path = LIBRARY) -> str:
    """Compile the library unless it is there already; returns a line that says what came of it.

    Never raises: whatever is in the way is in the line.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"compiled kernels: not for this processor ({platform.machine()})"
    command = compiler()
    if command is None:
        return "compiled kernels: no C compiler found, so torch computes (set CC to use one)"
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / library.name
            _compile(command, list(more_flags), Path(folder), made)
            # Put in place whole: a program that has the old one loaded keeps it.
            beside = library.with_name(f".{os.getpid()}-{library.name}")
            shutil.copyfile(made, beside)
            beside.replace(library)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines()[-1:] or [f"status {error.returncode}"]
        return f"compiled kernels: {command[0]} failed, so torch computes: {reason[0]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"compiled kernels: not made, so torch computes: {error}"
    return f"compiled kernels: made with {command[0]}"


def _compile(command: list[str], more: list[str], folder: Path, library: Path) -> None:
    objects = []
    for source in sorted(FOLDER.glob("*.c")):
        flags = [*_FLAGS, *more, f"-DSOURCE_VERSION={source_version()}ULL"]
        flags += [] if source.name == PLAIN else _AVX512
        target = folder / f"{source.stem}.o"
        _run([*command, *flags, "-c", str(source), "-o", str(target)])
        objects.append(str(target))
    _run([*command, "-shared", *objects, "-o", str(library)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)


if __name__ == "__main__":
    print(build())
