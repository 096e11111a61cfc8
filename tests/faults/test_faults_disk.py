"""Disks that fill up or turn read-only while the worker logs and the command writes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import FaultHome, Tell, eventually
from http_server import FileServer, Route
from PIL import Image
from safetensors.torch import save
from tiny_models import catalogue_data, file_entry, gpen_state, pack, write_catalogue

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def noise(path: Path) -> Path:
    """A picture whose file is some 30 kB however it is packed."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_disk_fills_up_under_a_running_worker(home: FaultHome, tell: Tell) -> None:
    """No byte can be written any more: jobs are done all the same; later it logs again."""
    worker = home.worker(FAKE_ENGINE_TRACE="")
    home.check_next_job()
    log, before = home.log, home.file.read_bytes()
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for _ in range(3):
        home.check_next_job()
    assert home.log == log
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, UNLIMITED)
    home.check_next_job()
    assert home.log != log and home.file.read_bytes() == before
    home.stop_and_check_nothing_stays()
    tell("disk full while logging", 4, "jobs done, lines lost, later it logs again")


def limited(home: FaultHome, most: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line where no file may grow beyond `most` bytes."""
    code = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, "-m", "face_restore_worker.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=home.environment(), capture_output=True, text=True, cwd=home.folder
    )


def unprivileged(home: FaultHome, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line without root's leave to write where nobody may (CAP_DAC_OVERRIDE)."""
    code = (
        "import ctypes, os, sys\n"
        "if os.geteuid() == 0:\n"
        "    assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0\n"  # PR_CAPBSET_DROP
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, "-m", "face_restore_worker.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=home.environment(), capture_output=True, text=True, cwd=home.folder
    )


def test_results_on_a_full_and_on_a_read_only_disk(home: FaultHome, tell: Tell) -> None:
    home.worker()
    source, folder = noise(home.folder / "in.png"), home.folder / "out"
    folder.mkdir()
    done = limited(home, 10_000, "restore", source, "-o", folder / "out.png")
    assert done.returncode in (1, 3)
    assert "out.png" in done.stderr and "Traceback" not in done.stderr
    assert not list(folder.iterdir())
    (folder / "out.png").write_bytes(b"what was there before")
    done = limited(home, 10_000, "restore", source, "-o", folder / "out.png", "--overwrite")
    assert done.returncode in (1, 3)
    assert (folder / "out.png").read_bytes() == b"what was there before"
    folder.chmod(0o500)
    done = unprivileged(home, "restore", source, "-o", folder / "new.png")
    assert done.returncode in (1, 3)
    assert "no permission to write" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    folder.chmod(0o700)
    assert [path.name for path in folder.iterdir()] == ["out.png"]
    tell("disk full or read-only while writing results", 3, "named; nothing half, nothing lost")


def test_a_read_only_home(home: FaultHome, tell: Tell) -> None:
    home.state.mkdir(mode=0o700)
    home.state.chmod(0o500)
    done = unprivileged(home, "worker", "start")
    assert done.returncode == 3
    assert str(home.state) in done.stderr and "Permission denied" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    home.state.chmod(0o700)
    assert not list(home.state.iterdir())
    tell("read-only home folder at the start", 1, "“Permission denied” with the folder's name")


@pytest.mark.slow
def test_importing_on_a_full_disk(home: FaultHome, tell: Tell) -> None:
    (home.folder / "new.pth").write_bytes(pack(gpen_state()))
    catalogue = write_catalogue(home.folder / "catalogue.json", catalogue_data())
    home.variables["FACE_RESTORE_CATALOGUE"] = str(catalogue)
    done = limited(home, 10_000, "models", "import", home.folder / "new.pth")
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    models = home.folder / "data" / "models"
    assert not [path for path in models.iterdir() if not path.name.endswith(".lock")]
    done = home.run_cli("models", "import", home.folder / "new.pth")
    assert done.returncode == 0, done.stderr
    tell("disk full while importing (command line)", 1, "named, nothing stays, works later")


@pytest.mark.slow
def test_a_download_killed_in_the_middle_goes_on(home: FaultHome, tell: Tell) -> None:
    """kill -9, then the same command again: it goes on where it was and leaves no part."""
    body = save(gpen_state())
    with FileServer() as server:
        route = Route(body, trickle=0.0005)
        url = server.add("/model.safetensors", route)
        entry = file_entry(url, size=len(body))
        catalogue = write_catalogue(home.folder / "catalogue.json", catalogue_data(gpen=[entry]))
        home.variables["FACE_RESTORE_CATALOGUE"] = str(catalogue)
        command = ("models", "download", "gpen-bfr-2048", "--accept-license")
        process = home.cli(*command)
        models = home.folder / "data" / "models"

        def some() -> bool:
            return any(path.stat().st_size > 8000 for path in models.glob(".*.part"))

        eventually(some, "the part grows")
        process.send_signal(signal.SIGKILL)
        process.wait()
        route.trickle = 0.0
        done = home.run_cli(*command)
        assert done.returncode == 0, done.stderr
        assert server.seen[-1].range is not None
        assert not list(models.glob(".*.part*"))
    tell("kill -9 in the middle of a download", 1, "the next run goes on from there")
