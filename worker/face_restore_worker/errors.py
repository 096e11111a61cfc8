"""Families of errors the worker side raises; all carry code, message and hint."""

from __future__ import annotations

from face_restore_shared.errors import FaceRestoreError


class CheckpointError(FaceRestoreError):
    """A model file cannot be used: wrong kind, damaged, or tensors missing or misshapen."""

    default_code = "checkpoint"


class ImageError(FaceRestoreError):
    """A picture cannot be read, written or restored."""

    default_code = "image"


class ModelError(FaceRestoreError):
    """A model is unknown, not installed, or could not be downloaded or stored."""

    default_code = "model"


class DeviceError(FaceRestoreError):
    """The asked-for device or precision cannot be used here."""

    default_code = "device"


class Cancelled(FaceRestoreError):
    """The job was cancelled before its next face."""

    default_code = "cancelled"


class WorkerLost(FaceRestoreError):
    """The worker went away while a job was with it."""

    default_code = "worker-lost"
