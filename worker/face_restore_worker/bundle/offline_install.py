#!/usr/bin/env python3
"""Install face restoration for GIMP 3 from this bundle, without a network.

    python3 install.py               environment, command, models, GIMP plug-in
    python3 install.py --no-gimp     without the plug-in
    python3 install.py --check       only compare the files with the manifest
    python3 install.py --uninstall   plug-in, command and environment away (--purge: models too)

Standard library only. Exit status: 0 done, 1 a step failed, 2 the machine or the bundle
is not what is needed (the message says what).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FORMAT = 1


class BundleError(Exception):
    """It cannot be installed; the text says why and what helps."""


def say(text: str) -> None:
    print(f"[face-restore] {text}", flush=True)


def read_manifest() -> dict[str, Any]:
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
        version, files = manifest["format"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"The manifest cannot be read ({error}). Unpack the bundle again."
        ) from error
    if version != FORMAT or not files:
        raise BundleError(f"This is a bundle of form {version}; this program knows {FORMAT}.")
    return manifest


def verify(manifest: dict[str, Any]) -> None:
    """Every listed file is there and unchanged, and no other wheel or model is.

    Raises:
        BundleError: naming what is not as it should be.
    """
    wrong = []
    listed = {entry["path"] for entry in manifest["files"]}
    for entry in manifest["files"]:
        path = HERE / entry["path"]
        if ".." in Path(entry["path"]).parts or not path.resolve().is_relative_to(HERE):
            wrong.append(f"{entry['path']} points outside")
        elif not path.is_file():
            wrong.append(f"{entry['path']} is missing")
        elif path.stat().st_size != entry["bytes"] or digest(path) != entry["sha256"]:
            wrong.append(f"{entry['path']} is damaged")
    for folder in ("wheels", "models", "setup"):
        for path in (HERE / folder).rglob("*"):
            name = path.relative_to(HERE).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and name not in listed:
                wrong.append(f"{name} is not of this bundle")
    if wrong:
        raise BundleError(
            "The bundle is not whole: " + "; ".join(wrong[:8]) + ". Copy and unpack it again."
        )


def digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()


def check_machine(manifest: dict[str, Any]) -> None:
    """Raise BundleError when the wheels are for another kind of machine."""
    here, meant = (
        (platform.system(), platform.machine()),
        (manifest["system"], manifest["machine"]),
    )
    if [part.lower() for part in here] != [part.lower() for part in meant]:
        raise BundleError(
            f"This bundle is for {' on '.join(meant)}; this machine is {' on '.join(here)}. "
            "Make one on a machine like this: face-restore bundle OUT"
        )


def other_python(wanted: str) -> list[str] | None:
    """The command of a Python of version `wanted` ("3.11"), None when it is not installed."""
    candidates = [[f"python{wanted}"]]
    if os.name == "nt":
        candidates = [["py", f"-{wanted}"]]
    for command in candidates:
        if shutil.which(command[0]):
            test = [*command, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(test, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if done.returncode == 0 and done.stdout.decode().strip() == wanted:
                return command
    return None


def load_bootstrap() -> Any:
    path = HERE / "setup" / "bootstrap.py"
    spec = importlib.util.spec_from_file_location("face_restore_bootstrap", path)
    if spec is None or spec.loader is None:
        raise BundleError(f"{path} cannot be loaded. Unpack the bundle again.")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    # Its classes and functions look themselves up by this name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def offline() -> None:
    """Let pip take the bundle's wheels and nothing else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        del os.environ[name]
    os.environ["PIP_CONFIG_FILE"] = os.devnull
    os.environ["PIP_NO_INDEX"] = "1"
    # As an address: pip splits a path at its spaces.
    os.environ["PIP_FIND_LINKS"] = (HERE / "wheels").as_uri()


def forget_other_version(bootstrap: Any, version: str) -> None:
    """An environment with another version must not count as whole."""
    env = bootstrap.env_dir()
    places = ("lib/python3*/site-packages", "Lib/site-packages")
    names = {
        info.name for place in places for info in env.glob(f"{place}/gimp_face_restore-*.dist-info")
    }
    if names != {f"gimp_face_restore-{version}.dist-info"} and env.is_dir():
        (env / bootstrap.STAMP).unlink(missing_ok=True)


def copy_models(bootstrap: Any, manifest: dict[str, Any]) -> None:
    """Put the models into the store; those that are there already are left alone."""
    value = os.environ.get("FACE_RESTORE_MODELS", "")
    store = Path(value).expanduser() if value else bootstrap.data_dir() / "models"
    entries = {e["path"]: e for e in manifest["files"] if e["path"].startswith("models/")}
    # The tensors first: a record without them would be a lie.
    for place in sorted(entries, key=lambda name: (name.endswith(".json"), name)):
        target = store / Path(place).name
        if target.is_file() and digest(target) == entries[place]["sha256"]:
            continue
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = target.with_name(f".{target.name}.new")
        shutil.copyfile(HERE / place, fresh)
        fresh.replace(target)
        if target.suffix != ".json":
            say(f"model {target.stem}: {store}")


def install(args: argparse.Namespace, manifest: dict[str, Any]) -> int:
    bootstrap = load_bootstrap()
    offline()
    forget_other_version(bootstrap, manifest["version"])
    copy_models(bootstrap, manifest)
    status = bootstrap.main(["install", "--torch", manifest["torch"]])
    command = bootstrap.env_bin(bootstrap.env_dir(), "face-restore")
    if status == 2 or not command.exists():
        return 2
    if args.no_gimp:
        return 1 if status else 0
    done = subprocess.run([str(command), "gimp", "install"])
    if done.returncode != 0:
        say("the plug-in is not in GIMP yet; `face-restore gimp install` tries again")
    return 1 if status or done.returncode else 0


def uninstall(args: argparse.Namespace) -> int:
    bootstrap = load_bootstrap()
    command = bootstrap.env_bin(bootstrap.env_dir(), "face-restore")
    if command.exists():
        subprocess.run([str(command), "gimp", "uninstall"])
    return int(bootstrap.main(["uninstall", *(["--purge"] if args.purge else [])]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-gimp", action="store_true", help="do not install the GIMP plug-in")
    parser.add_argument("--check", action="store_true", help="only check the bundle's files")
    parser.add_argument("--uninstall", action="store_true", help="remove everything again")
    parser.add_argument("--purge", action="store_true", help="with --uninstall: the models too")
    args = parser.parse_args()
    try:
        manifest = read_manifest()
        wanted = manifest["python"]
        if f"{sys.version_info[0]}.{sys.version_info[1]}" != wanted:
            command = other_python(wanted)
            if command is None:
                raise BundleError(
                    f"This bundle needs Python {wanted}, which is not installed; this is "
                    f"{platform.python_version()}. Install it, or make the bundle with this one."
                )
            return subprocess.run([*command, str(HERE / "install.py"), *sys.argv[1:]]).returncode
        verify(manifest)
        if args.check:
            say(f"the bundle is whole: {len(manifest['files'])} files")
            return 0
        if args.uninstall:
            return uninstall(args)
        check_machine(manifest)
        return install(args, manifest)
    except BundleError as error:
        say(str(error))
        return 2
    except OSError as error:
        say(f"a step failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
