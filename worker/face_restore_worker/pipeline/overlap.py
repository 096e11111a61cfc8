"""Three steps for each of many items, the middle one of an item beside the others' first and last.

The network keeps the processor (or the GPU) busy most of the time, but not all of it: cutting the
next face out of the photograph and pasting the previous one back fill what it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Before = TypeVar("Before")
During = TypeVar("During")
After = TypeVar("After")


def overlapped(
    items: Sequence[Item],
    before: Callable[[Item], Before],
    during: Callable[[Item, Before], During],
    after: Callable[[Item, During], After],
) -> Iterator[After]:
    """Yield ``after(item, during(item, before(item)))`` of each item, in order.

    ``during`` runs in the caller's thread, one item after the other; beside it runs ``before`` of
    the next item and ``after`` of the previous one, each in a thread of its own. So no more than
    three items are in memory: what is yielded is taken before the next ``after`` begins.

    What any of the three raises is raised here, for the first item that failed, or at once where
    ``during`` did; nothing is begun after that, and what runs is waited for.
    """
    with ThreadPoolExecutor(1, "before") as ahead, ThreadPoolExecutor(1, "after") as behind:
        waiting: Future[Before] | None = ahead.submit(before, items[0]) if items else None
        pasting: Future[After] | None = None
        for index, item in enumerate(items):
            assert waiting is not None
            ready = waiting.result()
            following = items[index + 1 : index + 2]
            waiting = ahead.submit(before, following[0]) if following else None
            done = during(item, ready)
            del ready
            if pasting is not None:
                yield pasting.result()
            pasting = behind.submit(after, item, done)
            del done
        if pasting is not None:
            yield pasting.result()
