"""A picture of 100 megapixels with 60 faces, within 6 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from harness import FaultHome, Tell, eventually
from PIL import Image
from skimage import data

SIDE, ACROSS, FACES = 10_000, 8, 60
LIMIT = 6e9


def crowd(path: Path) -> Path:
    """SIDE x SIDE pixels, the astronaut 60 times at double size: 60 faces of some 200 pixels."""
    one = np.repeat(np.repeat(data.astronaut(), 2, axis=0), 2, axis=1)
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    step = SIDE // ACROSS
    for number in range(FACES):
        y, x = number // ACROSS * step, number % ACROSS * step
        picture[y : y + 1024, x : x + 1024] = one
    Image.fromarray(picture).save(path, quality=90)
    return path


def peak(pid: int) -> int:
    """The most memory a process has had so far, in bytes (proc(5), VmHWM)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_hundred_megapixels_with_sixty_faces(home: FaultHome, tell: Tell) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "face_restore_worker.server", "--quiet"], env=home.environment()
    )
    home.processes.append(worker)
    eventually(lambda: home.listening() == worker.pid, "the worker listens")
    source, target = crowd(home.folder / "crowd.jpg"), home.folder / "out.png"
    begin = time.monotonic()
    command = ["-m", "face_restore_worker.cli", "restore", str(source), "-o", str(target)]
    client = subprocess.Popen(
        [sys.executable, *command, "--format", "json"],
        env=home.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    home.processes.append(client)
    assert client.stdout is not None
    said = client.stdout.read()
    _, status, usage = os.wait4(client.pid, 0)
    client.returncode = os.waitstatus_to_exitcode(status)
    assert client.returncode == 0, said
    (report,) = json.loads(said)["files"]
    restored = len(report["faces"])
    assert restored >= FACES
    sizes = peak(worker.pid), usage.ru_maxrss * 1024
    tell(
        f"{SIDE * SIDE // 10**6} megapixels, {restored} faces, on the CPU",
        1,
        f"worker at most {sizes[0] / 1e9:.2f} GB, command {sizes[1] / 1e9:.2f} GB; "
        f"{time.monotonic() - begin:.0f} s",
    )
    assert sum(sizes) < LIMIT
