"""The built-in detector's shipped weights: intact, facexlib's, and they find a face."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from face_restore_worker.models.store import BUILTIN_DIR
from face_restore_worker.pipeline.facexlib_nets import import_torchvision
from numpy.typing import NDArray
from safetensors.torch import load_file

WEIGHTS = BUILTIN_DIR / "builtin-detector.safetensors"
CARD: dict[str, Any] = json.loads((BUILTIN_DIR / "builtin-detector.json").read_text("utf-8"))
MEAN_BGR = (104.0, 117.0, 123.0)
#: (stride, anchor sides) of the network's three levels and its two variances, facexlib's.
LEVELS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
VARIANCES = (0.1, 0.2)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """facexlib's own network with the shipped weights, loaded strictly."""
    import_torchvision()
    from facexlib.detection.retinaface import RetinaFace

    net = RetinaFace("mobile0.25", device=torch.device("cpu"))
    net.load_state_dict(load_file(WEIGHTS), strict=True)
    return net.eval()


def anchors(height: int, width: int) -> Iterator[tuple[float, float, float]]:
    """Centre x, centre y and side in px of every anchor, in the network's order."""
    for stride, sides in LEVELS:
        for y in range(-(-height // stride)):
            for x in range(-(-width // stride)):
                for side in sides:
                    yield (x + 0.5) * stride, (y + 0.5) * stride, side


def best_face(
    network: torch.nn.Module, rgb: NDArray[np.uint8]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Score, box (4,) and landmarks (5, 2) in px of the most confident anchor."""
    pixels = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        loc, scores, points = network(pixels - torch.tensor(MEAN_BGR).view(1, 3, 1, 1))
    best = int(scores[0, :, 1].argmax())
    x, y, side = list(anchors(*rgb.shape[:2]))[best]
    shift = loc[0, best].double().numpy()
    middle = np.array([x, y]) + shift[:2] * VARIANCES[0] * side
    half = side * np.exp(shift[2:] * VARIANCES[1]) / 2
    offsets = points[0, best].double().numpy().reshape(5, 2)
    landmarks = np.array([x, y]) + offsets * VARIANCES[0] * side
    return float(scores[0, best, 1]), np.concatenate([middle - half, middle + half]), landmarks


def textures() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Seeded pictures without any face, (256, 320, 3) uint8."""
    rng = np.random.default_rng(25)
    y, x = np.mgrid[0:256, 0:320].astype(np.float64)
    yield "noise", rng.integers(0, 256, (256, 320, 3), dtype=np.uint8)
    yield "black", np.zeros((256, 320, 3), np.uint8)
    yield "gradient", np.stack([x * 255 / 319, y * 255 / 255, 255 - x * 255 / 319], -1).astype("u1")
    for period in (7, 23, 61):
        wave = np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period)
        yield f"waves {period}", np.repeat((127 + 120 * wave)[..., None], 3, 2).astype(np.uint8)
    for cell in (8, 16, 64):
        tiles = rng.integers(0, 256, (256 // cell, 320 // cell, 3), dtype=np.uint8)
        yield f"tiles {cell}", tiles.repeat(cell, 0).repeat(cell, 1)
    for _ in range(4):
        discs = np.full((256, 320, 3), rng.integers(0, 256, 3), np.uint8)
        for radius in np.sort(rng.uniform(4, 60, 60))[::-1]:
            inside = np.hypot(x - rng.uniform(0, 320), y - rng.uniform(0, 256)) < radius
            discs[inside] = rng.integers(0, 256, 3)
        yield "discs", discs


def test_card_fits_the_file() -> None:
    data = WEIGHTS.read_bytes()
    assert len(data) <= 2_000_000
    assert CARD["file"] == WEIGHTS.name
    assert CARD["bytes"] == len(data)
    assert CARD["sha256"] == hashlib.sha256(data).hexdigest()
    assert 0.3 <= CARD["threshold"] <= 0.95
    text = Path(BUILTIN_DIR / "builtin-detector.md").read_text("utf-8")
    assert f"{CARD['bytes']:,}" in text
    assert f"threshold: {CARD['threshold']}" in text


def test_weights_are_finite_and_not_constant() -> None:
    for name, tensor in load_file(WEIGHTS).items():
        assert torch.isfinite(tensor.float()).all(), name
        if name.endswith("weight") and tensor.ndim == 4:
            assert tensor.std() > 0, name


@pytest.mark.parametrize("mirror", [False, True])
def test_finds_the_astronaut(network: torch.nn.Module, mirror: bool) -> None:
    from skimage.data import astronaut

    photo = np.ascontiguousarray(astronaut()[:, ::-1] if mirror else astronaut())
    score, box, landmarks = best_face(network, photo)
    assert score >= CARD["threshold"]
    # By eye on the photograph: the face spans about x 175..270, y 65..200.
    middle = 512 - 222 if mirror else 222
    assert abs((box[0] + box[2]) / 2 - middle) < 20
    assert abs((box[1] + box[3]) / 2 - 130) < 25
    left, right, nose, mouth_left, mouth_right = landmarks
    assert 25 < right[0] - left[0] < 65
    assert 15 < mouth_right[0] - mouth_left[0] < 70
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
    inside = (landmarks > box[:2] - 5) & (landmarks < box[2:] + 5)
    assert inside.all()


def test_finds_no_face_in_textures(network: torch.nn.Module) -> None:
    for name, picture in textures():
        score = best_face(network, picture)[0]
        assert score < CARD["threshold"], name
