"""Face restoration: network, pipeline, worker and command line.

The heavy names are imported on first use, so that the command line can answer
``--help`` and ``status`` without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from face_restore_shared.version import __version__

if TYPE_CHECKING:
    from face_restore_worker.checkpoints.gpen import load_gpen
    from face_restore_worker.pipeline.composite import composite
    from face_restore_worker.pipeline.restore import Restorer
    from face_restore_worker.pipeline.types import Face, Patch, RestoreOutcome

__all__ = [
    "Face",
    "Patch",
    "RestoreOutcome",
    "Restorer",
    "__version__",
    "composite",
    "load_gpen",
]

_HOMES = {
    "load_gpen": "face_restore_worker.checkpoints.gpen",
    "composite": "face_restore_worker.pipeline.composite",
    "Restorer": "face_restore_worker.pipeline.restore",
    "Face": "face_restore_worker.pipeline.types",
    "Patch": "face_restore_worker.pipeline.types",
    "RestoreOutcome": "face_restore_worker.pipeline.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
