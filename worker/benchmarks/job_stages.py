"""Time everything of a job but the network: detection, and one face's way to and from it.

    python job_stages.py [--picture FILE] [--size 2048] [--repeats 5] [--threads N] [--json]

Without --picture the astronaut of scikit-image is set into a made-up photograph of 24 megapixels
with fine texture and noise, its face about 1,100 pixels high. Detection is timed with and without
the proposer, alternating; the rest with a network that gives back what it gets. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from face_restore_worker.threads import share_processor

share_processor()

import cv2  # noqa: E402
import torch  # noqa: E402
from face_restore_shared.options import DetectOptions  # noqa: E402
from face_restore_worker import composite  # noqa: E402
from face_restore_worker.models.store import BUILTIN_DIR  # noqa: E402
from face_restore_worker.pipeline.align import alignment_matrix  # noqa: E402
from face_restore_worker.pipeline.detect import load_detector  # noqa: E402
from face_restore_worker.pipeline.mask import oval_mask  # noqa: E402
from face_restore_worker.pipeline.paste import align_face, bring_back, finish_crop  # noqa: E402
from face_restore_worker.pipeline.types import Face, Patch  # noqa: E402


def made_up(seed: int = 0) -> np.ndarray:
    """6,000 x 4,000 uint8 RGB: octaves of noise, edges, grain, and one large face."""
    from skimage.data import astronaut

    rng = np.random.default_rng(seed)
    height, width = 4000, 6000
    coarse = np.full((height // 4, width // 4, 3), 120, np.float32)
    for octave in range(2, 10):
        knots = rng.standard_normal((2**octave, 2**octave * 3 // 2, 3)).astype(np.float32)
        coarse += cv2.resize(knots, coarse.shape[1::-1]) * (60 / octave)
    picture = cv2.resize(np.clip(coarse, 0, 255).astype(np.uint8), (width, height))
    for _ in range(400):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(5, 400)), int(rng.integers(5, 200)))
        colour = rng.uniform(20, 235, 3).tolist()
        cv2.ellipse(picture, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
    head = cv2.resize(astronaut()[:230, 100:340], None, fx=9, fy=9, interpolation=cv2.INTER_CUBIC)
    picture[1000 : 1000 + head.shape[0], 2000 : 2000 + head.shape[1]] = head
    grain = rng.integers(0, 12, (height, width, 1), dtype=np.uint8)
    return np.minimum(picture, 243) + grain


def seconds(call: Callable[[], Any]) -> float:
    """What a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rest(picture: np.ndarray, face: Face, size: int) -> dict[str, float]:
    """Seconds of each stage of one face, the network left out."""
    matrix = alignment_matrix(face.landmarks, "ffhq", size)
    start = time.perf_counter()
    aligned = align_face(picture, matrix, size)
    output = aligned.rgb.copy()
    marks = [time.perf_counter()]
    mask = oval_mask(size)
    marks.append(time.perf_counter())
    restored = finish_crop(aligned, output, mask, True)
    marks.append(time.perf_counter())
    found = bring_back(picture, aligned, restored, mask)
    marks.append(time.perf_counter())
    if found is None:
        raise SystemExit("The face's mask shows nothing of the picture: choose another picture.")
    x, y, rgb, soft = found
    composite(picture, [Patch(face, matrix, size, x, y, rgb, soft)])
    marks.append(time.perf_counter())
    names = ("align", "mask", "colour", "back", "composite")
    spent = np.diff([start, *marks]).tolist()
    return dict(zip(names, spent, strict=True)) | {"rest": sum(spent)}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--size", type=int, default=2048, help="of the aligned crop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(args.threads)
    picture = made_up()
    if args.picture:
        read = cv2.imread(str(args.picture), cv2.IMREAD_COLOR)
        if read is None:
            raise SystemExit(f"{args.picture} is no picture OpenCV reads.")
        picture = np.ascontiguousarray(read[..., ::-1])
    path = BUILTIN_DIR / "builtin-detector.safetensors"
    detector = load_detector(path, "builtin-detector")
    proposer = detector.proposer
    faces = detector.detect(picture)  # also prepares what is prepared at first use
    if not faces:
        raise SystemExit("No face was found: choose another picture.")
    largest = max(faces, key=lambda face: face.height)
    times: dict[str, list[float]] = {}
    only = DetectOptions(min_face=30)
    for _ in range(args.repeats):
        detector.proposer = proposer
        times.setdefault("detect", []).append(seconds(lambda: detector.detect(picture)))
        times.setdefault("detect from 30 px", []).append(
            seconds(lambda: detector.detect(picture, only))
        )
        detector.proposer = None
        times.setdefault("detect everywhere", []).append(seconds(lambda: detector.detect(picture)))
        for name, spent in rest(picture, largest, args.size).items():
            times.setdefault(name, []).append(spent)
    table = {
        name: {"median": statistics.median(spent), "low": min(spent), "high": max(spent)}
        for name, spent in times.items()
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if args.json:
        info = {"shape": picture.shape, "faces": len(faces), "load": load, "seconds": table}
        print(json.dumps(info, indent=1))
        return
    height, width = picture.shape[:2]
    print(f"{width} x {height}, {len(faces)} faces, threads {torch.get_num_threads()}, load {load}")
    for name, row in table.items():
        print(f"{name:20}{row['median']:8.3f} s  ({row['low']:.3f} to {row['high']:.3f})")


if __name__ == "__main__":
    sys.exit(main())
