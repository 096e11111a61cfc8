"""Put trained weights where the worker finds them, with their card.

    python evaluate.py --data DIR --weights FILE --json >figures.json
    python card.py --weights FILE --figures figures.json --out .../models/builtin

Writes ``builtin-detector.safetensors``, ``.json`` and ``.md``; every figure comes from the file
that evaluate.py printed, none is typed in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

NAME = "builtin-detector"
#: The stored file's limit in bytes.
LIMIT = 2_000_000
_TEXT = """# Built-in face detector

{name}.safetensors ({bytes:,} bytes, float32) is a RetinaFace with the MobileNet-0.25 backbone. Its
keys are those of facexlib's `RetinaFace('mobile0.25')`; input BGR 0..255 less (104, 117, 123).
Recommended threshold: {threshold}.

## Training

Trained by this project from random weights, by `worker/training/detector/train.py`, as the student
of another RetinaFace MobileNet-0.25 (sglee487/Pytorch_Retinaface, MIT licence), whose outputs and
features it imitates on scenes composed from portraits; no weight was copied. The portraits:
members of the U.S. Congress, 1789-2025, from voteview/member_photos (by its account largely
public-domain and government sources), one person in ten held out. No other picture was used.
Degradations and face-free backgrounds: `degrade.py`, `backgrounds.py`, `scenes.py` there.

Licence of the weights: MIT, as the project's.

## Figures

Measured on {date} by

    evaluate.py --data DIR --weights {name}.safetensors --threshold {threshold} \\
        --scenes {scenes} --seed {seed}

against the teacher at 0.8, on the same scenes in the same pyramid. The scenes show only persons
who were not trained on. "False" are the student's faces where the teacher reports
none. Landmark error: mean distance of the five points over the teacher's eye distance; "second
pass" looks at each face again at {refine_size:g} px.

| scenes | teacher's faces | found | false | landmark error | second pass |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}

False faces in {pictures} of scikit-image's that show none: {free} (teacher: {free_teacher}).

Required were: 97 % found, 3 % false, landmarks within 6 %, 27 of the 29 faces of the Solvay
conference's photograph of 1927 with at most one false, and the astronaut's.
{verdict}

## Limits

* Mostly men, mostly white, formally dressed, frontal or nearly so: women, children, darker skin,
  headgear, profiles and strong expressions were rarely or never seen in training. What the teacher
  misses or takes for a face, this student tends to miss or take for one as well.
* Faces below some 12 px, upside down or turned by more than 45 degrees are not looked for; those
  of 12 and 13 px are, but rarely seen.
* Scenes were composed: few real photographs were measured, and no public benchmark.
"""


def row(name: str, figures: dict[str, Any]) -> str:
    """One line of the card's table."""
    first, again = figures["landmark_error"], figures.get("landmark_error_refined")
    shown = ["" if value is None else f"{value:.1%}" for value in (first, again)]
    return (
        f"| {name} | {figures['teacher_faces']} "
        f"| {figures['found']} ({figures['found_share']:.1%}) "
        f"| {figures['false']} ({figures['false_share']:.1%}) | {shown[0]} | {shown[1]} |"
    )


def verdict(figures: dict[str, Any]) -> str:
    """Which of the requirements the figures miss, in words."""
    every, solvay = figures["all"], figures["solvay"]
    points = min(every["landmark_error"], every["landmark_error_refined"])
    checks = {
        "faces found": every["found_share"] >= 0.97,
        "false faces": every["false_share"] <= 0.03,
        "landmarks": points <= 0.06,
        "the Solvay photograph": solvay["found"] >= 27 and solvay["false"] <= 1,
        "the astronaut": figures["astronaut"]["found"] == 1,
    }
    missed = [name for name, met in checks.items() if not met]
    return "All are met." if not missed else f"Not met: {', '.join(missed)}."


def publish(weights: Path, figures: dict[str, Any], out: Path) -> None:
    """Copy the weights and write both cards; raises ValueError if the file is too large."""
    data = weights.read_bytes()
    if len(data) > LIMIT:
        raise ValueError(f"{weights} has {len(data):,} bytes; the limit is {LIMIT:,}")
    shutil.copyfile(weights, out / f"{NAME}.safetensors")
    card = {
        "name": NAME,
        "file": f"{NAME}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "architecture": "RetinaFace mobile0.25 (facexlib)",
        "threshold": figures["threshold"],
        "figures": figures,
    }
    (out / f"{NAME}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    sets = ("all", "degraded", "mosaic", "face-free", "solvay", "astronaut")
    free = figures["face_free_photos"]
    text = _TEXT.format(
        **{k: card[k] for k in ("name", "bytes", "threshold")},
        **{k: figures[k] for k in ("date", "seed", "scenes", "refine_size")},
        rows="\n".join(row(name, figures[name]) for name in sets),
        free=sum(free["student"].values()),
        free_teacher=sum(free["teacher"].values()),
        pictures=f"{len(free['student'])} pictures",
        verdict=verdict(figures),
    )
    (out / f"{NAME}.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Read the command line and publish."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True, help="from evaluate.py --json")
    parser.add_argument("--out", type=Path, required=True, help="the worker's models/builtin")
    args = parser.parse_args()
    publish(args.weights, json.loads(args.figures.read_text(encoding="utf-8")), args.out)


if __name__ == "__main__":
    main()
