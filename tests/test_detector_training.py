"""The built-in detector's training scripts run from data to card, on tiny data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from face_restore_worker.models.store import BUILTIN_DIR
from safetensors.torch import load_file
from skimage.data import astronaut

SCRIPTS = Path(__file__).parents[1] / "worker" / "training" / "detector"


def run(script: str, *args: str | Path) -> str:
    """Run a script; its standard output."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Portraits of one face in several colours; the shipped detector as the teacher."""
    folder = tmp_path / "data"
    (folder / "photos").mkdir(parents=True)
    (folder / "portraits").mkdir()
    photo = np.ascontiguousarray(astronaut()[:320, 60:380, ::-1])
    for number in range(1, 41):  # of these some are held out by their number's hash
        shade = np.clip(photo * (0.7 + number / 80), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "portraits" / f"{number:06}.jpg"), shade)
    cv2.imwrite(str(folder / "photos" / "Solvay_conference_1927.png"), photo)
    state = load_file(BUILTIN_DIR / "builtin-detector.safetensors")
    torch.save(state, folder / "retinaface_mobilenet0.25.pth")
    return folder


@pytest.mark.slow
def test_trains_evaluates_and_writes_a_card(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--steps", "6", "--blockwise", "0.5", "--seed", "3")
    run("train.py", "--data", data, "--out", out, *options)
    first = load_file(out / "student.safetensors")
    shipped = load_file(BUILTIN_DIR / "builtin-detector.safetensors")
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in shipped.items()}
    assert not torch.equal(first["body.stage1.0.0.weight"], shipped["body.stage1.0.0.weight"])
    run("train.py", "--data", data, "--out", out, *options)
    again = load_file(out / "student.safetensors")
    assert all(torch.equal(again[k], v) for k, v in first.items())

    weights = BUILTIN_DIR / "builtin-detector.safetensors"
    printed = run(
        *("evaluate.py", "--data", data, "--weights", weights, "--scenes", "2"),
        *("--threshold", "0.8", "--json"),
    )
    figures = json.loads(printed)
    # The teacher is the same network here: nothing may be missed, added or moved.
    assert figures["all"]["found"] == figures["all"]["teacher_faces"] > 0
    assert figures["all"]["false"] == 0
    assert figures["all"]["landmark_error"] == 0
    (tmp_path / "figures.json").write_text(printed)
    run("card.py", "--weights", weights, "--figures", tmp_path / "figures.json", "--out", tmp_path)
    card = json.loads((tmp_path / "builtin-detector.json").read_text())
    assert card["bytes"] == weights.stat().st_size
