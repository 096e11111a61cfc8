"""Read safetensors files: every declared size is checked before anything is allocated."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from face_restore_worker.checkpoints.sniff import fail, truncated
from face_restore_worker.errors import CheckpointError

#: The 2048 model's header has 17 kB.
MAX_HEADER = 16 << 20
_ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
_ITEM |= {"U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return {name: tensor} of the file, memory-mapped.

    Raises:
        CheckpointError: truncated, damaged, or with a header that does not fit the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path)
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise truncated(path, _short(error)) from error


def check_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} after checking that every tensor lies inside the file, without overlap.

    Raises:
        CheckpointError: it does not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise truncated(path, f"the header is said to have {length} bytes, the file has {size}")
        if length > MAX_HEADER:
            what = f"has a header of {length} bytes, more than any model needs"
            raise fail(path, what, "Check that it is the right file.", "too-large")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise truncated(path, f"the header is not JSON ({_short(error)})") from error
    if not isinstance(header, dict):
        raise truncated(path, "the header is not a table of tensors")
    header.pop("__metadata__", None)
    available = size - 8 - length
    spans = sorted(_span(path, name, entry, available) for name, entry in header.items())
    for (_, end, first), (begin, _, second) in pairwise(spans):
        if begin < end:
            raise truncated(path, f"the tensors {first} and {second} overlap")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _span(path: Path, name: str, entry: Any, available: int) -> tuple[int, int, str]:
    """Return (begin, end, name) of one tensor's bytes."""
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        numbers = [*shape, begin, end]
        sound = all(type(n) is int and 0 <= n < 2**48 for n in numbers) and len(shape) <= 16
    except (TypeError, KeyError, ValueError):
        raise _odd(path, name, "its entry in the header is malformed") from None
    if not sound:
        raise _odd(path, name, f"shape {shape} or offsets [{begin}, {end}] are not sizes")
    if not isinstance(dtype, str) or dtype not in _ITEM:
        raise _odd(path, name, f"its type {dtype} is not one of {', '.join(_ITEM)}")
    if begin > end or math.prod(shape) * _ITEM[dtype] != end - begin:
        raise _odd(path, name, f"{end - begin} bytes do not hold {dtype} of shape {shape}")
    if end > available:
        missing = end - available
        raise truncated(path, f"the tensor {name} ends {missing} bytes beyond the end of the file")
    return begin, end, name


def _odd(path: Path, name: str, what: str) -> CheckpointError:
    return truncated(path, f"tensor {name[:120]!r}: {what}")


def _short(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
