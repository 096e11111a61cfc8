"""A stand-in for GIMP's console program, for the tests of the plug-in's installation.

It knows what matters there: `--version`, the profile (made at the first start), and `-b CODE`, run
with a small `gi.repository.Gimp` whose procedures are those of the plug-in in that profile. The
status procedure runs the installed copy of the plug-in in a Python without packages, as GIMP's is.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

PROGRAM = """\
#!{python}
import sys
sys.path.insert(0, {tests!r})
import fake_gimp
sys.exit(fake_gimp.main(sys.argv[1:], {version!r}, {behaviour!r}))
"""
FLATPAK = """\
#!{python}
import os, sys
if sys.argv[1:] == ["info", "org.gimp.GIMP"]:
    print("GNU Image Manipulation Program\\n")
    print("          ID: org.gimp.GIMP\\n     Version: {version}")
elif sys.argv[1:4] == ["run", "--command=gimp-console-{series}", "org.gimp.GIMP"]:
    os.execv({console!r}, [{console!r}, *sys.argv[4:]])
else:
    sys.exit("not expected: " + repr(sys.argv))
"""
STATUS = """\
import sys
sys.path.insert(0, sys.argv[1])
from restore_faces import bundled
bundled.prepare()
from restore_faces import status
from restore_faces.worker import Worker
print(status.text(Worker()))
"""


def put(folder: Path, version: str = "3.0.4", behaviour: str = "", name: str = "") -> Path:
    """Make the program; returns its path.

    behaviour: "" works; "hang", "no-python", "other-profile", "no-profile", "blind" (does not see
    plug-ins) and "broken-worker" do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"gimp-console-{version.rpartition('.')[0]}")
    tests = str(Path(__file__).resolve().parent)
    path.write_text(
        PROGRAM.format(python=sys.executable, tests=tests, version=version, behaviour=behaviour)
    )
    path.chmod(0o755)
    return path


def put_flatpak(folder: Path, hidden: Path, version: str = "3.0.4") -> None:
    """Make a command `flatpak` that knows GIMP; its program lies in `hidden`, not in the PATH."""
    console = str(put(hidden, version))
    folder.mkdir(parents=True, exist_ok=True)
    series = version.rpartition(".")[0]
    (folder / "flatpak").write_text(
        FLATPAK.format(python=sys.executable, version=version, series=series, console=console)
    )
    (folder / "flatpak").chmod(0o755)


def main(argv: list[str], version: str, behaviour: str) -> int:
    if argv == ["--version"]:
        print(f"GNU Image Manipulation Program version {version}")
        return 0
    assert {"-i", "--quit"} <= set(argv), argv
    if behaviour == "hang":
        import time

        print("thinking", flush=True)
        time.sleep(600)
    profile = _profile(version, behaviour)
    if not profile.is_dir():
        if behaviour == "no-profile":
            return 1
        profile.mkdir(parents=True)
        (profile / "gimprc").write_text("# made by GIMP\n")
    if "-b" not in argv:
        return 0
    if behaviour == "no-python":
        print("The batch interpreter 'python-fu-eval' is not available. Batch mode disabled.")
        return 69
    _install_gi(profile, version, behaviour)
    exec(argv[argv.index("-b") + 1], {})  # the code under test, as python-fu-eval does
    return 0


def _profile(version: str, behaviour: str) -> Path:
    home = Path(os.environ["HOME"])
    if behaviour == "other-profile":
        return home / "elsewhere"
    named = os.environ.get("GIMP3_DIRECTORY")
    return home / (named or f".config/GIMP/{version.rpartition('.')[0]}")


def _install_gi(profile: Path, version: str, behaviour: str) -> None:
    import types

    folder = profile / "plug-ins" / "face_restore"
    script = folder / "face_restore.py"
    runs = script.is_file() and bool(script.stat().st_mode & stat.S_IXUSR)
    is_seen = runs and behaviour != "blind"
    pdb = types.SimpleNamespace(
        lookup_procedure=lambda name: _Status(folder, behaviour) if is_seen else None
    )
    gimp = types.SimpleNamespace(
        version=lambda: version, get_pdb=lambda: pdb, directory=lambda: str(profile)
    )
    sys.modules["gi"] = types.ModuleType("gi")
    repository = types.ModuleType("gi.repository")
    repository.Gimp = gimp  # type: ignore[attr-defined]
    sys.modules["gi.repository"] = repository


class _Status:
    def __init__(self, folder: Path, behaviour: str) -> None:
        self._folder, self._behaviour = folder, behaviour

    def create_config(self) -> None:
        return None

    def run(self, _config: None) -> _Answer:
        import subprocess

        if self._behaviour == "broken-worker":
            return _Answer(3, "state: error\ncode: x\nmessage: The token does not fit.")
        # -I -S: neither our variables nor installed packages, so only what was vendored.
        command = [sys.executable, "-I", "-S", "-c", STATUS, str(self._folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stderr, file=sys.stderr)
        return _Answer(3 if done.returncode == 0 else 0, done.stdout)


class _Answer:
    def __init__(self, *values: object) -> None:
        self._values = values

    def index(self, number: int) -> object:
        return self._values[number]

    def length(self) -> int:
        return len(self._values)
