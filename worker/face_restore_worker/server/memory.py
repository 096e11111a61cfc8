"""Giving freed memory back to the system, which glibc does not always do by itself."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_ARENA_MAX = -8  # malloc.h


def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
        libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        return libc
    except (OSError, AttributeError):  # musl
        return None


_LIBC = _libc()


def prepare() -> None:
    """Use one arena; call before any thread starts.

    malloc_trim leaves the top of other arenas alone, where libzmq's thread keeps up to tens of
    megabytes of a picture that was let go.
    """
    if _LIBC is not None:
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give back what is free now."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)
