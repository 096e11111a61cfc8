"""The process for which alone a worker runs, such as a benchmark: the worker ends with it."""

from __future__ import annotations

import psutil


class Owner:
    """A process by its number; another process that gets the number later is not taken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
        except psutil.NoSuchProcess:
            self._process = None

    def gone(self) -> bool:
        """Whether it has ended, even if its parent has not taken notice yet."""
        try:
            return (
                self._process is None
                or not self._process.is_running()
                or self._process.status() == psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False
