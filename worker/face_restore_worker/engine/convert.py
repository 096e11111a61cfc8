"""Between the protocol's buffers and the pipeline's arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from face_restore_shared.schema import (
    DetectResult,
    FaceReport,
    FaceTarget,
    ImageSpec,
    PatchSpec,
    RestoreOptions,
    RestoreResult,
)
from face_restore_shared.wire import Buffer
from numpy.typing import NDArray

from face_restore_worker.pipeline.types import Face, Patch, RestoreOutcome

if TYPE_CHECKING:
    from face_restore_worker.pipeline.restore import Restorer

AnyArray = NDArray[Any]


def image_array(spec: ImageSpec, buffer: Buffer) -> AnyArray:
    """The picture over the received memory: (H, W, 3), or (H, W) for gray."""
    shape = (spec.height, spec.width) + ((3,) if spec.channels == 3 else ())
    return _array(buffer, spec.dtype).reshape(shape)


def selection_array(spec: ImageSpec, buffer: Buffer) -> AnyArray:
    """The selection, (H, W) uint8."""
    return _array(buffer, "uint8").reshape(spec.height, spec.width)


def _array(buffer: Buffer, dtype: str) -> AnyArray:
    data = buffer.take(lambda size: np.empty(size, np.uint8))
    array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return np.require(array, requirements="A")  # small frames may lie at odd addresses


def face(target: FaceTarget) -> Face:
    """A face as the pipeline knows it."""
    return Face(
        box=np.array(target.box),
        score=target.score,
        landmarks=np.array(target.landmarks),
        strength=target.strength,
    )


def detect_result(
    image: AnyArray, faces: list[Face], restorer: Restorer, previews: int, notes: list[str]
) -> tuple[DetectResult, list[AnyArray]]:
    """The reply to a detect request; previews: long side in pixels, 0 for none."""
    pictures = [preview(image, found, previews) for found in faces] if previews else []
    result = DetectResult(
        faces=tuple(_report(found) for found in faces),
        detector=restorer.detector_name,
        previews=tuple((picture.shape[1], picture.shape[0]) for picture in pictures),
        notes=tuple(notes),
    )
    return result, pictures


def restore_result(
    outcome: RestoreOutcome, options: RestoreOptions
) -> tuple[RestoreResult, list[AnyArray]]:
    """The reply to a restore request: patches in the order to paste, then faces left alone."""
    dtype = options.patch_dtype
    reports, buffers = [], []
    for patch in outcome.patches:
        reports.append(_patch_report(patch, dtype))
        arrays = [patch.rgb, patch.mask]
        if patch.aligned_input is not None and patch.aligned_output is not None:
            arrays += [patch.aligned_input, patch.aligned_output]
        buffers += [encode(array, dtype) for array in arrays]
    done = {id(patch.face) for patch in outcome.patches}
    reports += [_report(found) for found in outcome.faces if id(found) not in done]
    result = RestoreResult(
        faces=tuple(reports),
        model=outcome.model_name,
        model_id=outcome.model_id,
        detector=outcome.detector,
        device=outcome.device,
        notes=tuple(outcome.notes),
        timings={stage: max(0.0, float(s)) for stage, s in outcome.timings.items()},
    )
    return result, buffers


def encode(array: AnyArray, dtype: str) -> AnyArray:
    """[0, 1] floats in the dtype to send; uint8 and uint16 span their full range."""
    if dtype == "float32":
        return np.ascontiguousarray(array, np.dtype("<f4"))
    full = np.iinfo(dtype).max
    scaled = np.clip(array, 0, 1) * np.float32(full) + np.float32(0.5)
    return scaled.astype(np.dtype(dtype).newbyteorder("<"))


def preview(image: AnyArray, found: Face, side: int) -> NDArray[np.uint8]:
    """The face with some margin, (h, w, 3) uint8, its long side at most `side` pixels."""
    import cv2

    x0, y0, x1, y1 = found.box
    margin = 0.25 * max(x1 - x0, y1 - y0)
    height, width = image.shape[:2]
    left = int(np.clip(np.floor(x0 - margin), 0, width - 1))
    top = int(np.clip(np.floor(y0 - margin), 0, height - 1))
    right = int(np.clip(np.ceil(x1 + margin), left + 1, width))
    bottom = int(np.clip(np.ceil(y1 + margin), top + 1, height))
    part = image[top:bottom, left:right]
    if part.dtype == np.uint16:
        part = (part >> 8).astype(np.uint8)
    elif part.dtype == np.float32:
        part = encode(np.nan_to_num(part), "uint8")
    scale = min(1.0, side / max(part.shape[:2]))
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    small = cv2.resize(np.ascontiguousarray(part), size, interpolation=cv2.INTER_AREA)
    if small.ndim == 2:
        small = np.repeat(small[:, :, None], 3, axis=2)
    return np.ascontiguousarray(small, np.uint8)


def _report(found: Face, **more: Any) -> FaceReport:
    values: dict[str, Any] = {"strength": found.strength, **more}
    return FaceReport(
        box=tuple(found.box.tolist()),
        landmarks=tuple(map(tuple, found.landmarks.tolist())),
        score=min(max(found.score, 0.0), 1.0),
        **values,
    )


def _patch_report(patch: Patch, dtype: str) -> FaceReport:
    height, width = patch.mask.shape
    aligned = 0
    if patch.aligned_input is not None and patch.aligned_output is not None:
        aligned = patch.aligned_input.shape[0]
    return _report(
        patch.face,
        matrix=tuple(map(tuple, np.asarray(patch.matrix).tolist())),
        crop_size=int(patch.crop_size),
        patch=PatchSpec(int(patch.x), int(patch.y), int(width), int(height), dtype),
        aligned=int(aligned),
        strength=min(max(float(patch.strength), 0.0), 1.0),
        note=patch.note,
    )
