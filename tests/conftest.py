"""What every test gets: no traces of other tests' logging, hypothesis without a stop-watch."""

from __future__ import annotations

import logging
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

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
