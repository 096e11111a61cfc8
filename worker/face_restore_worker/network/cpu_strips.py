"""Large planes are worked through in strips of rows, several strips at a time.

A thread does whole strips by itself: no operation waits for another thread, copies and filters
run in parallel as well, and what one operation writes is in the thread's cache for the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch

# Bytes of one strip of one feature: small enough for the cache, large enough that what is
# computed twice at its borders, and the calls themselves, do not count.
STRIP_BYTES = 8 * 1024 * 1024
SMALLEST_STRIP = 8  # rows
BANDS_PER_THREAD = 2  # so that a thread that was held up leaves its share to the others


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a plane."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """To index the rows' dimension with."""
        return slice(self.start, self.stop)


def cut(rows: Rows, step: int) -> list[Rows]:
    """Cut rows into pieces of `step` rows; the last may have fewer."""
    return [Rows(a, min(a + step, rows.stop)) for a in range(rows.start, rows.stop, step)]


def strip_rows(height: int, row_bytes: int, threads: int) -> int:
    """Rows of one strip: at most STRIP_BYTES, and a strip for each thread.

    A power of two, as the height is, so that the last strip is not a small one.
    """
    rows = max(SMALLEST_STRIP, min(STRIP_BYTES // row_bytes, height // threads))
    return 1 << (rows.bit_length() - 1)


def bands(height: int, step: int, threads: int) -> list[Rows]:
    """Cut a plane into bands of whole strips of `step` rows, some for each thread."""
    count = max(1, height // (step * threads * BANDS_PER_THREAD))
    return cut(Rows(0, height), step * count)


class StripPool:
    """Threads that do strips; as many as torch uses in the thread that makes the pool.

    A context manager. Inside the pool torch's operations run single-threaded.
    """

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> StripPool:
        if self.threads > 1:
            self._executor = ThreadPoolExecutor(self.threads, "strips", _single_threaded)
            started = threading.Barrier(self.threads)
            for future in [self._executor.submit(started.wait) for _ in range(self.threads)]:
                future.result()
            # The setting is each thread's own, but what it was last set to is also what threads
            # to come begin with.
            torch.set_num_threads(self.threads)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def each(self, job: Callable[[Rows], None], pieces: Iterable[Rows]) -> None:
        """Do `job` for every piece; the first error of a job is raised here."""
        if self._executor is None:
            for rows in pieces:
                job(rows)
            return
        for _ in self._executor.map(_inference(job), pieces):
            pass


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _inference(job: Callable[[Rows], None]) -> Callable[[Rows], None]:
    def run(rows: Rows) -> None:
        with torch.inference_mode():  # is a setting of each thread
            job(rows)

    return run
