"""The built-in detector in the whole search: real faces of every size."""

from __future__ import annotations

from pathlib import Path

import face_restore_worker.models
import numpy as np
import pytest
import torch
from face_restore_shared.options import DetectOptions
from face_restore_worker.pipeline.detect import FaceDetector, load_detector
from face_restore_worker.pipeline.nms import iou
from face_restore_worker.pipeline.types import Face
from scene_factory import Truth, astronaut, background, paste_astronaut

BUILTIN = Path(face_restore_worker.models.__file__).with_name("builtin") / (
    "builtin-detector.safetensors"
)


@pytest.fixture(scope="module")
def builtin() -> FaceDetector:
    torch.set_num_threads(2)
    return load_detector(BUILTIN, "builtin-detector")


def matched(faces: list[Face], truth: Truth) -> Face:
    overlaps = [float(iou(face.box[None], truth.box[None])[0, 0]) for face in faces]
    assert overlaps, "no face was found"
    assert max(overlaps) > 0.4
    return faces[int(np.argmax(overlaps))]


def landmark_error(face: Face, truth: Truth) -> float:
    """Mean distance in units of the eye distance."""
    eyes = np.linalg.norm(truth.landmarks[1] - truth.landmarks[0])
    return float(np.linalg.norm(face.landmarks - truth.landmarks, axis=1).mean() / eyes)


def test_builtin_finds_the_astronaut(builtin: FaceDetector) -> None:
    from scene_factory import ASTRONAUT_BOX, ASTRONAUT_LANDMARKS

    truth = Truth(ASTRONAUT_BOX, ASTRONAUT_LANDMARKS)
    faces = builtin.detect(astronaut())
    assert landmark_error(matched(faces, truth), truth) < 0.15
    assert len(faces) == 1


@pytest.mark.parametrize("height", [14, 40, 150, 500, 1000])
def test_builtin_finds_faces_of_every_size(builtin: FaceDetector, height: float) -> None:
    scene = background(1300, 1200, seed=4)
    truth = paste_astronaut(scene, 650, 580, height)
    assert landmark_error(matched(builtin.detect(scene), truth), truth) < 0.2


def test_builtin_finds_a_face_lying_down(builtin: FaceDetector) -> None:
    scene = background(500, 400, seed=5)
    truth = paste_astronaut(scene, 250, 200, 120, degrees=90)
    faces = builtin.detect(scene, DetectOptions(rotations=True))
    assert landmark_error(matched(faces, truth), truth) < 0.2


def test_builtin_finds_nothing_where_nothing_is(builtin: FaceDetector) -> None:
    assert builtin.detect(np.full((600, 800, 3), 128, np.uint8)) == []
    assert builtin.detect(background(800, 600, seed=6)) == []
