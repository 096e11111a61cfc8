"""Memory for the processor's networks that does not fault a page for every 4 KB.

Fresh pages of buffers of 4 to 500 MB, taken from the system and given back for every operation,
cost up to half of a face's time. Planes lie in huge pages where the system has them; what the
strips allocate stays with malloc until `give_back`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20  # HEAP_MAX_SIZE / 2, malloc refuses more
_HUGE = 2 << 20


@lru_cache(maxsize=1)
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
        return libc
    return None


def keep_freed() -> None:
    """Let malloc keep freed buffers of up to 32 MB for the next one, in this process from now on.

    New threads share one arena: those of their own are given back to the system in pieces. Does
    nothing where malloc is not glibc's.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def give_back() -> None:
    """Give what malloc kept back to the system."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


class Planes:
    """Buffers for whole planes, kept from face to face until `release`."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._buffers)

    def take(
        self, name: str, shapes: list[tuple[int, int, int]], dtype: torch.dtype
    ) -> list[Tensor]:
        """Uninitialised channels_last (1, C, h, w), beside each other, for each (C, h, w).

        They share their memory with whatever was taken by this name before.
        """
        counts = [math.prod(shape) for shape in shapes]
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < sum(counts) or buffer.dtype != dtype:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = huge_pages(sum(counts), dtype)
        parts = buffer[: sum(counts)].split(counts)
        return [
            part.view(1, height, width, channels).permute(0, 3, 1, 2)
            for part, (channels, height, width) in zip(parts, shapes, strict=True)
        ]

    def touch(self) -> None:
        """Make the system give the memory of all buffers now, with all of torch's threads."""
        with torch.inference_mode():  # is a setting of each thread
            for buffer in self._buffers.values():
                buffer.zero_()

    def release(self) -> None:
        """Let go of all buffers; tensors that are still in use keep theirs."""
        self._buffers.clear()


def huge_pages(count: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised (count,), in huge pages where the system has them.

    Raises MemoryError where there is not that much memory.
    """
    size = count * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or size < _HUGE:
        return torch.empty(count, dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no huge pages
    try:
        memory = mmap.mmap(-1, -(-size // _HUGE) * _HUGE, flags)
    except OSError as error:
        raise MemoryError(f"the system has no {size >> 20} MB for a plane: {error}") from error
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(advice)
    return torch.frombuffer(memory, dtype=dtype, count=count)
