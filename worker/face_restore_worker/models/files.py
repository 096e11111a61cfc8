"""What models need of files: digests, safetensors headers, free space, clear errors.

Nothing here imports torch: a safetensors file is eight bytes of header length, a JSON header with
``name -> {dtype, shape, data_offsets}`` and the tensors' bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from face_restore_worker.errors import ModelError

#: File names that end like this are meant as model files, not as ids.
SUFFIXES = (".pth", ".pt", ".safetensors", ".onnx", ".ckpt", ".bin")
#: Left free on the disk whatever is downloaded.
SPARE_BYTES = 64 * 1024**2

_HEADER_LIMIT = 64 * 1024**2
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
_DTYPE_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, lower-case hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def safetensors_header(path: Path) -> dict[str, Any]:
    """Header of a safetensors file without ``__metadata__``. Raises ``ModelError``."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_HEADER_LIMIT, path.stat().st_size - 8):
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} is not a safetensors file: {error}.", code="checkpoint"
        ) from error
    header.pop("__metadata__", None)
    return header


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Check that every tensor lies inside the file, gap-free; return name -> shape.

    Raises ``ModelError`` saying what is wrong.
    """
    header = safetensors_header(path)
    try:
        end = 0
        for name, value in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, finish = value["data_offsets"]
            if begin != end or finish - begin != _tensor_bytes(value):
                raise ValueError(f"the tensor {name} does not lie where its header says")
            end = finish
        with path.open("rb") as stream:
            data = path.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
        if data != end:
            raise ValueError(f"it has {data} bytes of tensors, its header says {end}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}.", code="checkpoint") from error
    return {name: tuple(value["shape"]) for name, value in header.items()}


def _tensor_bytes(value: Mapping[str, Any]) -> int:
    return int(math.prod(value["shape"]) * _DTYPE_BYTES[value["dtype"]])


def safetensors_architecture(path: Path) -> str | None:
    """Name the network a safetensors file belongs to by its tensors' names; None when unclear."""
    try:
        names = set(safetensors_header(path))
    except ModelError:
        return None
    return architecture_of(names)


def architecture_of(names: set[str]) -> str | None:
    """Name the network that tensors of these names belong to; None for a GPEN in some other form.

    It looks for one telling name of each network; whoever loads it checks them all.
    """
    bare = {name.removeprefix("module.") for name in names}
    if any(name.startswith("body.stage1.0.") for name in bare):
        return "retinaface-mobile0.25"
    if "body.conv1.weight" in bare and any(name.startswith("ssh1.") for name in bare):
        return "retinaface-resnet50"
    if any(name.startswith("cp.resnet.") for name in bare):
        return "bisenet"
    if any(name.startswith("encoder.0.conv2d.") for name in bare):
        return "parsenet"
    if {"stem.weight", "tail.weight"} <= bare:
        return "local-restorer"
    if any(name.endswith("generator.input.input") for name in bare):
        return "gpen"
    return None


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise ``ModelError`` (code "disk-full") unless ``needed`` bytes and some spare are free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise storage_error(error, folder) from error
    if free < needed + SPARE_BYTES:
        raise ModelError(
            f"There is not enough room for {what} in {folder}: it needs {show_bytes(needed)} and "
            f"{show_bytes(SPARE_BYTES)} to spare, {show_bytes(free)} are free.",
            hint="Free some space, or set FACE_RESTORE_MODELS to a folder on another disk.",
            code="disk-full",
        )


def storage_error(error: OSError, path: Path) -> ModelError:
    """Say in words why ``path`` could not be written or read."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            f"The disk is full: {path} could not be written.",
            hint="Free some space, or set FACE_RESTORE_MODELS to a folder on another disk.",
            code="disk-full",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ModelError(
            f"{path} may not be written: {error.strerror}.",
            hint="Check the folder's permissions, stop a worker that uses the model "
            "(`face-restore worker stop`), or set FACE_RESTORE_MODELS to another folder.",
            code="not-writable",
        )
    return ModelError(
        f"{path} cannot be used: {error.strerror or error}.",
        hint="Set FACE_RESTORE_MODELS to a folder that can be written.",
        code="storage",
    )


def unlinked(path: Path) -> bool:
    """Remove a file or folder; false when it was not there or could not be removed."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    return False


def show_bytes(count: float) -> str:
    """A number of bytes for people: "285.2 MB", powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
