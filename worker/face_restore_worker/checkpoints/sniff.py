"""Tell what a model file is by its content; its name proves nothing."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from face_restore_worker.errors import CheckpointError

_AGAIN = "Download it again."
#: No model this program knows comes near; a larger file is something else.
MAX_FILE = 8 << 30
_HEAD = 4096
#: ``torch.save`` before PyTorch 1.6 begins with a pickled long of these digits (protocol 2).
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

#: Fields of an ONNX ModelProto and their protobuf wire types (onnx.proto).
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_ONNX_GRAPH = 7


class Kind(Enum):
    """The containers a checkpoint can come in."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "torch"
    TORCH_LEGACY = "torch (before 1.6)"
    ONNX = "onnx"


def sniff(path: Path) -> Kind:
    """Return the container of the file at ``path``; reads a few kilobytes at most.

    Raises:
        CheckpointError: there is no such file, it is a folder, is empty, is a Git LFS pointer, a
            web page or something else that is no model file; or its path is no text.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        what = "cannot be opened: its path is not valid UTF-8, which model files' readers need"
        raise fail(path, what, "Rename the file, or the folder it lies in.", "unreadable") from None
    size = _size_of_regular_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            kind = _kind(head, size, file)
    except OSError as error:
        raise _unreadable(path, error) from error
    if kind is not None:
        return kind
    raise _wrong_file(path, head)


def fail(path: Path | str, what: str, hint: str, code: str) -> CheckpointError:
    """Return the error "PATH what"; ``code`` is appended to ``checkpoint-``."""
    return CheckpointError(f"{path} {what}.", hint=hint, code=f"checkpoint-{code}")


def truncated(path: Path, what: str) -> CheckpointError:
    """Return the error for a file that ends too early."""
    return fail(path, f"is truncated or damaged: {what}", _AGAIN, "truncated")


def _size_of_regular_file(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        hint = "Check the path, or download the model: face-restore models list."
        raise fail(path, "does not exist", hint, "missing") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise fail(path, "is a folder, not a model file", "Name the file inside it.", "folder")
    if not stat.S_ISREG(status.st_mode):
        raise fail(path, "is not a regular file", "Name a model file on disk.", "format")
    if status.st_size == 0:
        raise fail(path, "is empty (0 bytes)", _AGAIN, "empty")
    if status.st_size > MAX_FILE:
        what = f"has {status.st_size} bytes, more than any model of this program"
        raise fail(path, what, "Check that it is the right file.", "too-large")
    return status.st_size


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or str(error)
    return fail(path, f"cannot be read: {reason}", "Check the file's permissions.", "unreadable")


def _kind(head: bytes, size: int, file: BinaryIO) -> Kind | None:
    if head.startswith(b"PK\x03\x04"):
        return Kind.TORCH_ZIP
    if _LEGACY_MAGIC in head[:32]:
        return Kind.TORCH_LEGACY
    # A safetensors file: eight bytes of header length, then JSON (possibly after spaces).
    if len(head) > 8 and head[8:].lstrip(b" ")[:1] == b"{":
        return Kind.SAFETENSORS
    if _is_onnx(file, size):
        return Kind.ONNX
    return None


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the top level is a ModelProto: protobuf has no signature, but few fields fit."""
    fields = list(_protobuf_fields(file, size))
    return _ONNX_GRAPH in fields and -1 not in fields


def _protobuf_fields(file: BinaryIO, size: int) -> Iterator[int]:
    """Yield the field numbers at the top level, -1 for what a ModelProto cannot hold.

    A graph that is longer than the file is reported as a graph: the file is a truncated ONNX.
    """
    position = 0
    for _ in range(1000):
        if position >= size:
            return
        file.seek(position)
        chunk = file.read(20)
        tag, used = _varint(chunk, 0)
        field, wire = tag >> 3, tag & 7
        if _ONNX_FIELDS.get(field) != wire or used == 0:
            yield -1
            return
        value, end = _varint(chunk, used)
        if end == 0:
            yield -1
            return
        yield field
        position += end + (value if wire == 2 else 0)
    yield -1


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Return (value, position after it); position 0 when there is none."""
    value = 0
    for i, byte in enumerate(data[start : start + 10]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, start + i + 1
    return 0, 0


_SIGNATURES = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\xfd7zXZ", "xz-compressed"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"GGUF", "a GGUF language model"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)


def _wrong_file(path: Path, head: bytes) -> CheckpointError:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs"):
        hint = "Get the file itself: git lfs pull, or the site's download link."
        return fail(path, "is a Git LFS pointer, not the model it points to", hint, "lfs-pointer")
    if start[:256].lower().startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        hint = "Open the address in a browser and save the file behind its download link."
        return fail(path, "is a web page saved under a model's name", hint, "html")
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return fail(path, f"is {name}, not a model file", _AGAIN, "format")
    if not head.strip(b"\0"):
        return truncated(path, "it begins with nothing but zeros")
    if start[:1] in b"{[" and start[:1]:
        return fail(path, "is a JSON text, not a model file", _AGAIN, "format")
    if head.startswith(b"\x80") and head[1:2] in b"\x01\x02\x03\x04\x05":
        what = "is a Python pickle that PyTorch did not write; it is not opened"
        hint = "Get the model as .safetensors or as a PyTorch .pth file."
        return fail(path, what, hint, "unsafe")
    what = "is neither a PyTorch, nor a safetensors, nor an ONNX file"
    return fail(path, what, "Check that it is the right file, or download it again.", "format")
