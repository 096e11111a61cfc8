"""The offline bundle: what is in it, that damage is found, that it installs with no network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import fake_wheels
import pytest
from cli_process import ROOT
from face_restore_shared.version import __version__
from face_restore_worker.bundle import build, sources
from face_restore_worker.bundle.build import Recipe
from face_restore_worker.bundle.sources import BundleError
from face_restore_worker.errors import ModelError
from face_restore_worker.models.records import ModelRecord, now
from face_restore_worker.models.store import ModelStore

# The fixture `fakes` puts a small one in its place.
REAL_PROJECT_WHEEL = sources.project_wheel
WEIGHTS = b"not really weights" * 1000


def _quiet(_text: str) -> None:
    return None


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """pip sees nothing but the fake wheels; the project's wheel and pins are fakes too."""
    folder = tmp_path_factory.mktemp("fakes")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", fake_wheels.package_source(folder / "source").as_uri())
        installer = fake_wheels.installer(folder / "installer")
        patch.setattr(sources, "installer_folder", lambda: installer)
        patch.setattr(
            sources, "project_wheel", lambda f, _i: fake_wheels.project_wheel(f, __version__)
        )
        yield folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with one installed model."""
    found = ModelStore(tmp_path_factory.mktemp("models"))
    entry = found.catalogue.get("parsenet")
    found.model_path(entry).write_bytes(WEIGHTS)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    ModelRecord(
        id=entry.id, kind=entry.kind, architecture="parsenet", sha256=digest, bytes=len(WEIGHTS),
        source="import", origin="x", source_sha256=digest, source_bytes=len(WEIGHTS),
        source_format="pth", published=False, installed=now(),
    ).write(found.record_path(entry))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def archive(fakes: Path, store: ModelStore) -> Path:
    path = fakes / "bundle.tar.gz"
    models = sources.chosen_models(store, None)
    made = build.make(path, Recipe(models, torch="cpu"), _quiet)
    assert made.path == path and made.size == path.stat().st_size
    assert [p.name for p in fakes.iterdir() if p.name.startswith(".")] == []
    return path


@pytest.fixture
def unpacked(archive: Path, tmp_path: Path) -> Path:
    # A space: pip would split a plain path there.
    # The system's tar, as a user would: Debian 12's Python 3.11.2 has no extraction filters yet.
    (tmp_path / "un packed").mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", tmp_path / "un packed"], check=True)
    return tmp_path / "un packed" / build.bundle_name()


def run_install(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    command = [sys.executable, str(folder / "install.py"), *arguments]
    return subprocess.run(
        command, env={**kept, **env}, capture_output=True, text=True, check=False, timeout=280
    )


def test_what_is_in_it(unpacked: Path) -> None:
    manifest = json.loads((unpacked / "manifest.json").read_text())
    listed = {entry["path"]: entry for entry in manifest["files"]}
    there = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    assert there == set(listed) | {"manifest.json"}
    assert {"install.py", "README.txt", "setup/locks/runtime.txt"} <= there
    assert {"setup/bootstrap.py", "setup/pinned.py"} <= there
    assert {
        "wheels/torch-2.13.0+cpu-py3-none-any.whl",
        "wheels/parts-1.0-py3-none-any.whl",
    } <= there
    assert f"setup/gimp_face_restore-{__version__}-py3-none-any.whl" in there
    assert {"models/parsenet.safetensors", "models/parsenet.json"} <= there
    assert not any("unwanted" in name for name in there)
    for path, entry in listed.items():
        data = (unpacked / path).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert manifest["torch"] == "cpu" and "parsenet" in manifest["models"]


def test_damage_is_found_before_anything_is_done(unpacked: Path) -> None:
    done = run_install(unpacked, "--check")
    assert done.returncode == 0 and "is whole" in done.stdout
    weights = unpacked / "models" / "parsenet.safetensors"
    weights.write_bytes(WEIGHTS[:-1] + b"?")
    (unpacked / "setup" / "locks" / "demo.txt").unlink()
    shutil.copyfile(weights, unpacked / "wheels" / "evil-1.0-py3-none-any.whl")
    for arguments in (["--check"], ["--no-gimp"], ["--uninstall"]):
        done = run_install(unpacked, *arguments, FACE_RESTORE_HOME=str(unpacked / "home"))
        assert done.returncode == 2
        assert "models/parsenet.safetensors is damaged" in done.stdout
        assert "setup/locks/demo.txt is missing" in done.stdout
        assert "wheels/evil-1.0-py3-none-any.whl is not of this bundle" in done.stdout
    assert not (unpacked / "home").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": "3.99"}, "needs Python 3.99"),
        ({"machine": "abacus"}, "is for"),
        ({"format": 2}, "form 2"),
        ({"files": []}, "form"),
        ({"files": [{"path": "../x", "bytes": 1, "sha256": ""}]}, "points outside"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(
    unpacked: Path, change: dict[str, Any], words: str
) -> None:
    file = unpacked / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    done = run_install(unpacked, FACE_RESTORE_HOME=str(unpacked / "home"))
    assert done.returncode == 2 and words in done.stdout, done.stdout + done.stderr
    assert not (unpacked / "home").exists()


@pytest.mark.skipif(os.name != "posix", reason="the launcher is a link")
@pytest.mark.slow
def test_installs_without_a_network_and_goes_again(unpacked: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = {
        "HOME": str(tmp_path / "user"),
        "FACE_RESTORE_HOME": str(tmp_path / "kept"),
        "FAKE_COMMAND_LOG": str(log),
        # Any way out would be refused: nothing listens there.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    done = run_install(unpacked, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert log.read_text().splitlines() == ["doctor", "gimp install"]
    launcher = tmp_path / "user" / ".local" / "bin" / "face-restore"
    assert launcher.is_symlink() and launcher.exists()
    models = tmp_path / "kept" / "data" / "models"
    assert (models / "parsenet.safetensors").read_bytes() == WEIGHTS
    found = ModelStore(models)
    assert [m.id for m in found.installed() if not m.entry.builtin] == ["parsenet"]

    log.unlink()
    again = run_install(unpacked, FAKE_STATUS_GIMP="3", **env)
    assert again.returncode == 1 and "tries again" in again.stdout
    log.unlink()
    gone = run_install(unpacked, "--uninstall", "--purge", **env)
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert log.read_text().splitlines() == ["gimp uninstall", "worker stop"]
    assert not launcher.is_symlink() and not (tmp_path / "kept" / "data").exists()


def test_zip_holds_the_same(
    fakes: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def copy(folder: Path, *_: object) -> str:
        for wheel in (fakes / "source").glob("[pt]*.whl"):
            shutil.copy(wheel, folder)
        return "cpu"

    monkeypatch.setattr(sources, "fetch_wheels", copy)
    build.make(tmp_path / "b.zip", Recipe(), _quiet)
    with zipfile.ZipFile(tmp_path / "b.zip") as zipped, tarfile.open(archive) as tar:
        names = {name for name in tar.getnames() if "/models/" not in name}
        assert set(zipped.namelist()) == names


def test_nothing_half_made_is_left(
    fakes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (sources.installer_folder() / "locks" / "runtime.txt").write_text("absent==9.9\n")
    try:
        with pytest.raises(BundleError, match=r"offers absent==9\.9"):
            build.make(tmp_path / "b.zip", Recipe(torch="cpu"), _quiet)
    finally:
        (sources.installer_folder() / "locks" / "runtime.txt").write_text("parts==1.0\n")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "there.zip").write_bytes(b"kept")
    for name, words in (("b.rar", "must end in"), ("there.zip", "exists"), ("no/b.zip", "folder")):
        with pytest.raises(BundleError, match=words) as caught:
            build.check_output(tmp_path / name, overwrite=False)
        assert caught.value.code == "usage"
    build.check_output(tmp_path / "there.zip", overwrite=True)


def test_models_to_take_along(store: ModelStore) -> None:
    assert [m.id for m in sources.chosen_models(store, None)] == ["parsenet"]
    assert sources.chosen_models(store, ["builtin-restorer"]) == []
    with pytest.raises(ModelError, match="not installed"):
        sources.chosen_models(store, ["gpen-bfr-2048"])


def test_a_damaged_model_is_not_spread(store: ModelStore) -> None:
    models = sources.chosen_models(store, None)
    with pytest.raises(BundleError, match="parsenet is damaged"):
        build._check_models(models, {"models/parsenet.safetensors": "0" * 64})


def test_an_installed_package_becomes_its_wheel_again(tmp_path: Path) -> None:
    wheel = fake_wheels.project_wheel(tmp_path / "first", "1.2.3")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        expected = {name: archive.read(name) for name in archive.namelist()}
    info = site / "gimp_face_restore-1.2.3.dist-info"
    (info / "INSTALLER").write_text("pip\n")
    with (info / "RECORD").open("a") as file:  # as pip leaves it
        file.write(f"{info.name}/INSTALLER,,\n../../bin/face-restore,,\n")
    again = sources.repack(metadata.Distribution.at(info), tmp_path)
    assert again.name == wheel.name
    with zipfile.ZipFile(again) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found.keys() == expected.keys()
    record = f"{info.name}/RECORD"
    assert set(found.pop(record).splitlines()) == set(expected.pop(record).splitlines())
    assert found == expected


def test_the_real_wheel_holds_plug_in_and_installer(tmp_path: Path) -> None:
    """What an installed package needs for `gimp install` and `bundle`, without a checkout."""
    pytest.importorskip("hatchling", reason="the build system is among the runtime pins")
    wheel = REAL_PROJECT_WHEEL(tmp_path, ROOT / "installer")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = "face_restore_worker/"
    assert f"{package}gimp/face_restore/restore_faces/worker.py" in names
    assert {f"{package}gimp/layout.py", f"{package}bundle/offline_install.py"} <= names
    assert f"{package}bundle/installer/bootstrap.py" in names
    assert f"{package}bundle/installer/pinned.py" in names
    assert f"{package}bundle/installer/locks/runtime.txt" in names
    assert not any("__pycache__" in name for name in names)


def test_a_wheel_without_the_plug_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(fake_wheels.project_wheel(tmp_path, "1.2.3", False)) as archive:
        archive.extractall(site)
    found = metadata.Distribution.at(site / "gimp_face_restore-1.2.3.dist-info")
    monkeypatch.setattr(sources, "checkout", lambda: None)
    monkeypatch.setattr(sources.metadata, "distribution", lambda _name: found)
    with pytest.raises(BundleError, match="does not hold the plug-in"):
        REAL_PROJECT_WHEEL(tmp_path / "site", ROOT / "installer")
