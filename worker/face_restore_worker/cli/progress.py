"""Progress on standard error: a bar on a terminal, an occasional line anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from face_restore_worker.models.files import show_bytes


class ProgressBar:
    """Counts items, or bytes, up to a total.

    On a terminal it is tqdm's bar with speed and time left. Elsewhere (a pipe, a log) it writes
    at most one line every ``interval`` seconds, and none for what ends sooner.

    Args:
        total: items or bytes expected, None where unknown.
        description: what is going on, in front of the bar.
        unit: "B" for bytes, else what an item is called ("picture").
        stream: where to write, standard error by default.
        quiet: write nothing at all.
        interval: seconds between lines when not on a terminal.
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        description: str = "",
        unit: str = "B",
        stream: TextIO | None = None,
        quiet: bool = False,
        interval: float = 15.0,
    ) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.total, self.description, self.unit = total, description, unit
        self.quiet, self.interval = quiet, interval
        self.done = 0
        self._note = ""
        self._started = self._line_shown = time.monotonic()
        self._first: int | None = None
        self._bar: Any = None
        self.is_terminal = not quiet and _is_terminal(self.stream)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def set(self, done: int, total: int | None = None) -> None:
        """Say how much is done in all; the first call also says where this run began."""
        if total is not None:
            self.total = total
        if self._first is None:
            self._first = min(done, self.total or done)
        self.done = done
        if self.is_terminal:
            self._show_bar()
        elif not self.quiet and time.monotonic() - self._line_shown >= self.interval:
            self._show_line()

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more are done."""
        if self._first is None:
            self._first = 0
        self.set(self.done + count)

    def note(self, text: str) -> None:
        """Show a few words behind the bar, such as the name of the file at hand."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def write(self, text: str) -> None:
        """Write a line of its own without disturbing the bar; not when quiet."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_bar(self) -> None:
        if self._bar is None:
            from tqdm import tqdm

            is_bytes = self.unit == "B"
            self._bar = tqdm(
                total=self.total,
                initial=self._first,
                desc=self.description or None,
                unit="B" if is_bytes else f" {self.unit}",
                unit_scale=is_bytes,
                file=self.stream,
                leave=False,
                dynamic_ncols=True,
            )
            if self._note:
                self._bar.set_postfix_str(self._note)
        if self._bar.total != self.total:
            self._bar.total = self.total
        self._bar.update(self.done - self._bar.n)

    def _show_line(self) -> None:
        now = time.monotonic()
        self._line_shown = now
        moved = self.done - (self._first or 0)
        speed = moved / (now - self._started) if now > self._started else 0.0
        parts = [self._amount(self.done)]
        if self.total:
            parts[0] += f" of {self._amount(self.total)} ({100 * self.done // self.total} %)"
        if self.unit == "B":
            parts.append(f"{show_bytes(speed)}/s")
        if self.total and speed > 0:
            parts.append(f"{show_time((self.total - self.done) / speed)} left")
        label = " ".join(text for text in (self.description, self._note) if text)
        print(f"{label}: {', '.join(parts)}" if label else ", ".join(parts), file=self.stream)

    def _amount(self, count: int) -> str:
        return show_bytes(count) if self.unit == "B" else f"{count}"


def show_time(seconds: float) -> str:
    """A duration for people: "42 s", "3 min 05 s", "1 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # no such method, or closed
        return False
