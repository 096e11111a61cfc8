"""Packs the bundle: parts with their digests in a manifest, one archive, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from face_restore_shared.version import __version__

from face_restore_worker.bundle import sources
from face_restore_worker.bundle.sources import BundleError
from face_restore_worker.models.store import InstalledModel

FORMAT = 1
SUFFIXES = (".tar.gz", ".tgz", ".zip")
_README = """\
{name}: face restoration for GIMP 3 and the command line, for a machine without a network.

It needs {system} on {machine} and Python {python}. Nothing is fetched.

    python{python} install.py              install, models and GIMP plug-in included
    python{python} install.py --check      only check the files against the manifest
    python{python} install.py --uninstall  remove it all again

The manifest's digests find damage from copying; they are no signature.
"""


@dataclass(frozen=True)
class Recipe:
    """What goes in. torch: "auto", "cpu" or "cuda"."""

    models: list[InstalledModel] = field(default_factory=list)
    torch: str = "auto"
    torch_index: str | None = None


@dataclass(frozen=True)
class Made:
    """The finished bundle; size in bytes, files without the manifest itself."""

    path: Path
    size: int
    files: int


def check_output(path: Path, overwrite: bool) -> None:
    """Raise BundleError when no bundle can be written there."""
    if not path.name.endswith(SUFFIXES):
        raise BundleError(
            f"{path.name} is no name for a bundle.",
            hint="It must end in .tar.gz or .zip.",
            code="usage",
        )
    if path.exists() and not overwrite:
        raise BundleError(
            f"{path} exists.", hint="Choose another name, or add --overwrite.", code="usage"
        )
    if not path.parent.is_dir():
        raise BundleError(f"The folder {path.parent} does not exist.", code="usage")


def make(path: Path, recipe: Recipe, say: Callable[[str], None]) -> Made:
    """Make the bundle at `path`. Raises BundleError; leaves nothing half-made behind."""
    installer = sources.installer_folder()
    try:
        with tempfile.TemporaryDirectory(prefix=".face-restore-bundle-", dir=path.parent) as name:
            work = Path(name)
            tree = work / bundle_name()
            parts = _fill(tree, installer, recipe, say)
            say(f"packing {len(parts)} files")
            packed = work / "packed"
            _pack(packed, tree.name, parts, is_zip=path.suffix == ".zip")
            packed.replace(path)
    except OSError as error:
        raise BundleError(
            f"The bundle could not be written: {error.strerror or error}.",
            hint="It needs about twice its size in the output's folder while it is made.",
        ) from error
    return Made(path, path.stat().st_size, len(parts) - 1)


def bundle_name() -> str:
    """Name of the folder in the archive; says what it fits."""
    system, machine = platform.system().lower(), platform.machine().lower()
    return f"gimp-face-restore-{__version__}-{system}-{machine}-py{_python()}"


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _fill(
    tree: Path, installer: Path, recipe: Recipe, say: Callable[[str], None]
) -> dict[str, Path]:
    """Gather all parts; returns each one's place in the archive and its file."""
    setup, wheels = tree / "setup", tree / "wheels"
    for folder in (setup / "locks", wheels):
        folder.mkdir(parents=True)
    say("making this project's wheel")
    sources.project_wheel(setup, installer)
    say("fetching the pinned packages; several hundred MB")
    build = sources.fetch_wheels(wheels, installer, recipe.torch, recipe.torch_index)
    for wheel in wheels.iterdir():
        if wheel.suffix != ".whl":
            raise BundleError(f"pip left {wheel.name}, which is no wheel.", code="bundle-wheels")
    for name in sources.SETUP_FILES:
        shutil.copyfile(installer / name, setup / name)
    plain = sources.load_pinned(installer).plain_pins
    for lock in (installer / "locks").glob("*.txt"):
        # Without hashes: pip built some of the wheels here; the manifest has all files' digests.
        pins = plain(lock.read_text(encoding="utf-8"))
        (setup / "locks" / lock.name).write_text(pins, encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("offline_install.py"), tree / "install.py")
    words = {"system": platform.system(), "machine": platform.machine(), "python": _python()}
    (tree / "README.txt").write_text(_README.format(name=tree.name, **words), encoding="utf-8")
    parts = {p.relative_to(tree).as_posix(): p for p in sorted(tree.rglob("*")) if p.is_file()}
    for model in recipe.models:  # from where they lie: they are large
        parts[f"models/{model.path.name}"] = model.path
        parts[f"models/{model.path.stem}.json"] = model.path.with_suffix(".json")
    say("computing digests")
    digests = {place: digest_of(file) for place, file in parts.items()}
    _check_models(recipe.models, digests)
    manifest = {
        "format": FORMAT,
        "version": __version__,
        **words,
        "torch": build,
        "models": {m.id: m.entry.licence.name for m in recipe.models},
        "files": [
            {"path": place, "bytes": parts[place].stat().st_size, "sha256": digest}
            for place, digest in digests.items()
        ],
    }
    file = tree / "manifest.json"
    file.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return {**parts, "manifest.json": file}


def _check_models(models: list[InstalledModel], digests: dict[str, str]) -> None:
    """A damaged model must not be spread."""
    for model in models:
        if model.record is None or digests[f"models/{model.path.name}"] != model.record.sha256:
            raise BundleError(
                f"The installed model {model.id} is damaged: its digest is not the recorded one.",
                hint=f"Run `face-restore models verify {model.id}`, then get it again.",
                code="bundle-model",
            )


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pack(packed: Path, name: str, parts: dict[str, Path], is_zip: bool) -> None:
    # Wheels are compressed and weights do not compress: no time is spent on trying hard.
    if is_zip:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for place, file in parts.items():
                archive.write(file, f"{name}/{place}")
    else:
        with tarfile.open(packed, "w:gz", compresslevel=1) as tar:
            for place, file in parts.items():
                tar.add(file, f"{name}/{place}", filter=_nobody)
    with packed.open("rb+") as stream:
        os.fsync(stream.fileno())


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the name of who made it; readable by whoever unpacks it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
