"""Read ``torch.save`` files without running anything that is written in them.

A PyTorch file is a pickle, and a pickle is a program. Two guards stand before it: the pickle is
scanned as text first (what it would import, how large the storages it asks for are), and only what
passes goes to ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from face_restore_worker.checkpoints.sniff import Kind, fail, truncated
from face_restore_worker.errors import CheckpointError

#: The 2048 model's pickle has 20 kB; optimiser states of a training run have a few hundred.
MAX_PICKLE = 32 << 20
MAX_ENTRIES = 100_000
_LEGACY_PICKLES = 4  # magic number, protocol, system, object; then the storage keys

_ITEM = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_ITEM |= {"Char": 1, "Byte": 1, "Bool": 1}
_STORAGES = {f"torch {name}Storage": size for name, size in _ITEM.items()}
_STORAGES |= {"torch.storage UntypedStorage": 1, "torch UntypedStorage": 1}
#: What a state dict, also one nested in a training checkpoint, needs from outside.
_HARMLESS = {
    "collections OrderedDict",
    "collections defaultdict",
    "builtins dict",
    "__builtin__ dict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch.nn.parameter Parameter",
    *(f"torch {name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32")),
    *_STORAGES,
}
_SAFE_HINT = "Do not use this file; get the model as .safetensors or from its origin."


def read_torch(path: Path, kind: Kind) -> Any:
    """Return the object in the file: tensors on the CPU in plain containers.

    Storages of the newer (zip) format are memory-mapped.

    Raises:
        CheckpointError: truncated or damaged; not PyTorch's (some other archive); compressed or
            declaring more than the file holds; or asking for code to be run (code
            ``checkpoint-unsafe``; nothing was run).
    """
    import torch

    scan = _scan_zip(path) if kind is Kind.TORCH_ZIP else _scan_legacy(path)
    if scan.foreign:
        names = ", ".join(sorted(name.replace(" ", ".") for name in scan.foreign)[:3])
        what = f"holds more than weights ({names}), which could run code; it was not opened"
        raise fail(path, what, _SAFE_HINT, "unsafe")
    if scan.protocol in (3, 4, 5):
        what = f"was saved with pickle protocol {scan.protocol}, which PyTorch's safe reader lacks"
        hint = "Save it again with torch.save's own protocol, or as .safetensors."
        raise fail(path, what, hint, "format")
    if scan.total > path.stat().st_size:
        what = f"declares {scan.total} bytes of tensors, more than the file has"
        raise truncated(path, what)
    # torch.load goes by the name when it is given one, and can map a file only by its name.
    mapped = kind is Kind.TORCH_ZIP and path.suffix.lower() != ".safetensors"
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # A protocol other than its own is no news for a user; what matters was scanned above.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            source = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # torch, pickle and zip raise whatever a damaged file leads them to
        raise truncated(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    """Return what torch found, without its advice to load unsafely."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


@dataclass
class _Scan:
    """What a pickle asks for: names outside the harmless ones, bytes per storage key."""

    foreign: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    protocol: int = 0

    @property
    def total(self) -> int:
        return sum(self.storages.values())


def _scan_zip(path: Path) -> _Scan:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries, size)
            pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                if any(e.filename.endswith((".py", ".torchscript")) for e in entries):
                    what = "is a TorchScript program, not a state dict"
                else:
                    what = "is a ZIP archive that PyTorch did not write"
                raise fail(path, what, "Unpack it if the model lies inside.", "format")
            if any("/code/" in e.filename for e in entries):
                what = "is a TorchScript program, not a state dict"
                raise fail(path, what, "Get the model's state dict.", "format")
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise truncated(path, str(error)[:200]) from error
    except RuntimeError as error:  # zipfile's word for "encrypted"
        raise fail(path, "is an encrypted archive", "Unpack it first.", "format") from error
    scan = _Scan()
    _scan_pickle(path, io.BytesIO(content), scan)
    # A mapped storage would otherwise run on into the bytes behind its record.
    root = pickles[0].filename.removesuffix("data.pkl")
    records = {e.filename: e.file_size for e in entries}
    for key, declared in scan.storages.items():
        held = records.get(f"{root}data/{key}", 0)
        if declared > held:
            what = f"storage {key[:80]} has {held} bytes instead of {declared}"
            raise truncated(path, what)
    return scan


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > MAX_ENTRIES:
        what = f"has {len(entries)} entries, more than any model needs"
        raise fail(path, what, "Check that it is the right file.", "too-large")
    packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed:
        what = f"has compressed entries ({packed[0].filename[:80]}), which PyTorch never writes"
        raise fail(path, what, "Unpack it if the model lies inside.", "format")
    # Stored entries cannot hold more than the file; overlapping ones would.
    total = sum(e.file_size for e in entries)
    if total > size:
        raise truncated(path, f"its entries declare {total} bytes, the file has {size}")
    for entry in entries:
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            what = f"has a table of tensors of {entry.file_size} bytes, more than any model needs"
            raise fail(path, what, "Check that it is the right file.", "too-large")


def _scan_legacy(path: Path) -> _Scan:
    scan = _Scan()
    # A mapping's read() never returns, nor allocates, more than the file has.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for _ in range(_LEGACY_PICKLES + 1):
            _scan_pickle(path, view, scan)
    return scan


def _scan_pickle(path: Path, stream: Any, scan: _Scan) -> None:
    """Walk one pickle up to its end, collecting imports and storage sizes; nothing is executed."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        start = stream.tell()
        for name, argument in _opcodes(stream):
            if stream.tell() - start > MAX_PICKLE:
                what = f"has a table of tensors of over {MAX_PICKLE} bytes"
                raise fail(path, what, "Check that it is the right file.", "too-large")
            if name in ("BINPERSID", "PERSID"):
                key, size = _storage(path, stack)
                scan.storages[key] = max(size, scan.storages.get(key, 0))
                stack.clear()
            elif name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                if name == "STACK_GLOBAL":
                    argument = " ".join(map(str, stack[-2:]))
                    del stack[-2:]
                stack.append(_Global(argument))
                if argument not in _HARMLESS:
                    scan.foreign.add(argument)
            elif name.startswith("EXT"):
                scan.foreign.add("copyreg extension")
            elif name == "PROTO":
                scan.protocol = max(scan.protocol, argument)
            else:
                _follow(name, argument, stack, memo)
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises many kinds for a damaged stream
        raise truncated(
            path, f"the table of tensors cannot be read ({str(error)[:120]})"
        ) from error


class _Global(str):
    """A name a pickle imports; told apart from a mere text."""

    __slots__ = ()


def _opcodes(stream: Any) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in pickletools.genops(stream):
        yield opcode.name, argument


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Keep track of the atoms since the last mark, as far as storage tuples need it."""
    if name == "MARK":
        stack.clear()
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if argument is None else int(argument)] = stack[-1] if stack else None
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo.get(int(argument)))
    elif name == "NONE":
        stack.append(None)
    elif name == "TUPLE":
        stack[:] = [tuple(stack)]
    elif name in ("FRAME", "STOP"):
        pass
    else:
        stack.append(argument)


def _storage(path: Path, stack: list[Any]) -> tuple[str, int]:
    """Return (key, bytes) of the storage tuple ('storage', type, key, location, count[, None])."""
    match stack[-1] if stack else None:
        case ("storage", _Global() as kind, str(key), str(), int(count), *rest) if (
            kind in _STORAGES and rest in ([], [None])
        ):
            pass
        case _:
            what = "refers to its data in a way that PyTorch does not write; it was not opened"
            raise fail(path, what, _SAFE_HINT, "unsafe")
    if isinstance(count, bool) or count < 0:
        raise truncated(path, f"a storage of {count} values")
    return key, count * _STORAGES[kind]
