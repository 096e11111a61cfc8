"""The demo: degrade a real photograph, restore its faces through the worker, show the result.

Run by ``bootstrap.py demo`` inside the private environment; needs no network and no
downloaded model. Writes before.png, after.png, side-by-side.png and original.png.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

SEED = 2048
LABEL_HEIGHT = 40


def photograph() -> np.ndarray:
    """Eileen Collins, photographed by NASA (public domain): (512, 512, 3) uint8 BGR."""
    from skimage import data

    return cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)


def degrade(image: np.ndarray) -> np.ndarray:
    """Blur, shrink and enlarge by 2, add noise and JPEG artefacts; same shape, uint8."""
    rng = np.random.default_rng(SEED)
    height, width = image.shape[:2]
    soft = cv2.GaussianBlur(image, (0, 0), 1.2)
    small = cv2.resize(soft, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    noisy = small + rng.normal(0, 5, small.shape)
    small = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    _, packed = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])
    small = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def restore(before: Path, after: Path) -> dict:
    """Restore through the persistent worker by the command line a user would type.

    Raises:
        RuntimeError: the command failed; the text is its own.
    """
    command = [sys.executable, "-m", "face_restore_worker.cli", "restore", str(before)]
    command += ["-o", str(after), "--overwrite", "--format", "json"]
    print("[demo] face-restore " + " ".join(command[3:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise RuntimeError(f"the command ended with status {done.returncode}: {done.stdout}")
    return json.loads(done.stdout)


def side_by_side(panels: dict[str, np.ndarray], box: list[float]) -> np.ndarray:
    """The whole pictures above, the face's region four times enlarged below, labelled."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) * 1.5
    left, top = int((x0 + x1 - side) / 2), int((y0 + y1 - side) / 2)
    columns = []
    for label, panel in panels.items():
        width = panel.shape[1]
        face = panel[max(top, 0) : top + int(side), max(left, 0) : left + int(side)]
        face = cv2.resize(face, (width, width), interpolation=cv2.INTER_CUBIC)
        bar = np.full((LABEL_HEIGHT, width, 3), 255, np.uint8)
        cv2.putText(bar, label, (8, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2, cv2.LINE_AA)
        columns.append(np.vstack([bar, panel, face]))
    return np.hstack(columns)


def write(path: Path, image: np.ndarray) -> None:
    """Write a PNG; raises OSError when OpenCV cannot."""
    ok, packed = cv2.imencode(".png", image)
    if not ok:
        raise OSError(f"could not encode {path}")
    path.write_bytes(packed.tobytes())


def main(folder: str) -> int:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    original = photograph()
    before_file, after_file = out / "before.png", out / "after.png"
    write(out / "original.png", original)
    write(before_file, degrade(original))
    started = time.monotonic()
    report = restore(before_file, after_file)
    seconds = time.monotonic() - started
    picture = report["files"][0]
    before, after = cv2.imread(str(before_file)), cv2.imread(str(after_file))
    if not picture["faces"]:
        print("[demo] no face was found in the photograph; that is a defect, please report it")
        return 1
    box = max((face["box"] for face in picture["faces"]), key=lambda b: b[3] - b[1])
    panels = {"before": before, "after": after, "original": original}
    write(out / "side-by-side.png", side_by_side(panels, box))
    x0, y0, x1, y1 = (max(int(v), 0) for v in box)
    face = np.s_[y0:y1, x0:x1]
    print(f"[demo] model: {picture['model']}; faces: {len(picture['faces'])}; {seconds:.1f} s")
    print(
        f"[demo] face against the undamaged photograph: {psnr(before[face], original[face]):.2f} dB"
        f" before, {psnr(after[face], original[face]):.2f} dB after"
    )
    for name in ("before.png", "after.png", "side-by-side.png"):
        print(f"[demo] {out / name}")
    print("[demo] the worker stays ready for the next picture; `face-restore worker stop` ends it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
