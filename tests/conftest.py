"""What every test gets: no traces of other tests' logging, hypothesis without a stop-watch."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
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
