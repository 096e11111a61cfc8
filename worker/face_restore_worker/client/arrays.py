"""Between arrays and the protocol's buffers, without copies where the form allows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import (
    DTYPE_SIZES,
    DetectResult,
    FaceReport,
    FaceTarget,
    ImageSpec,
    RestoreResult,
)
from face_restore_shared.wire import Buffer
from numpy.typing import NDArray

from face_restore_worker.pipeline.types import Face, FloatArray, Patch, RestoreOutcome

AnyArray = NDArray[Any]


@dataclass(eq=False)
class DetectOutcome:
    """Faces found. previews: (h, w, 3) uint8 for each face, when asked for. notes: for the user."""

    faces: list[Face] = field(default_factory=list)
    detector: str = ""
    previews: list[NDArray[np.uint8]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pack(image: AnyArray, selection: AnyArray | None) -> tuple[ImageSpec, list[AnyArray]]:
    """What describes a picture, and its buffers. Raises FaceRestoreError (code "image")."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise FaceRestoreError(
            f"A picture has the shape (H, W, 3) or (H, W), not {image.shape}.",
            hint="Convert it to RGB first.",
            code="image",
        )
    if image.dtype.name not in DTYPE_SIZES:
        raise FaceRestoreError(
            f"A picture holds uint8, uint16 or float32, not {image.dtype.name}.",
            hint="Convert it first.",
            code="image",
        )
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    spec = ImageSpec(int(width), int(height), int(channels), image.dtype.name)
    little = image.dtype.newbyteorder("<")
    buffers = [np.ascontiguousarray(image, dtype=little)]
    if selection is not None:
        buffers.append(_selection(selection, (height, width)))
    return spec, buffers


def _selection(selection: AnyArray, shape: tuple[int, int]) -> AnyArray:
    if selection.shape != shape:
        raise FaceRestoreError(
            f"The selection has the shape {selection.shape}, the picture {shape}.",
            hint="They must be of the same size.",
            code="image",
        )
    if selection.dtype != np.uint8:
        selection = (np.asarray(selection, dtype=np.float32).clip(0, 1) * 255).round()
    return np.ascontiguousarray(selection, dtype=np.uint8)


def target(face: Face | FaceTarget) -> FaceTarget:
    """A face as a request names it."""
    if isinstance(face, FaceTarget):
        return face
    return FaceTarget(
        box=tuple(face.box.tolist()),
        landmarks=tuple(map(tuple, face.landmarks.tolist())),
        score=min(max(face.score, 0.0), 1.0),
        strength=face.strength,
    )


def detect_outcome(result: DetectResult, buffers: list[Buffer]) -> DetectOutcome:
    """A detect reply with its previews."""
    previews = [
        as_array(buffer, "uint8", (height, width, 3))
        for buffer, (width, height) in zip(buffers, result.previews, strict=True)
    ]
    faces = [_face(report) for report in result.faces]
    timings, notes = dict(result.timings), list(result.notes)
    return DetectOutcome(faces, result.detector, previews, timings, notes)


def restore_outcome(result: RestoreResult, buffers: list[Buffer]) -> RestoreOutcome:
    """A restore reply with its patches."""
    remaining = iter(buffers)
    outcome = RestoreOutcome(
        model_id=result.model_id,
        model_name=result.model,
        detector=result.detector,
        device=result.device,
        notes=list(result.notes),
        timings=dict(result.timings),
    )
    for report in result.faces:
        face = _face(report)
        outcome.faces.append(face)
        if report.patch is None:
            continue
        spec, side = report.patch, report.aligned
        shapes = [(spec.height, spec.width, 3), (spec.height, spec.width)]
        shapes += [(side, side, 3), (side, side, 3)] if side else []
        arrays = [_unit(as_array(next(remaining), spec.dtype, shape)) for shape in shapes]
        matrix = np.zeros((2, 3)) if report.matrix is None else np.array(report.matrix)
        outcome.patches.append(_patch(report, face, matrix, arrays))
    return outcome


def _patch(report: FaceReport, face: Face, matrix: FloatArray, arrays: list[AnyArray]) -> Patch:
    assert report.patch is not None
    return Patch(
        face=face,
        matrix=matrix,
        crop_size=report.crop_size,
        x=report.patch.x,
        y=report.patch.y,
        rgb=arrays[0],
        mask=arrays[1],
        strength=1.0 if report.strength is None else report.strength,
        note=report.note,
        aligned_input=arrays[2] if report.aligned else None,
        aligned_output=arrays[3] if report.aligned else None,
    )


def _face(report: FaceReport) -> Face:
    return Face(
        box=np.array(report.box),
        score=report.score,
        landmarks=np.array(report.landmarks),
        strength=report.strength,
    )


def as_array(buffer: Buffer, dtype: str, shape: tuple[int, ...]) -> AnyArray:
    """A received buffer as an array over the same memory (perhaps read-only)."""
    kind = np.dtype(dtype).newbyteorder("<")
    data = buffer.take(lambda size: np.empty(size, np.uint8))
    array = np.frombuffer(data, kind).reshape(shape)
    # Small frames may lie at odd addresses, which some libraries do not take.
    return np.require(array, requirements="A")


def _unit(array: AnyArray) -> AnyArray:
    """As float32 in [0, 1]; float32 as it is."""
    if array.dtype == np.float32:
        return array
    return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
