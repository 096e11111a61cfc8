"""Models: the catalogue, the store of installed ones, downloads and imports."""

from face_restore_worker.models.store import ModelStore, ResolvedModel

__all__ = ["ModelStore", "ResolvedModel"]
