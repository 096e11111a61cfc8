"""Measure the proposer: alone, and what a search guided by it finds of what a full one finds.

    python evaluate_proposer.py --data DIR --weights FILE [--threshold T] [--scenes N] [--search N]

Scenes show only persons and photographs kept from the training. Half of the persons and a seed of
their own are for choosing the threshold (where none is given): the highest at which GOAL of the
faces are seen that the lowest sees. The others, and another seed, judge it.

"Seen": a cell passes so close to a face that the search about it holds the face. "Area": the share
of a level that is then searched at its own scale. "Search": the shipped detector looks at large
pictures everywhere, everywhere once more with the picture moved by a few pixels, and guided; a face
counts as found again where the boxes overlap by half (IoU). What the moved picture loses is the
detector's own wavering: a score depends on where a face lies on the network's grid.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from face_restore_shared.options import DetectOptions
from face_restore_worker.models.store import BUILTIN_DIR
from face_restore_worker.network.proposer import RANGES, STRIDE, FaceProposer, PreparedProposer
from face_restore_worker.pipeline.detect import FaceDetector, load_detector
from face_restore_worker.pipeline.nms import iou
from face_restore_worker.pipeline.packing import area, cover, within
from face_restore_worker.pipeline.propose import Proposer
from face_restore_worker.pipeline.search import LARGE_REACH, SMALL_REACH
from face_restore_worker.pipeline.types import Face
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))

import itertools

from degrade import Image, degrade
from network import load_network
from portraits import list_images, load
from proposer_scenes import NATURAL_HELD_OUT, SmallFaces, Truths, natural_pictures
from scenes import log_uniform
from train import TEACHER
from train_proposer import to_input

BINS = (10, 12, 14, 18, 24, 36, 48, 72, 110)
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
GOAL = 0.999
SIDE = 512
CHOOSING, JUDGING = 1927, 1928
"""Seeds."""
MOVED = (5, 3)
"""Pixels to the right and down."""
HEIGHTS = (12, 14, 18, 24, 36, 60, 100, 200)


def logits_of(net: PreparedProposer, scene: Image) -> np.ndarray:
    """(2, h, w) float32 of one scene, uint8 BGR with sides that are multiples of 16."""
    pixels = to_input([scene]).permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    return net(pixels)[0].numpy()


def seen(cells: np.ndarray, truth: np.ndarray) -> bool:
    """Whether cells (2, h, w) that pass make the search hold the face of one truth."""
    x, y, side, _ = truth
    for passing, (low, high), reach in zip(cells, RANGES, (SMALL_REACH, LARGE_REACH), strict=True):
        rows, columns = np.nonzero(passing)
        away = np.maximum(abs((columns + 0.5) * STRIDE - x), abs((rows + 0.5) * STRIDE - y))
        if low * 0.9 <= side <= high and np.any(away + 0.6 * side <= reach):
            return True
    return False


def covered(cells: np.ndarray, side: int) -> float:
    """The share of a scene that is searched at its own scale."""
    boxes = []
    for passing, reach in zip(cells, (SMALL_REACH, LARGE_REACH), strict=True):
        rows, columns = np.nonzero(passing)
        middle = np.stack([columns, rows], axis=1) * STRIDE + STRIDE / 2
        boxes.append(np.concatenate([middle - reach, middle + reach], axis=1))
    return area(within(cover(np.concatenate(boxes)), (0, 0, side, side))) / side**2


def alone(net: PreparedProposer, scenes: list[tuple[Image, Truths]]) -> dict[str, Any]:
    """Seen shares by size and threshold on scenes with faces; area shares on those without."""
    maps = [(logits_of(net, image), truths) for image, truths in scenes]
    result: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        limit = np.log(threshold / (1 - threshold))
        hits: dict[str, list[bool]] = {f"{a}-{b}": [] for a, b in itertools.pairwise(BINS)}
        empty, passing = [], []
        for logits, truths in maps:
            cells = logits >= limit
            if not len(truths):
                empty.append(covered(cells, SIDE))
                passing.append(float(cells.any(axis=0).mean()))
            for truth in truths[truths[:, 3] > 0]:
                index = int(np.searchsorted(BINS, truth[2], side="right"))
                if 0 < index < len(BINS) and truth[:2].min() > 0 and truth[:2].max() < SIDE:
                    hits[f"{BINS[index - 1]}-{BINS[index]}"].append(seen(cells, truth))
        result[str(threshold)] = {
            "seen": {k: round(float(np.mean(v)), 4) for k, v in hits.items() if v},
            "faces": {k: len(v) for k, v in hits.items()},
            "cells_without_face": round(float(np.mean(passing)), 5),
            "area_without_face": round(float(np.mean(empty)), 4),
        }
    return result


def choose(found: dict[str, Any]) -> float:
    """The highest threshold of `alone` at which GOAL of the faces seen at the lowest are seen."""

    def hits(threshold: float) -> float:
        row = found[str(threshold)]
        return float(sum(row["seen"][size] * n for size, n in row["faces"].items() if n))

    least = GOAL * hits(THRESHOLDS[0]) - 0.01  # the shares are rounded
    return max(threshold for threshold in THRESHOLDS if hits(threshold) >= least)


def large_scene(maker: SmallFaces, rng: np.random.Generator) -> Image:
    """1,024 x 1,536: six tiles of different layouts beside each other, lightly degraded."""
    rows = []
    for _ in range(2):
        row = []
        for _ in range(3):
            maker.truths = []
            kind = rng.random()
            make = maker.group if kind < 0.3 else maker.small if kind < 0.8 else maker.backdrop
            row.append(make(SIDE, rng))
        rows.append(np.concatenate(row, axis=1))
    return degrade(np.concatenate(rows), rng, 0.4)


def larger_faces(maker: SmallFaces, rng: np.random.Generator) -> Image:
    """2,048 x 3,072: faces of 40 to 330 px strewn over two backgrounds, lightly degraded."""
    canvas = np.ascontiguousarray(maker.backdrop(2048, rng)[:, :2048])
    canvas = np.concatenate([canvas, maker.backdrop(2048, rng)[:, :1024]], axis=1)
    for _ in range(24):
        x, y = rng.uniform(0, 3072), rng.uniform(0, 2048)
        cut = ("whole", "head", "oval")[int(rng.integers(0, 3))]
        face = log_uniform(rng, 40, 330)
        maker.paste(canvas, maker.random_face(rng), rng, (float(x), float(y)), face, cut)
    return degrade(canvas, rng, 0.4)


def matched(ours: list[Face], theirs: list[Face]) -> np.ndarray:
    """Which of `theirs` have one of `ours` on them."""
    if not ours or not theirs:
        return np.zeros(len(theirs), bool)
    boxes = [np.stack([face.box for face in faces]) for faces in (theirs, ours)]
    return iou(*boxes).max(axis=1) >= 0.5


def moved_search(detector: FaceDetector, rgb: Image, options: DetectOptions) -> list[Face]:
    """What the detector finds in the picture moved by MOVED, in the picture's own coordinates."""
    right, down = MOVED
    moved = cv2.copyMakeBorder(rgb, down, 0, right, 0, cv2.BORDER_REPLICATE)
    back = np.array([right, down])
    return [
        Face(face.box - np.tile(back, 2), face.score, face.landmarks - back)
        for face in detector.detect(moved, options)
    ]


def searches(
    detector: FaceDetector, proposer: Proposer, pictures: dict[str, Image], min_face: float
) -> dict[str, Any]:
    """By size: found everywhere, of these again in the moved picture, of these guided.

    Besides, what only the moved picture's and only the guided search report, and what the guided
    one missed.
    """
    options = DetectOptions(min_face=min_face)
    counts = {f"from {height} px": [0, 0, 0] for height in HEIGHTS}
    extra, missed = [0, 0], []
    for name, picture in pictures.items():
        rgb = np.ascontiguousarray(picture[..., ::-1])
        detector.proposer = None
        full = detector.detect(rgb, options)
        moved = moved_search(detector, rgb, options)
        detector.proposer = proposer
        others = (moved, detector.detect(rgb, options))
        again, guided = (matched(other, full) for other in others)
        extra = [n + int((~matched(full, o)).sum()) for n, o in zip(extra, others, strict=True)]
        print(f"{name}: {len(full)}, {again.sum()} moved, {guided.sum()} guided", file=sys.stderr)
        for face, hits in zip(full, np.stack([again, guided], axis=1), strict=True):
            low = max((h for h in HEIGHTS if h <= face.height), default=HEIGHTS[0])
            entry = counts[f"from {low} px"]
            entry[:] = [n + int(hit) for n, hit in zip(entry, (True, *hits), strict=True)]
            if not hits[1]:
                missed.append([name, *np.round(face.box).tolist(), round(face.score, 2)])
    total = np.sum(list(counts.values()), axis=0).tolist()
    return {
        "everywhere_moved_guided": counts | {"all": total},
        "only_moved_only_guided": extra,
        "missed": missed,
    }


def judged_pictures(maker: SmallFaces, rng: np.random.Generator, args: Any) -> dict[str, Image]:
    """Pictures to search: made-up ones and, where the folder has it, Solvay 1927 in four sizes."""
    pictures = {f"scene {i}": large_scene(maker, rng) for i in range(args.search)}
    pictures |= {f"larger {i}": larger_faces(maker, rng) for i in range(args.larger)}
    solvay = cv2.imread(str(args.data / "photos/Solvay_conference_1927.png"), cv2.IMREAD_COLOR)
    if args.search and solvay is not None:
        for times in (1, 0.75, 0.5, 0.4):
            size = [round(n * times) for n in solvay.shape[1::-1]]
            pictures[f"solvay x {times}"] = cv2.resize(solvay, size, interpolation=cv2.INTER_AREA)
    return pictures


def main() -> None:
    """Read the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--weights", type=Path, required=True, help="the proposer's weights")
    parser.add_argument(
        "--threshold", type=float, help="chosen on scenes of its own where left out"
    )
    parser.add_argument("--scenes", type=int, default=120, help="of 512 px, for it alone")
    parser.add_argument("--search", type=int, default=6, help="of 1.6 megapixels, for the search")
    parser.add_argument("--larger", type=int, default=4, help="of 6 megapixels, for the search")
    parser.add_argument("--portraits", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    paths = list_images(args.data, held_out=True, folders=("portraits",))[: args.portraits]
    portraits = load(paths, load_network(args.data / TEACHER))
    nature = natural_pictures(NATURAL_HELD_OUT)
    weights = FaceProposer()
    weights.load_state_dict(load_file(args.weights))
    net = PreparedProposer(weights.eval())
    result: dict[str, Any] = {"threshold": args.threshold}
    if args.threshold is None:
        rng = np.random.default_rng(CHOOSING)
        maker = SmallFaces(portraits[::2], nature, rng, pool=40)
        found = alone(net, [maker.labelled(SIDE, rng) for _ in range(args.scenes)])
        result |= {"choosing": found, "threshold": choose(found)}
    rng = np.random.default_rng(JUDGING)
    maker = SmallFaces(portraits[1::2], nature, rng, pool=40)
    if args.scenes:
        result["judging"] = alone(net, [maker.labelled(SIDE, rng) for _ in range(args.scenes)])
    pictures = judged_pictures(maker, rng, args)
    if pictures:
        detector = load_detector(BUILTIN_DIR / "builtin-detector.safetensors", "builtin-detector")
        proposer = Proposer(args.weights, result["threshold"])
        result["search"] = searches(detector, proposer, pictures, 12.0)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
