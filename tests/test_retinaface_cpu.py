"""The quick form of the light RetinaFace gives the plain network's scores, boxes and landmarks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from face_restore_worker.models.store import BUILTIN_DIR
from face_restore_worker.network import fused
from face_restore_worker.network.retinaface_cpu import MEAN_RGB, RetinaFaceCpu
from face_restore_worker.pipeline.facexlib_nets import build_retinaface, load_retinaface
from face_restore_worker.pipeline.views import MEAN_BGR, Network
from scene_factory import astronaut

WEIGHTS = BUILTIN_DIR / "builtin-detector.safetensors"
#: score, offset (tenths of an anchor's side) and landmark tolerances.
TOLERANCE = {torch.float32: (1e-5, 1e-4, 1e-4), torch.bfloat16: (0.05, 0.3, 0.5)}


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return load_retinaface(WEIGHTS)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("unfused", [False, True])
def test_it_is_the_plain_network(
    plain: torch.nn.Module, dtype: torch.dtype, unfused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unfused:
        monkeypatch.setattr(fused, "_can_fuse", lambda dtype: False)
    quick = RetinaFaceCpu(plain, dtype)
    picture = np.ascontiguousarray(astronaut()[:250, 60:371])  # sides that need padding
    expected = Network(plain, "cpu").find([picture], 0.0)[0]
    found = Network(plain, "cpu", quick).find([picture, picture[::-1].copy()], 0.0)[0]
    assert len(found) == len(expected) > 2000
    assert expected.scores.max() > 0.9
    score, offset, points = TOLERANCE[dtype]
    np.testing.assert_allclose(found.scores, expected.scores, atol=score)
    sure = expected.scores > 0.5
    assert sure.sum() > 5
    side = expected.sides[sure].mean()
    np.testing.assert_allclose(found.boxes[sure], expected.boxes[sure], atol=offset * side / 10)
    np.testing.assert_allclose(
        found.landmarks[sure], expected.landmarks[sure], atol=points * side / 10
    )


def test_the_threshold_chooses_the_same_anchors(plain: torch.nn.Module) -> None:
    picture = astronaut()
    plainly, quickly = Network(plain, "cpu"), Network(plain, "cpu", RetinaFaceCpu(plain))
    for threshold in (0.2, 0.75, 1.0):
        expected, found = (
            plainly.find([picture], threshold)[0],
            quickly.find([picture], threshold)[0],
        )
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)


def test_other_networks_are_refused(plain: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="MobileNet"):
        RetinaFaceCpu(build_retinaface("resnet50"))
    with pytest.raises(ValueError, match="folded"):
        RetinaFaceCpu(build_retinaface("mobile0.25"))
    assert tuple(reversed(MEAN_RGB)) == MEAN_BGR
