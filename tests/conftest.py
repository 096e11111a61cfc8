"""What every test gets: no traces of the logging that another test has set up."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A worker's set-up keeps its messages from the root logger; take that back afterwards."""
    logger = logging.getLogger("face_restore_worker")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers[:] = propagate, handlers
