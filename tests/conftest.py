"""What every test gets: no traces of other tests' logging, hypothesis without a stop-watch."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from face_restore_worker.network.native.library import Library
    from painter import Painter

# A shell's job in the background ignores Ctrl+C, and so would every command started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure: examples have no deadline, and making them may take its time.
settings.register_profile(
    "here", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
# CI judges a change: it tries the same examples every time. Random ones are tried everywhere else.
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def messages_reach_the_root_logger() -> None:
    """Workers and fuzz targets in this process keep messages to themselves: not in other tests."""
    logger = logging.getLogger("face_restore_worker")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    """What restores for the command line in place of worker and models."""
    from face_restore_worker.cli import backend
    from painter import Painter

    made = Painter()
    monkeypatch.setattr(backend, "open_backend", lambda args, tell: made)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The file of a small picture, a.png in the test's folder."""
    from picture_files import photo, save_pillow

    return save_pillow(tmp_path / "a.png", photo())


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The processor's kernels of these sources, compiled without a warning."""
    from face_restore_worker.network.native import build
    from face_restore_worker.network.native.library import Library

    if build.compiler() is None or platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("no C compiler, or no x86-64 processor: there are no compiled kernels here")
    path = tmp_path_factory.mktemp("kernels") / build.LIBRARY.name
    line = build.build("-Wall", "-Wextra", "-Werror", library=path)
    assert path.exists(), line
    loaded = ctypes.CDLL(str(path))
    if not loaded.features():
        pytest.skip("the processor has no AVX-512: the compiled kernels are not for it")
    return Library(path)
