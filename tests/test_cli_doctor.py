"""``face-restore doctor``: each thing a user could have wrong is found and named."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_gimp
import pytest
from cli_process import Home
from face_restore_shared import connection
from face_restore_worker.cli import checks, checks_worker
from face_restore_worker.cli.checks import Finding


@pytest.fixture(autouse=True)
def home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACE_RESTORE_MODELS", raising=False)
    return tmp_path / "home"


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Iterator[Finding], level: str) -> Finding:
    found = [finding for finding in findings if finding.level == level]
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path) -> None:
    """In this environment nothing fails; a missing GPEN is a warning with the command to get it."""
    done = Home(tmp_path).run("doctor", "--format", "json")
    document = json.loads(done.stdout)
    failed = [c for c in document["checks"] if c["level"] == "fail"]
    assert failed == [] and done.returncode == 0
    topics = {c["topic"] for c in document["checks"]}
    assert {"python", "packages", "device", "compiled kernels", "models", "worker"} <= topics
    assert {"loopback", "gimp"} <= topics
    assert any("models download gpen-bfr-2048" in c["mend"] for c in document["checks"])


def test_a_missing_and_a_crashing_package_are_named() -> None:
    found = checks.probe(["json", "no_such_module_here", "antigravity_missing", "math"])
    assert "error" not in found["json"] and "error" not in found["math"]
    assert "ModuleNotFoundError" in found["no_such_module_here"]["error"]


def test_a_module_that_kills_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly.py").write_text("import os; os._exit(9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = checks.probe(["json", "deadly", "math"])
    assert "status 9" in found["deadly"]["error"]
    assert "error" not in found["math"]


def test_a_package_hidden_by_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tqdm.py").write_text("__version__ = 'fake'")
    monkeypatch.setattr(checks, "PACKAGES", (("tqdm", "tqdm"), ("torch", "math"), ("x", "json")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = checks.probe(["tqdm"])
    assert found["tqdm"]["file"] == str(tmp_path / "tqdm.py")


def test_two_opencv_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(checks.check_opencv()) == ["ok"]
    info = tmp_path / "opencv_python-4.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: opencv-python\nVersion: 4.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = only(checks.check_opencv(), "fail")
    assert "opencv-python" in finding.text and "headless" in finding.text


def test_another_installation_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "face-restore"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "another installation" in only(checks.check_command(), "warn").text
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert str(Path(sys.executable).parent) in only(checks.check_command(), "warn").mend


def test_folders(home_folder: Path) -> None:
    assert set(levels(checks.check_folders())) == {"ok"}
    home_folder.write_text("a file where the folder should be")
    failed = [f for f in checks.check_folders() if f.level == "fail"]
    assert len(failed) == 3
    assert all("FACE_RESTORE_HOME" in finding.mend for finding in failed)


def test_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(checks.check_loopback()) == ["ok"]

    def refuse(*_args: object, **_kw: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert "unreachable" in only(checks.check_loopback(), "fail").text


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    real = psutil.virtual_memory()
    for free, level in ((1 << 28, "fail"), (2 << 30, "warn"), (9 << 30, "ok")):
        low = real._replace(available=free)
        monkeypatch.setattr(psutil, "virtual_memory", lambda low=low: low)
        assert levels(checks.check_memory()) == [level]


@pytest.mark.parametrize(
    ("version", "level"), [("2.10.34", "warn"), ("3.0.4", "ok"), ("3.2.0", "ok"), ("", "warn")]
)
def test_gimp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, level: str) -> None:
    gimp = tmp_path / "gimp"
    text = f"GNU Image Manipulation Program version {version}" if version else ""
    gimp.write_text(f"#!/bin/sh\necho '{text}'\n")
    gimp.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert levels(checks.check_gimp()) == [level]


def test_gimp_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gimp.put(tmp_path / "bin", "3.0.4")
    fake_gimp.put_flatpak(tmp_path / "bin", tmp_path / "hidden", "3.2.0")
    (tmp_path / "snap" / "gimp").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = list(checks.check_gimp())
    assert [finding.level for finding in found] == ["ok", "ok", "warn"]
    text = " ".join(finding.text for finding in found)
    assert "GIMP 3.0.4" in text and "GIMP 3.2.0 (Flatpak)" in text and "Snap" in text


def test_a_damaged_model(home_folder: Path) -> None:
    models = home_folder / "data" / "models"
    models.mkdir(parents=True)
    (models / "gpen-bfr-512.safetensors").write_bytes(b"damaged")
    found = [f for f in checks.carry_out(checks_worker.check_models) if f.level == "fail"]
    assert any("gpen-bfr-512" in finding.text for finding in found)


def _connect(home_folder: Path, pid: int, mode: int = 0o600) -> Path:
    path = home_folder / "state" / "worker.json"
    made = connection.Connection(
        "tcp://127.0.0.1:9", "0" * 64, pid, 1, "0.0.1", 4e9, str(home_folder / "log")
    )
    connection.write(path, made)
    path.chmod(mode)
    return path


def test_no_worker() -> None:
    assert "not running" in only(checks_worker.check_worker(), "ok").text


def test_a_worker_that_is_gone(home_folder: Path) -> None:
    _connect(home_folder, 2**22 + 1)
    assert "is gone" in only(checks_worker.check_worker(), "warn").text


def test_a_connection_file_open_to_others(home_folder: Path) -> None:
    path = _connect(home_folder, os.getpid(), 0o644)
    finding = only(checks_worker.check_worker(), "fail")
    assert str(path) in finding.text + finding.mend


def test_a_worker_that_does_not_answer(home_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from face_restore_worker.client.client import WorkerClient
    from face_restore_worker.client.errors import WorkerNotAnswering

    def silent(*_args: object, **_kw: object) -> None:
        raise WorkerNotAnswering("It says nothing.", hint="Restart it.")

    _connect(home_folder, os.getpid())
    monkeypatch.setattr(WorkerClient, "connect", silent)
    finding = only(checks_worker.check_worker(), "fail")
    assert (finding.text, finding.mend) == ("It says nothing.", "Restart it.")


def test_a_lock_without_a_connection_file(home_folder: Path) -> None:
    from face_restore_shared import paths
    from face_restore_worker.server.lock import InstanceLock

    lock = InstanceLock(paths.lock_file())
    assert lock.acquire()
    try:
        assert "holds" in only(checks_worker.check_worker(), "fail").text
    finally:
        lock.release()
    assert "not running" in only(checks_worker.check_worker(), "ok").text


def test_a_check_that_breaks_is_a_finding() -> None:
    def check_teapot() -> Iterator[Finding]:
        raise ValueError("short and stout")
        yield

    finding = only(checks.carry_out(check_teapot), "fail")
    assert finding.topic == "teapot" and "short and stout" in finding.text
