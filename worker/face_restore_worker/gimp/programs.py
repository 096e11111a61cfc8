"""The GIMP programs of this machine, and running them without a window for a bounded time."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from face_restore_worker.gimp.surroundings import FLATPAK_ID, GimpError, Surroundings

VERSION_SECONDS = 60.0
_CONSOLE = re.compile(r"gimp-console(-3(\.\d+)?)?(\.exe)?")
_WINDOWED = re.compile(r"gimp(-3(\.\d+)?)?(\.exe)?")
_APPIMAGE = re.compile(r"gimp[-_.]?v?3\..*\.appimage", re.IGNORECASE)
_VERSION = re.compile(r"\b(\d+)\.(\d+)\.(\d+)\b")
_TELLING = re.compile(r"face_restore|restore_faces|Error\b|python-fu-eval")
_APPIMAGE_FOLDERS = (
    "Applications", "AppImages", "Apps", "Downloads", "Desktop", "bin", ".local/bin", "",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A GIMP that can be started.

    command: without arguments. version: "3.0.4". kind: for messages, "" for a plain program.
    """

    command: tuple[str, ...]
    version: str
    kind: str = ""

    @property
    def series(self) -> str:
        """ "3.0" of "3.0.4": what its profile is named."""
        return ".".join(self.version.split(".")[:2])

    @property
    def name(self) -> str:
        """ "GIMP 3.0.4 (Flatpak)"."""
        return f"GIMP {self.version}" + (f" ({self.kind})" if self.kind else "")


@dataclass(frozen=True)
class Finished:
    """status: None when the time was up and the program was killed. output: both streams."""

    status: int | None
    output: str

    def last_words(self, count: int = 6) -> str:
        """The end of what it said: of the lines about our plug-in or an error, if there are any.

        GIMP ends with warnings of its own, which would hide them.
        """
        lines = [line for line in self.output.splitlines() if line.strip()]
        telling = [line for line in lines if _TELLING.search(line)]
        return "\n".join((telling or lines)[-count:])


def run_bounded(
    command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a program to its end, or kill it and what it started when the time is up.

    Raises GimpError (code "gimp-start") when it cannot be started.
    """
    flags = 0x08000000 if sys.platform == "win32" else 0  # no console window
    # A file, not a pipe: a plug-in that outlives GIMP would keep a pipe open.
    with tempfile.TemporaryFile() as stream:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                creationflags=flags,
            )
        except OSError as error:
            raise GimpError(
                f"{command[0]} could not be started: {error.strerror or error}.",
                hint="Give the program's full path, as in --gimp /opt/gimp/bin/gimp-console-3.0.",
                code="gimp-start",
            ) from error
        status: int | None = None
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                _kill_all(process)
        stream.seek(0)
        return Finished(status, stream.read().decode("utf-8", "replace"))


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=5)
    process.wait()


def gimp_environment(env: Mapping[str, str], profile: Path | None) -> dict[str, str]:
    """The environment GIMP would have from the user's menu, without our own Python's.

    With our environment's bin first in PATH, GIMP's plug-ins would run in a Python without gi.
    profile: passed on as GIMP3_DIRECTORY; None leaves it to GIMP.
    """
    kept = {k: v for k, v in env.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    if sys.prefix != sys.base_prefix:
        own = Path(sys.prefix) / ("Scripts" if os.name == "nt" else "bin")
        parts = kept.get("PATH", "").split(os.pathsep)
        kept["PATH"] = os.pathsep.join(part for part in parts if part and Path(part) != own)
    if profile is not None:
        kept["GIMP3_DIRECTORY"] = str(profile)
    return kept


def ask_version(command: Sequence[str], env: Mapping[str, str]) -> str | None:
    """The version a GIMP program tells, None when it tells none."""
    try:
        done = run_bounded([*command, "--version"], VERSION_SECONDS, gimp_environment(env, None))
    except GimpError:
        return None
    found = _VERSION.search(done.output) if done.status == 0 else None
    return found.group() if found else None


def find_programs(surroundings: Surroundings) -> list[Program]:
    """Every GIMP found, of version 2 as well; one for each kind and version."""
    found: dict[tuple[str, str], Program] = {}
    for command, kind in _candidates(surroundings):
        version = ask_version(command, surroundings.env)
        if version is not None:
            found.setdefault((kind, version), Program(command, version, kind))
    flatpak = _flatpak(surroundings)
    if flatpak is not None:
        found[("Flatpak", flatpak.version)] = flatpak
    return list(found.values())


def _candidates(surroundings: Surroundings) -> Iterator[tuple[tuple[str, ...], str]]:
    seen: set[Path] = set()
    for folder, kind in _program_folders(surroundings):
        for pattern in (_CONSOLE, _WINDOWED):
            for file in _files(folder, pattern):
                real = file.resolve()
                if real not in seen and "snap" not in file.parts and "snap" not in real.name:
                    seen.add(real)
                    yield (str(file),), kind
    if surroundings.platform.startswith("linux"):
        for name in _APPIMAGE_FOLDERS:
            for file in reversed(_files(surroundings.home / name, _APPIMAGE)):
                yield (str(file),), "AppImage"


def _program_folders(surroundings: Surroundings) -> list[tuple[Path, str]]:
    folders = [(folder, "") for folder in surroundings.search_path()]
    if surroundings.platform == "win32":
        programs = [
            surroundings.folder("ProgramFiles", "Program Files"),
            surroundings.folder("LOCALAPPDATA", "AppData/Local") / "Programs",
        ]
        folders += [(f, "") for root in programs for f in sorted(root.glob("GIMP*/bin"))]
    if surroundings.platform == "darwin":
        for root in (surroundings.system_root / "Applications", surroundings.home / "Applications"):
            folders += [(f, "") for f in sorted(root.glob("GIMP*.app/Contents/MacOS"))]
    return folders


def _files(folder: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone: PATH can be long
    except OSError:
        return []
    matching = (folder / entry for entry in names if name.fullmatch(entry))
    return [file for file in matching if file.is_file() and os.access(file, os.X_OK)]


def _flatpak(surroundings: Surroundings) -> Program | None:
    tool = next((f / "flatpak" for f in surroundings.search_path() if (f / "flatpak").exists()), "")
    if not tool:
        return None
    try:
        env = {**surroundings.env, "LC_ALL": "C"}
        done = run_bounded([str(tool), "info", FLATPAK_ID], VERSION_SECONDS, env)
    except GimpError:
        return None
    found = re.search(r"^\s*Version:\s*(\d+\.\d+\.\d+)", done.output, re.MULTILINE)
    if done.status != 0 or found is None:
        return None
    version = found.group(1)
    console = f"--command=gimp-console-{version.rpartition('.')[0]}"
    return Program((str(tool), "run", console, FLATPAK_ID), version, "Flatpak")


def has_snap(surroundings: Surroundings) -> bool:
    """Whether GIMP is installed as a Snap."""
    places = (surroundings.system_root / "snap" / "bin" / "gimp", surroundings.home / "snap/gimp")
    return surroundings.platform.startswith("linux") and any(place.exists() for place in places)
