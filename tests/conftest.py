"""What every test gets: no traces of the logging that another test has set up."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def messages_reach_the_root_logger() -> None:
    """A worker keeps its messages to itself; one set up in this process must not in other tests."""
    logging.getLogger("face_restore_worker").propagate = True
