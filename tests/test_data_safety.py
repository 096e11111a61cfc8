"""Pictures are safe: inputs are only read, outputs are whole or absent, a killed run goes on."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_process import Home
from face_restore_worker.images.parts import remove_leftovers
from face_restore_worker.images.write import write_parts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from picture_files import photo
from PIL import Image
from worker_process import Worker, untouched_worker

NAMES = ("a.png", "b.jpg", "c.tif", "d.webp", "e.png")

# Runs the command line; ends it with status 99 when anything in sys.argv[1] is to be changed.
WATCHED = """
import os, sys
inputs = os.path.realpath(sys.argv[1]) + os.sep
CHANGES = {"os.remove", "os.rename", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.link",
           "os.symlink", "os.setxattr", "os.rmdir", "os.mkdir", "shutil.move", "shutil.rmtree"}
def hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        wrong = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        paths = [path] if wrong else []
    else:
        paths = arguments if event in CHANGES else []
    for path in paths:
        if isinstance(path, (str, bytes)):
            if (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(inputs):
                print("CHANGED", event, arguments, file=sys.stderr, flush=True)
                os._exit(99)
sys.addaudithook(hook)
from face_restore_worker.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def watched(inputs: Path, *arguments: object) -> list[str]:
    """The command line with an eye on this folder."""
    return [sys.executable, "-c", WATCHED, str(inputs), *map(str, arguments)]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A real worker process, its engine quick and the same each time."""
    with untouched_worker(tmp_path_factory.mktemp("home")) as running:
        yield running


class Album:
    """A folder of pictures, and the command that restores them."""

    def __init__(self, folder: Path, worker: Worker) -> None:
        self.inputs = folder / "in"
        self.home = Home(worker.home)
        self.inputs.mkdir(parents=True)
        for place, name in enumerate(NAMES):
            pixels = np.roll(photo(90, 120), place, axis=0)
            Image.fromarray(pixels).save(self.inputs / name)
        self.before = self.state()
        started = time.monotonic()
        self.whole = folder / "whole"
        done = self.home.run("restore", self.inputs, "-o", self.whole)
        assert done.returncode == 0, done
        self.seconds = time.monotonic() - started
        self.wanted = {path.name: path.read_bytes() for path in self.whole.iterdir()}
        assert set(self.wanted) == set(NAMES)

    def state(self) -> dict[str, tuple[str, int, int]]:
        """Digest and times of each input; any write, even of the same bytes, shows in them."""
        return {
            path.name: (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mtime_ns,
                path.stat().st_ctime_ns,
            )
            for path in self.inputs.iterdir()
        }

    def killed(self, out: Path, delay: float) -> list[str]:
        """Start a run and kill it after `delay` seconds; the names of the outputs that are there.

        Checks that each of them is whole.
        """
        process = self.home.start("restore", self.inputs, "-o", out)
        time.sleep(delay)
        process.kill()
        process.communicate()
        there = [p for p in out.iterdir() if not p.name.endswith(".part")] if out.exists() else []
        for path in there:
            assert path.read_bytes() == self.wanted[path.name], path
        assert self.state() == self.before
        return [path.name for path in there]

    def finished(self, out: Path) -> None:
        """Run to the end; all outputs must be whole and nothing else may be left."""
        done = self.home.run("restore", self.inputs, "-o", out)
        assert done.returncode == 0, done
        assert {path.name: path.read_bytes() for path in out.iterdir()} == self.wanted
        assert self.state() == self.before


@pytest.fixture(scope="module")
def album(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Album:
    return Album(tmp_path_factory.mktemp("album"), worker)


def _trial(album: Album, out: Path, delays: list[float]) -> list[int]:
    """Kill a run at each of the moments (parts of a whole run's time), then let it finish."""
    done = []
    for delay in delays:
        before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()} if out.exists() else {}
        names = album.killed(out, delay * album.seconds)
        done.append(len(names))
        # What was done stays as it is: a run that goes on does not do it again.
        for name, written in before.items():
            if not name.endswith(".part"):
                assert (out / name).stat().st_mtime_ns == written
    album.finished(out)
    return done


def test_killed_runs_go_on(album: Album, tmp_path: Path) -> None:
    rng = random.Random()
    delays = [rng.uniform(0.3, 1.0) for _ in range(3)]
    _trial(album, tmp_path / "out", delays)


@pytest.mark.long
@settings(
    max_examples=100,
    deadline=None,
    phases=[Phase.generate],  # a moment cannot be made smaller in a sensible way
    suppress_health_check=list(HealthCheck),
)
@given(delays=st.lists(st.floats(0.0, 1.2), min_size=1, max_size=3))
def test_killed_at_any_moment(
    album: Album, tmp_path_factory: pytest.TempPathFactory, delays: list[float]
) -> None:
    _trial(album, tmp_path_factory.mktemp("trial") / "out", delays)


def test_inputs_are_never_opened_for_writing(album: Album, tmp_path: Path) -> None:
    """Also not for metadata, nor when outputs exist, are to be replaced, or faces are saved."""
    for more in ([], ["--overwrite"], ["--save-faces", str(tmp_path / "faces"), "--ext", ".ora"]):
        done = subprocess.run(
            watched(album.inputs, "restore", album.inputs, "-o", tmp_path / "out", *more),
            env=album.home.env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done
    assert album.state() == album.before


def test_the_watch_on_inputs_works(album: Album, tmp_path: Path) -> None:
    """Output into the input folder is a change there, and must be seen."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(photo()).save(folder / "a.png")
    done = subprocess.run(
        watched(folder, "restore", folder / "a.png", "-o", folder / "b.png"),
        env=album.home.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 99 and "CHANGED" in done.stderr, done


# --- temporary files -----------------------------------------------------------------------------


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [".face-restore-0123456789ab.part", ".face-restore-ffffffffffff.part"]
    kept = ["a.png", ".hidden", "x.part", ".face-restore-.part", ".face-restore-0123456789ab.png"]
    for name in names + kept:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".face-restore-aaaaaaaaaaaa.part").mkdir()
    (tmp_path / ".face-restore-bbbbbbbbbbbb.part").symlink_to(tmp_path / "a.png")
    remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*kept, ".face-restore-aaaaaaaaaaaa.part", ".face-restore-bbbbbbbbbbbb.part"}
    remove_leftovers(tmp_path / "absent")


@pytest.mark.skipif(os.name != "posix", reason="Windows does not remove open files")
def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """Another run may be writing into the same folder."""

    def parts() -> Iterator[bytes]:
        yield b"one"
        remove_leftovers(tmp_path)
        yield b"two"

    write_parts(tmp_path / "out.bin", parts())
    assert (tmp_path / "out.bin").read_bytes() == b"onetwo"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]
