"""A thread for small things that may take a moment, so that the I/O loop never waits."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Background(threading.Thread):
    """Does what it is given, one after the other."""

    def __init__(self) -> None:
        super().__init__(name="background", daemon=True)
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def do(self, task: Callable[[], None]) -> None:
        """Have `task` called soon."""
        self._tasks.put(task)

    def finish(self) -> None:
        """End after what was given before."""
        self._tasks.put(None)

    def run(self) -> None:
        """The thread's body."""
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception:
                log.exception("A background task failed")
