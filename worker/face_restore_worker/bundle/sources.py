"""Where the bundle's parts come from: installer, pins, wheels, models."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.models.store import InstalledModel, ModelStore

PROJECT = "gimp-face-restore"
WHEELS_OF_PROJECT = "gimp_face_restore-*.whl"
SETUP_FILES = ("bootstrap.py", "pinned.py")
PLUGIN_IN_WHEEL = "face_restore_worker/gimp/face_restore/face_restore.py"
_NOT_PACKED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")


class BundleError(FaceRestoreError):
    """The bundle cannot be made."""

    default_code = "bundle"


def checkout() -> Path | None:
    """The project's source tree, None when the program runs from an installed wheel."""
    root = Path(__file__).resolve().parents[3]
    is_tree = (root / "pyproject.toml").is_file() and (root / "plugin_gimp").is_dir()
    return root if is_tree else None


def installer_folder() -> Path:
    """The folder with SETUP_FILES and locks/: in the checkout or inside the package.

    Raises BundleError when it is in neither.
    """
    root = checkout()
    places = [Path(__file__).resolve().parent / "installer"]
    places += [root / "installer"] if root is not None else []
    for place in places:
        if all((place / name).is_file() for name in (*SETUP_FILES, "locks/runtime.txt")):
            return place
    raise BundleError(
        f"The installer's files are missing (looked in {places[0]}).",
        hint="Install the program again, or make the bundle from a checkout.",
    )


def load_pinned(installer: Path) -> Any:
    """The module pinned.py: its pin of torch and its words for pip's failures."""
    path = installer / "pinned.py"
    spec = importlib.util.spec_from_file_location("face_restore_pinned", path)
    if spec is None or spec.loader is None:
        raise BundleError(f"{path} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Pip:
    """pip of this Python, which makes wheels in a folder."""

    def __init__(self, pinned: Any) -> None:
        self._pinned = pinned

    def wheel(self, folder: Path, *arguments: str, may_fail: bool = False) -> bool:
        """Put wheels into `folder`: fetched, or built where only sources are offered.

        Returns whether it succeeded; raises BundleError when not and `may_fail` is not set.
        """
        command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "-q"]
        done = subprocess.run(
            [*command, "-w", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return True
        if may_fail:
            return False
        output = done.stdout + done.stderr
        if "No module named pip" in output:
            why = f"{sys.executable} has no pip."
        else:
            why = self._pinned.explain_pip(output)
        raise BundleError(
            f"The packages could not be fetched. {why}",
            hint=f"pip's last words: {output.strip()[-600:]}",
            code="bundle-wheels",
        )


def fetch_wheels(folder: Path, installer: Path, build: str, index: str | None) -> str:
    """Fetch the pinned wheels for this Python and platform; returns torch's build.

    As bootstrap.py installs them: torch first, its own needs held to the pins, the others
    without resolving. build: "auto", "cpu" or "cuda". index: a further package source for torch.
    """
    pinned = load_pinned(installer)
    pip, pins = Pip(pinned), installer / "locks" / "runtime.txt"
    extra = ["--extra-index-url", index] if index else []
    if build == "auto":
        build = "cuda" if pinned.has_nvidia_gpu() else "cpu"
    with tempfile.TemporaryDirectory() as place:
        # Torch itself has no hash in the locks (pinned.py says why), so its call can have none.
        plain = Path(place) / "constraints.txt"
        plain.write_text(pinned.plain_pins(pins.read_text(encoding="utf-8")))
        _fetch_torch(pip, folder, pinned.TORCH, build, ["-c", str(plain), *extra])
    # Checks the hashes of what torch brought as well.
    pip.wheel(folder, "--no-deps", "-r", str(pins))
    return build


def _fetch_torch(pip: Pip, folder: Path, torch: str, build: str, options: list[str]) -> None:
    wants_cpu = build == "cpu" and sys.platform == "linux"
    if not (wants_cpu and pip.wheel(folder, f"{torch}+cpu", *options, may_fail=True)):
        if wants_cpu:
            print(
                "No CPU-only build of torch in pip's package sources: taking the general build, "
                "several GB larger (--torch-index URL names a source that has it).",
                file=sys.stderr,
                flush=True,
            )
        pip.wheel(folder, torch, *options)


def project_wheel(folder: Path, installer: Path) -> Path:
    """This project as a wheel in `folder`: built from the checkout, or packed as installed.

    Raises BundleError when the plug-in is not in it.
    """
    root = checkout()
    if root is not None:
        pip = Pip(load_pinned(installer))
        # The build system is among the pins; without it pip fetches it for itself.
        is_there = importlib.util.find_spec("hatchling") is not None
        pip.wheel(folder, "--no-deps", *(["--no-build-isolation"] * is_there), str(root))
        wheel = sorted(folder.glob(WHEELS_OF_PROJECT))[-1]
    else:
        wheel = repack(metadata.distribution(PROJECT), folder)
    with zipfile.ZipFile(wheel) as archive:
        if PLUGIN_IN_WHEEL not in archive.namelist():
            raise BundleError(
                f"The wheel {wheel.name} does not hold the plug-in ({PLUGIN_IN_WHEEL}).",
                hint="The checkout or installation is incomplete: get it anew.",
                code="bundle-plug-in",
            )
    return wheel


def repack(distribution: metadata.Distribution, folder: Path) -> Path:
    """An installed pure-Python distribution as the wheel it came from.

    RECORD is written anew (PEP 427: SHA-256, URL-safe base64 without padding).
    """
    info = f"{distribution.name.replace('-', '_')}-{distribution.version}"
    wheel = folder / f"{info}-py3-none-any.whl"
    rows: list[tuple[str, str, str]] = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in distribution.files or []:
            # Scripts lie outside (../../bin) and are made anew from entry_points.txt.
            is_left_out = ".." in entry.parts or "__pycache__" in entry.parts
            if is_left_out or entry.name in _NOT_PACKED:
                continue
            data = Path(str(entry.locate())).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            rows.append((entry.as_posix(), f"sha256={digest.decode()}", str(len(data))))
            archive.writestr(entry.as_posix(), data)
        record = f"{info}.dist-info/RECORD"
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([*rows, (record, "", "")])
        archive.writestr(record, table.getvalue())
    return wheel


def chosen_models(store: ModelStore, names: list[str] | None) -> list[InstalledModel]:
    """The installed models of these names, all of them for None; never the built-in ones.

    The built-in ones lie in the wheel. Raises ModelError for one that is not installed.
    """
    present = {m.id: m for m in store.installed() if not m.entry.builtin}
    if names is None:
        return list(present.values())
    chosen = []
    for name in names:
        entry = store.catalogue.get(name)
        if entry.builtin:
            continue
        if entry.id not in present:
            store.path(entry.id)  # raises, with what helps
        chosen.append(present[entry.id])
    return list(dict.fromkeys(chosen))
