"""Measure a detector against its teacher on portraits it never saw, on Solvay 1927 and more.

    python evaluate.py --data DIR --weights FILE [--threshold T] [--json] [--sweep] [--refinement]

Scenes are composed, seeded, from the held-out portraits alone. Teacher (at 0.8) and student look
at the same scene in the same pyramid. Found: a student's box overlaps the teacher's by half (IoU).
False: a student's face with no teacher's face under it. Landmark error: mean distance of the five
points over the teacher's eye distance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from degrade import Image, degrade
from detect import Faces, Floats, detect, iou, refine
from network import load_network
from portraits import list_images, load
from scenes import SceneMaker
from train import TEACHER

if TYPE_CHECKING:
    from torch import nn

TEACHER_THRESHOLD = 0.8
#: The lowest score at which student's faces are looked at for a sweep of thresholds.
FLOOR = 0.3
SOLVAY = Path("photos/Solvay_conference_1927.png")
#: scikit-image's bundled pictures without a person's face.
FACE_FREE = (
    *("brick", "chelsea", "coffee", "chessboard_RGB", "clock_motion", "color", "gravel", "grass"),
    *("hubble_deep_field", "ihc", "moon", "motorcycle_left", "page", "retina", "rocket", "text"),
)


@dataclass(frozen=True)
class Match:
    """A scene's outcome: which student's face each teacher's face got (-1: none), and the faces."""

    teacher: Faces
    student: Faces
    partner: np.ndarray


def pyramid(image: Image) -> tuple[float, ...]:
    """Native size; twice, where that stays under 2,800 px; half, from 1,000 px on."""
    longest = max(image.shape[:2])
    return (1.0,) + (2.0,) * (longest <= 1400) + (0.5,) * (longest >= 1000)


def match(teacher: Faces, student: Faces, overlap: float = 0.5) -> np.ndarray:
    """One to one, the largest overlap first: the student's index for each teacher's face, or -1."""
    partner = np.full(len(teacher.scores), -1)
    if not len(teacher.scores) or not len(student.scores):
        return partner
    table = iou(teacher.boxes, student.boxes)
    while table.max() >= overlap:
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        partner[row] = column
        table[row], table[:, column] = -1, -1
    return partner


def eye_distance(landmarks: Floats) -> Floats:
    """Distance of the eyes in px, [N, 5, 2] -> [N]."""
    return np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=-1)


def landmark_errors(truth: Floats, found: Floats) -> Floats:
    """Mean point distance over the truth's eye distance, [N, 5, 2] twice -> [N].

    The divisor is at least a quarter of the points' extent: in profile the eyes coincide.
    """
    distance = np.linalg.norm(truth - found, axis=-1).mean(-1)
    extent = np.ptp(truth, axis=1).max(-1)
    return distance / np.maximum(eye_distance(truth), 0.25 * extent)


def make_scenes(data: Path, teacher: nn.Module, count: int, seed: int) -> dict[str, list[Image]]:
    """``count`` degraded and half as many clean mosaics and face-free scenes, 512 to 896 px."""
    rng = np.random.default_rng(seed)
    held_out = load(list_images(data, held_out=True, folders=("portraits",)), teacher)
    maker = SceneMaker(held_out, rng, pool=80)
    sides = (512, 640, 768, 896)
    side = lambda: int(rng.choice(sides))  # noqa: E731
    return {
        "degraded": [maker.scene(side(), rng) for _ in range(count)],
        "mosaic": [degrade(maker.grid(side(), rng), rng, 0.4) for _ in range(count // 2)],
        "face-free": [degrade(maker.scrap(side(), rng), rng) for _ in range(count // 2)],
    }


def compare(teacher: nn.Module, student: nn.Module, scenes: Sequence[Image]) -> list[Match]:
    """Let both networks look at every scene; the student down to FLOOR, matched at FLOOR."""
    done = []
    for scene in scenes:
        scales = pyramid(scene)
        theirs = detect(teacher, scene, TEACHER_THRESHOLD, scales)
        ours = detect(student, scene, FLOOR, scales)
        done.append(Match(theirs, ours, match(theirs, ours)))
    return done


def summarise(matches: Sequence[Match], threshold: float) -> dict[str, float]:
    """Counts and rates of a set of scenes at one threshold of the student."""
    faces = found = ours = 0
    errors: list[float] = []
    for m in matches:
        kept = m.student.scores >= threshold
        hit = m.partner >= 0
        hit[hit] = kept[m.partner[hit]]
        faces, found, ours = faces + len(hit), found + int(hit.sum()), ours + int(kept.sum())
        pair = (m.teacher.landmarks[hit], m.student.landmarks[m.partner[hit]])
        errors += landmark_errors(*pair).tolist() if hit.any() else []
    return {
        "teacher_faces": faces,
        "found": found,
        "found_share": found / max(faces, 1),
        "student_faces": ours,
        "false": ours - found,
        "false_share": (ours - found) / max(ours, 1),
        "landmark_error": float(np.mean(errors)) if errors else float("nan"),
        "landmark_error_median": float(np.median(errors)) if errors else float("nan"),
    }


def photo(teacher: nn.Module, student: nn.Module, image: Image, threshold: float) -> dict[str, Any]:
    """Figures of one photograph: found of the teacher's faces, false ones, landmark errors."""
    result: dict[str, Any] = summarise(compare(teacher, student, [image]), threshold)
    ours = detect(student, image, threshold, pyramid(image))
    theirs = detect(teacher, image, TEACHER_THRESHOLD, pyramid(image))
    partner = match(theirs, ours)
    hit = partner >= 0
    pair = (
        refine(teacher, image, theirs.take(np.flatnonzero(hit))),
        refine(student, image, ours.take(partner[hit])),
    )
    errors = landmark_errors(pair[0].landmarks, pair[1].landmarks) if hit.any() else np.zeros(0)
    result["landmark_error_refined"] = float(errors.mean()) if len(errors) else float("nan")
    result["lowest_found_score"] = float(ours.scores[partner[hit]].min()) if hit.any() else 0.0
    return result


def second_pass(
    teacher: nn.Module,
    student: nn.Module,
    scenes: Sequence[Image],
    matches: Sequence[Match],
    threshold: float,
    size: float,
) -> float:
    """Mean landmark error when both look again at each matched face at ``size`` px."""
    errors: list[float] = []
    for scene, m in zip(scenes, matches, strict=True):
        hit = m.partner >= 0
        hit[hit] = m.student.scores[m.partner[hit]] >= threshold
        if hit.any():
            theirs = refine(teacher, scene, m.teacher.take(np.flatnonzero(hit)), size)
            ours = refine(student, scene, m.student.take(m.partner[hit]), size)
            errors += landmark_errors(theirs.landmarks, ours.landmarks).tolist()
    return float(np.mean(errors)) if errors else float("nan")


def refinement_table(
    data: Path, teacher: nn.Module, net: nn.Module, people: int = 80
) -> dict[str, dict[str, float]]:
    """Landmark error against the teacher's mean over three sizes on the untouched portrait.

    Rows: the face's size in px after scaling the portrait down; columns: one pass, then the second
    pass at several sizes. Unlike the other figures this tells which size is best in itself.
    """
    table: dict[str, dict[str, float]] = {}
    portraits = load(list_images(data, held_out=True, folders=("portraits",)), teacher)
    portraits = [p for p in portraits if p.box is not None and p.face_size > 60][:people]
    for size in (16, 24, 40, 64):
        rows: dict[str, list[float]] = {}
        for portrait in portraits:
            whole = detect(teacher, portrait.image, TEACHER_THRESHOLD).take(np.array([0]))
            truth = np.mean(
                [refine(teacher, portrait.image, whole, s).landmarks for s in (120, 160, 220)], 0
            )
            scale = size / portrait.face_size
            shape = [max(32, round(n * scale)) for n in portrait.image.shape[1::-1]]
            small = cv2.resize(portrait.image, shape, interpolation=cv2.INTER_AREA)
            ratio = np.array(shape) / portrait.image.shape[1::-1]
            found = detect(net, small, 0.3, (1.0, 2.0))
            if not len(found.scores):
                continue
            found = found.take(np.array([0]))
            goal = ((truth + 0.5) * ratio - 0.5).astype(np.float32)
            rows.setdefault("one pass", []).append(landmark_errors(goal, found.landmarks)[0])
            for again in (48, 64, 80, 112, 160, 200):
                points = refine(net, small, found, again).landmarks
                rows.setdefault(f"at {again}", []).append(landmark_errors(goal, points)[0])
        table[f"{size} px"] = {k: float(np.median(v)) for k, v in rows.items()}
    return table


def face_free_photos(net: nn.Module, threshold: float) -> dict[str, int]:
    """Faces reported in each of scikit-image's bundled pictures that show no person's."""
    import skimage

    folder, counts = Path(skimage.__file__).parent / "data", {}
    for name in FACE_FREE:
        files = sorted(folder.glob(f"{name}.*"))
        image = cv2.imread(str(files[0]), cv2.IMREAD_COLOR) if files else None
        if image is not None:
            counts[name] = len(detect(net, image, threshold, pyramid(image)).scores)
    return counts


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as printed and as given by ``--json``."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    teacher = load_network(args.data / TEACHER)
    student = load_network(args.weights)
    sets = make_scenes(args.data, teacher, args.scenes, args.seed)
    matches = {name: compare(teacher, student, scenes) for name, scenes in sets.items()}
    everything = [m for part in matches.values() for m in part]
    result: dict[str, Any] = {"threshold": args.threshold, "seed": args.seed}
    result |= {"date": date.today().isoformat(), "refine_size": args.refine_size}
    result["scenes"] = args.scenes
    result["all"] = summarise(everything, args.threshold)
    scenes = [scene for part in sets.values() for scene in part]
    if not args.quick:
        result["all"]["landmark_error_refined"] = second_pass(
            teacher, student, scenes, everything, args.threshold, args.refine_size
        )
    for name, part in matches.items():
        result[name] = summarise(part, args.threshold)
    if args.sweep:
        steps = np.arange(0.4, 0.96, 0.05).round(2).tolist()
        result["sweep"] = {str(t): summarise(everything, t) for t in steps}
    solvay = cv2.imread(str(args.data / SOLVAY), cv2.IMREAD_COLOR)
    if solvay is None:
        raise FileNotFoundError(f"no {SOLVAY} under {args.data}: give the data folder with --data")
    result["solvay"] = photo(teacher, student, solvay, args.threshold)
    from skimage.data import astronaut

    result["astronaut"] = photo(
        teacher, student, np.ascontiguousarray(astronaut()[..., ::-1]), args.threshold
    )
    result["face_free_photos"] = {
        "student": face_free_photos(student, args.threshold),
        "teacher": face_free_photos(teacher, TEACHER_THRESHOLD),
    }
    if args.refinement:
        result["refinement"] = refinement_table(args.data, teacher, student)
    return result


def without_nan(value: Any) -> Any:
    """Figures with None where there was nothing to average, as JSON knows no NaN."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def print_table(result: dict[str, Any]) -> None:
    """The figures as plain text."""
    print(f"threshold {result['threshold']}, seed {result['seed']}")
    print(f"{'set':12}{'teacher':>9}{'found':>8}{'share':>8}{'false':>7}{'share':>8}{'points':>9}")
    rows = {k: v for k, v in result.items() if isinstance(v, dict) and "found_share" in v}
    for name, r in rows.items():
        print(
            f"{name:12}{r['teacher_faces']:9}{r['found']:8}{r['found_share']:8.1%}{r['false']:7}"
            f"{r['false_share']:8.1%}{r['landmark_error']:9.2%}"
            + (
                f"  refined {r['landmark_error_refined']:.2%}"
                if "landmark_error_refined" in r
                else ""
            )
        )
    for threshold, r in result.get("sweep", {}).items():
        print(f"at {threshold}: found {r['found_share']:.2%}, false {r['false_share']:.2%}")
    for name, counts in result["face_free_photos"].items():
        shown = {k: v for k, v in counts.items() if v}
        print(f"false faces in {len(counts)} face-free photographs, {name}: {shown or 0}")
    for row, columns in result.get("refinement", {}).items():
        print(f"face {row}: " + ", ".join(f"{k} {v:.1%}" for k, v in columns.items()))


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--weights", type=Path, required=True, help="the student's weights")
    parser.add_argument("--threshold", type=float, default=0.8, help="the student's, 0.3..1")
    parser.add_argument(
        "--scenes", type=int, default=120, help="degraded scenes; half of the others"
    )
    parser.add_argument("--seed", type=int, default=1927)
    parser.add_argument("--refine-size", type=float, default=160, help="face px of the second pass")
    parser.add_argument("--sweep", action="store_true", help="also the rates at other thresholds")
    parser.add_argument("--refinement", action="store_true", help="also compare second-pass sizes")
    parser.add_argument("--quick", action="store_true", help="leave the second pass out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    result = evaluate(args)
    if args.json:
        print(json.dumps(without_nan(result), indent=1, allow_nan=False))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
