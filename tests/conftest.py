"""What every test gets: no traces of the logging that another test has set up."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def messages_reach_the_root_logger() -> None:
    """Workers and fuzz targets in this process keep messages to themselves: not in other tests."""
    logger = logging.getLogger("face_restore_worker")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
