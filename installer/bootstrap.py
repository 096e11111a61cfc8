#!/usr/bin/env python3
"""Set everything up on a machine that has only Python 3.11 or newer.

    python3 installer/bootstrap.py demo        restore a real photograph, show the result
    python3 installer/bootstrap.py test        lint, types and tests
    python3 installer/bootstrap.py install     make the command `face-restore`
    python3 installer/bootstrap.py uninstall   take everything away again

Standard library only, with pinned.py and locks/ beside it. In a checkout the private environment
is `.venv/`; elsewhere it lies in the platform's data folder. Exit status: 0 done, 1 a test or a
step failed, 2 the machine lacks something (the message says what).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # PYTHONSAFEPATH leaves it out; a bundle loads this file by its path
    sys.path.insert(0, str(HERE))

from pinned import (  # noqa: E402
    LOCKS,
    TORCH,
    WINDOWS,
    SetupError,
    env_bin,
    has_nvidia_gpu,
    install_locked,
    install_torch,
    pip,
    say,
)

ROOT = HERE.parent
APP = "gimp-face-restore"
STAMP = "face-restore-env.json"
GROUPS = {
    "install": ("runtime",),
    "demo": ("runtime", "demo"),
    "test": ("runtime", "demo", "dev"),
}
# What must be importable for an environment to count as whole.
PROBE = (
    "import cv2, msgpack, numpy, onnx, pyvips, torch, zmq, face_restore_worker; "
    "import importlib.util as u; "
    "assert u.find_spec('facexlib') and u.find_spec('torchvision')"
)


def in_checkout() -> bool:
    """True when this file lies in a source tree of the project."""
    return (ROOT / "pyproject.toml").is_file() and (ROOT / "worker").is_dir()


def data_dir() -> Path:
    """The platform's data folder, as face_restore_shared.paths has it."""
    home = os.environ.get("FACE_RESTORE_HOME")
    if home:
        return Path(home) / "data"
    if WINDOWS:
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / APP
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support" / APP
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / APP


def state_dir() -> Path:
    """Connection file and logs, as face_restore_shared.paths has it."""
    home = os.environ.get("FACE_RESTORE_HOME")
    if home or sys.platform != "linux":
        return Path(home) / "state" if home else data_dir()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / APP


def env_dir() -> Path:
    return ROOT / ".venv" if in_checkout() else data_dir() / "env"


# --- the private environment ---------------------------------------------------------


def fingerprint(groups: Sequence[str], torch_build: str) -> str:
    """Digest of all that decides what the environment holds."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {torch_build} {TORCH}".encode())
    for group in groups:
        digest.update((LOCKS / f"{group}.txt").read_bytes())
    if in_checkout():
        kernels = ROOT / "worker" / "face_restore_worker" / "network" / "native"
        for file in [ROOT / "pyproject.toml", *sorted(kernels.glob("*.[ch]"))]:
            digest.update(file.read_bytes())
    else:
        digest.update(" ".join(wheel.name for wheel in project_wheels()).encode())
    return digest.hexdigest()


def read_stamp(env: Path) -> dict[str, str]:
    try:
        stamp = json.loads((env / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def flaw(env: Path, probe: str = PROBE) -> str:
    """Why the environment's Python does not start or import what is needed; "" when it does."""
    command = [env_bin(env, "python"), "-c", probe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=env)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return (done.stderr or f"status {done.returncode}") if done.returncode else ""


def create_venv(env: Path) -> None:
    """Make a fresh virtual environment with pip in it."""
    if env.exists():
        shutil.rmtree(env)
    env.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "venv", str(env)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    text = done.stdout + done.stderr
    package = "python{}.{}-venv".format(*sys.version_info)
    if "ensurepip" in text and shutil.which("apt-get") and os.geteuid() == 0:
        say(f"this Python has no venv module; installing Debian's {package}")
        subprocess.run(["apt-get", "update", "-qq"])
        if subprocess.run(["apt-get", "install", "-y", "-qq", package]).returncode == 0:
            shutil.rmtree(env, ignore_errors=True)
            if subprocess.run(command).returncode == 0:
                return
    raise SetupError(
        f"Python could not make a virtual environment in {env}: {text.strip()[-600:]}\n"
        f"On Debian and Ubuntu `apt-get install {package}` brings what is missing."
    )


def ensure_env(purpose: str, torch_build: str, torch_index: str | None) -> Path:
    """Make the environment for `purpose` whole and return its folder; quick when it is."""
    env, groups = env_dir(), GROUPS[purpose]
    found = "cuda" if has_nvidia_gpu() else "cpu"
    build = found if torch_build == "auto" else torch_build
    stamp = read_stamp(env)
    # An environment made for more than is asked for now serves as well.
    for kind in ("test", "demo", "install"):
        wider = set(groups) <= set(GROUPS[kind])
        if wider and stamp.get("fingerprint") == fingerprint(GROUPS[kind], build):
            if not flaw(env):
                return env
            say("the environment is broken: building it anew")
            shutil.rmtree(env, ignore_errors=True)
    if flaw(env, "import pip"):
        say(f"making a private environment in {env}")
        create_venv(env)
    (env / STAMP).unlink(missing_ok=True)
    say(f"installing torch ({build}) and the pinned packages; minutes the first time")
    install_locked(env, groups)
    install_torch(env, build, torch_index)
    install_project(env)
    if why := flaw(env):
        raise SetupError(f"The environment was built but does not work: {why[-1500:]}")
    record = {"fingerprint": fingerprint(groups, build), "torch": build, "purpose": purpose}
    (env / STAMP).write_text(json.dumps(record), encoding="utf-8")
    return env


def project_wheels() -> list[Path]:
    """The project's wheels lying beside this file."""
    return sorted(HERE.glob("gimp_face_restore-*.whl"))


def install_project(env: Path) -> None:
    """Install this project: the checkout itself, a wheel lying beside this file, or by name."""
    if in_checkout():
        pip(env, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        return
    wheels = project_wheels()
    pip(env, "--no-deps", str(wheels[-1]) if wheels else APP)
    # A wheel is the same for all machines: the processor's kernels are compiled here.
    run(env, "python", "-m", "face_restore_worker.network.native.build")


# --- commands ------------------------------------------------------------------------


def run(env: Path, *command: str) -> int:
    """Run a program of the environment in the project's folder, its output passed through."""
    folder = ROOT if in_checkout() else None
    return subprocess.run([env_bin(env, command[0]), *command[1:]], cwd=folder).returncode


def demo(args: argparse.Namespace) -> int:
    env = ensure_env("demo", args.torch, args.torch_index)
    out = Path(args.out or (ROOT if in_checkout() else Path.cwd()) / "demo-output").resolve()
    return run(env, "python", str(HERE / "demo.py"), str(out))


def test(args: argparse.Namespace) -> int:
    if not in_checkout():
        raise SetupError("The tests need a checkout of the project.")
    import checks  # lies in checkouts only

    return checks.run(args, partial(run, ensure_env("test", args.torch, args.torch_index)), say)


def launcher_path() -> Path:
    """Where the command `face-restore` is put for the user's shell."""
    if WINDOWS:
        return data_dir() / "bin" / "face-restore.cmd"
    return Path.home() / ".local/bin/face-restore"


def install(args: argparse.Namespace) -> int:
    env = ensure_env("install", args.torch, args.torch_index)
    target, launcher = env_bin(env, "face-restore"), launcher_path()
    launcher.parent.mkdir(parents=True, exist_ok=True)
    if WINDOWS:
        launcher.write_text(f'@"{target}" %*\r\n', encoding="utf-8")
    elif launcher.exists() and not launcher.is_symlink():
        raise SetupError(f"{launcher} exists and is not our link; move it away first.")
    else:
        launcher.unlink(missing_ok=True)
        launcher.symlink_to(target)
    say(f"installed: {launcher}")
    if str(launcher.parent) not in os.environ.get("PATH", "").split(os.pathsep):
        say(f"add {launcher.parent} to PATH to call it by name")
    return run(env, "face-restore", "doctor")


def uninstall(args: argparse.Namespace) -> int:
    env = env_dir()
    if env_bin(env, "face-restore").exists():
        run(env, "face-restore", "worker", "stop")
    launcher = launcher_path()
    ours = launcher.is_symlink() and launcher.readlink() == env_bin(env, "face-restore")
    if ours or (WINDOWS and launcher.exists()):
        launcher.unlink()
    for folder in (env, *((data_dir(), state_dir()) if args.purge else ())):
        if folder.exists():
            shutil.rmtree(folder)
            say(f"removed {folder}")
    if (models := data_dir() / "models").exists():
        say(f"kept the downloaded models in {models}; --purge removes them too")
    return 0


def parser() -> argparse.ArgumentParser:
    as_it_is = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    common = argparse.ArgumentParser(add_help=False)
    builds, auto = ("auto", "cpu", "cuda"), "which build of torch (auto: CUDA with an NVIDIA GPU)"
    common.add_argument("--torch", choices=builds, default="auto", help=auto)
    common.add_argument("--torch-index", metavar="URL", help="a further package source for torch")
    commands = top.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("demo", parents=[common], help="restore a real photograph")
    sub.add_argument("--out", help="folder for the pictures (default: demo-output)")
    sub.set_defaults(run=demo)
    sub = commands.add_parser("test", parents=[common], help="lint, types and tests")
    if in_checkout():
        import checks

        checks.add_options(sub)
    sub.set_defaults(run=test)
    sub = commands.add_parser("install", parents=[common], help="make the command face-restore")
    sub.set_defaults(run=install)
    sub = commands.add_parser("uninstall", help="remove the environment and the command")
    sub.add_argument("--purge", action="store_true", help="models and logs as well")
    sub.set_defaults(run=uninstall)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is what an older Python starts
        say(f"Python 3.11 or newer is needed; this is {platform.python_version()}")
        return 2
    try:
        return int(args.run(args))
    except SetupError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted; run it again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
