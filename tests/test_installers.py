"""The shell installers: run for real, with small wheels and a systemctl that only writes down."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fake_wheels
import pytest
from cli_process import ROOT
from face_restore_shared.version import __version__

INSTALLER = ROOT / "installer"
UNITS = ("face-restore-worker.service", "face-restore-worker.path")

pytestmark = pytest.mark.skipif(
    os.name != "posix" or shutil.which("bash") is None, reason="shell scripts"
)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["install-linux.sh", "install-macos.sh"])
def test_without_a_new_enough_python_it_says_what_to_install(tmp_path: Path, name: str) -> None:
    for python in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        script(tmp_path / "bin" / python, "exit 1")  # as an old one does when asked
    script(tmp_path / "bin" / "apt-get", "exit 9")
    for tool in ("dirname", "bash"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    done = subprocess.run(
        ["bash", str(INSTALLER / name)],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Python 3.11 or newer is needed" in done.stdout
    expected = "sudo apt install python3" if name == "install-linux.sh" else "python.org"
    assert expected in done.stdout
    assert not (tmp_path / ".local").exists()


def test_the_units_fit_each_other_and_the_programs() -> None:
    service, path = (configparser.ConfigParser(interpolation=None, strict=False) for _ in UNITS)
    for unit in (service, path):
        unit.optionxform = str  # type: ignore[assignment,method-assign]
    service.read(INSTALLER / UNITS[0])
    path.read(INSTALLER / UNITS[1])
    request = path["Path"]["PathExists"]
    # Taken before the worker starts, or it would be started again and again.
    assert service["Service"]["ExecStartPre"].split()[-1] == request
    assert request == "%h/.local/state/gimp-face-restore/start-request"
    assert service["Service"]["ExecStart"].split()[1:] == ["worker", "run"]
    assert service["Unit"]["ConditionPathExists"] == service["Service"]["ExecStart"].split()[0]


@pytest.mark.slow
def test_linux_from_nothing_and_back(tmp_path: Path) -> None:
    """Environment, command, plug-in, units; again; and all of it away."""
    folder = fake_wheels.installer(tmp_path / "installer")
    for name in ("install-linux.sh", "common.sh", *UNITS):
        shutil.copy(INSTALLER / name, folder)
    fake_wheels.project_wheel(folder, __version__)
    source = fake_wheels.package_source(tmp_path / "source")
    script(tmp_path / "bin" / "python3", f'exec "{sys.executable}" "$@"')
    calls, log, user = tmp_path / "systemctl", tmp_path / "log", tmp_path / "user"
    script(tmp_path / "bin" / "systemctl", f'echo "$@" >> "{calls}"')
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "XDG_"))}
    env = {
        **kept,
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "HOME": str(user),
        "FACE_RESTORE_HOME": str(tmp_path / "kept"),
        "FAKE_COMMAND_LOG": str(log),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": source.as_uri(),
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        log.unlink(missing_ok=True)
        return subprocess.run(
            ["bash", str(folder / "install-linux.sh"), *arguments],
            env={**env, **more}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = run("--torch", "cpu", FAKE_STATUS_DOCTOR="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert log.read_text().splitlines() == ["doctor", "gimp install"]
    units = user / ".config" / "systemd" / "user"
    launcher = user / ".local" / "bin" / "face-restore"
    request = str(tmp_path / "kept" / "state" / "start-request")
    assert f"PathExists={request}" in (units / UNITS[1]).read_text()
    service = (units / UNITS[0]).read_text()
    assert f"ExecStart={launcher} worker run" in service and f"rm -f {request}" in service
    assert "enable --now face-restore-worker.path" in calls.read_text()

    again = run("--torch", "cpu", FAKE_STATUS_GIMP="3")
    assert again.returncode == 3  # GIMP is not there, the rest is done all the same
    gone = run("--uninstall", "--purge")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert log.read_text().splitlines() == ["gimp uninstall", "worker stop"]
    assert "disable --now face-restore-worker.path" in calls.read_text()
    assert not launcher.is_symlink()
    assert not (tmp_path / "kept" / "data").exists()
    assert list(units.iterdir()) == []
