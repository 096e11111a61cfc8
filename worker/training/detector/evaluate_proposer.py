"""Measure the proposer: alone, and what a search guided by it finds of what a full one finds.

    python evaluate_proposer.py --data DIR --weights FILE [--threshold T] [--scenes N] [--search N]

Scenes show only persons and photographs kept from the training. "Seen": a cell passes so close to
a face that the search about it holds the face. "Area": the share of the finest level that is then
searched. "Search": the shipped detector looks at large pictures with and without the proposer; a
face counts as found where the boxes overlap by half (IoU).
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
from face_restore_worker.pipeline.packing import area, cover
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
from train import TEACHER
from train_proposer import to_input

BINS = (10, 12, 14, 18, 24, 36, 48, 72)
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SIDE = 512


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
    return area(cover(np.concatenate(boxes), (0, 0, side, side))) / side**2


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


def matched(ours: list[Face], theirs: list[Face]) -> np.ndarray:
    """Which of `theirs` have one of `ours` on them."""
    if not ours or not theirs:
        return np.zeros(len(theirs), bool)
    boxes = [np.stack([face.box for face in faces]) for faces in (theirs, ours)]
    return iou(*boxes).max(axis=1) >= 0.5


def searches(
    detector: FaceDetector, proposer: Proposer, pictures: dict[str, Image], min_face: float
) -> dict[str, Any]:
    """Found by size, guided against full; and what only the guided search reports."""
    options = DetectOptions(min_face=min_face)
    counts: dict[str, list[int]] = {}
    extra = total = 0
    missed = []
    for name, picture in pictures.items():
        rgb = np.ascontiguousarray(picture[..., ::-1])
        detector.proposer = None
        full = detector.detect(rgb, options)
        detector.proposer = proposer
        guided = detector.detect(rgb, options)
        hit = matched(guided, full)
        extra += int((~matched(full, guided)).sum())
        total += len(guided)
        print(f"{name}: {len(full)} full, {int(hit.sum())} of them guided", file=sys.stderr)
        for face, found in zip(full, hit, strict=True):
            low = max((b for b in (12, 14, 18, 24, 36, 60, 100) if b <= face.height), default=12)
            entry = counts.setdefault(f"from {low} px", [0, 0])
            entry[0] += 1
            entry[1] += int(found)
            if not found:
                missed.append([name, *np.round(face.box).tolist(), round(face.score, 2)])
    return {"full_and_guided": counts, "guided": total, "only_guided": extra, "missed": missed}


def main() -> None:
    """Read the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--weights", type=Path, required=True, help="the proposer's weights")
    parser.add_argument("--threshold", type=float, default=0.4)
    parser.add_argument("--scenes", type=int, default=120, help="of 512 px, for it alone")
    parser.add_argument("--search", type=int, default=6, help="of 1.6 megapixels, for the search")
    parser.add_argument("--portraits", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1928)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(args.seed)
    paths = list_images(args.data, held_out=True, folders=("portraits",))[: args.portraits]
    portraits = load(paths, load_network(args.data / TEACHER))
    maker = SmallFaces(portraits, natural_pictures(NATURAL_HELD_OUT), rng, pool=40)
    net = FaceProposer()
    net.load_state_dict(load_file(args.weights))
    result: dict[str, Any] = {"threshold": args.threshold, "seed": args.seed}
    if args.scenes:
        scenes = [maker.labelled(SIDE, rng) for _ in range(args.scenes)]
        result["alone"] = alone(PreparedProposer(net.eval()), scenes)
    pictures = {f"scene {i}": large_scene(maker, rng) for i in range(args.search)}
    solvay = cv2.imread(str(args.data / "photos/Solvay_conference_1927.png"), cv2.IMREAD_COLOR)
    if args.search and solvay is not None:
        for times in (1, 0.75, 0.5, 0.4):
            size = [round(n * times) for n in solvay.shape[1::-1]]
            pictures[f"solvay x {times}"] = cv2.resize(solvay, size, interpolation=cv2.INTER_AREA)
    if pictures:
        detector = load_detector(BUILTIN_DIR / "builtin-detector.safetensors", "builtin-detector")
        result["search"] = searches(
            detector, Proposer(args.weights, args.threshold), pictures, 12.0
        )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
