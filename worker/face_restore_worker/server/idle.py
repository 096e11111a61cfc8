"""What an idle worker lets go of, and when."""

from __future__ import annotations

import time

REST_SECONDS = 60.0  # without work, after which working memory is given back; models stay
REST, UNLOAD = "rest", "unload"


class Idle:
    """The steps that are due while nothing is to be done.

    unload: seconds without work after which models are let go, None to keep them.
    """

    def __init__(self, unload: float | None) -> None:
        self._after = {REST: REST_SECONDS} | ({} if unload is None else {UNLOAD: unload})
        self._done: set[str] = set()
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long there has been no work."""
        return time.monotonic() - self._since

    def work_begins(self) -> None:
        """A job starts: what it takes is to be let go of again."""
        self._done.clear()

    def work_ended(self) -> None:
        """A job, or loading, has ended just now."""
        self._since = time.monotonic()

    def unloaded(self) -> None:
        """Models were let go of at somebody's wish: until the next job there is nothing more."""
        self._done = {REST, UNLOAD}

    def next_at(self) -> float | None:
        """The time (of time.monotonic) of the next step; None when there is none."""
        left = [after for step, after in self._after.items() if step not in self._done]
        return self._since + min(left) if left else None

    def due(self) -> str | None:
        """The step that is due now, REST or UNLOAD, each once; None when there is none."""
        now = self.seconds
        steps = [s for s, after in self._after.items() if s not in self._done and now >= after]
        if not steps:
            return None
        self._done |= {REST, steps[-1]}  # without models there is nothing to rest
        return steps[-1]
