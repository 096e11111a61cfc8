"""Check that an installed model still is what was installed."""

from __future__ import annotations

from pathlib import Path

from face_restore_worker.errors import ModelError
from face_restore_worker.models import files
from face_restore_worker.models.records import ModelRecord, read_json


def find_problems(tensors: Path, record_file: Path, is_builtin: bool) -> list[str]:
    """Compare a model's file with its record, every byte, and check its layout.

    A built-in model's digest is the "sha256" of its card. Returns sentences, none when all is well.
    """
    problems = []
    digest: str | None = None
    size: int | None = None
    try:
        if is_builtin:
            card = read_json(record_file) or {}
            digest = card.get("sha256")
        else:
            record = ModelRecord.read(record_file)
            if record is not None:
                digest, size = record.sha256, record.bytes
    except ModelError as error:
        problems.append(error.message)
    else:
        if digest is None:
            problems.append(f"no digest of it is known: {record_file.name} is missing or lacks it")
    actual = tensors.stat().st_size
    if size is not None and size != actual:
        problems.append(f"it has {actual} bytes, {size} were installed")
    elif digest is not None and files.sha256_file(tensors) != digest:
        problems.append(f"its SHA-256 is not {digest}: the file was changed or damaged")
    try:
        files.check_safetensors(tensors)
    except ModelError as error:
        problems.append(error.message)
    return problems
