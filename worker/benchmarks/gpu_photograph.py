"""For gpen_cuda.py: faces found in a photograph on the device, and whole jobs."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_network import Clock, architecture_of, torch_type

ROUNDS_BEFORE = 2


def detection(args: argparse.Namespace) -> dict[str, Any]:
    """The built-in detector on a photograph: seconds, by stage too, and what the processor finds.

    wall: seconds of a search. device: seconds of the device's work in it, by events. stages: of
    which the photograph's way there, its levels, the proposer, the first look. differences: to the
    processor's finds, the most in pixels; faces: found by both.
    """
    from face_restore_worker.bench.scenes import scene
    from face_restore_worker.models.store import BUILTIN_DIR
    from face_restore_worker.pipeline.detect import load_detector

    picture, _ = scene(args.megapixels, args.faces)
    path, name = BUILTIN_DIR / "builtin-detector.safetensors", "builtin-detector"
    clock = Clock(args.device)
    found = on_device(path, name, args.device)
    usual = load_detector(path, name)
    for _ in range(ROUNDS_BEFORE):
        faces = found.detect(picture)
    walls = [clock.wall(lambda: found.detect(picture)) for _ in range(args.rounds)]
    events = [clock.seconds(lambda: found.detect(picture)) for _ in range(args.rounds)]
    whole = found.proposer
    found.proposer = None
    full_faces = found.detect(picture)
    full = [clock.wall(lambda: found.detect(picture)) for _ in range(max(1, args.rounds // 5))]
    found.proposer = whole
    return {
        "megapixels": picture.shape[0] * picture.shape[1] / 1e6,
        "precision": found.precision,
        "wall": walls,
        "device": events,
        "everywhere": full,
        "stages": stages(found, picture, args),
        "recorded": all(
            part.network.recorded for part in (found.sheets, found.crops, found.proposer)
        ),
        "notes": list(found.notes),
        "faces": [len(faces), len(full_faces), len(usual.detect(picture))],
        "differences": [
            distance(faces, usual.detect(picture)),
            distance(full_faces, usual.detect(picture)),
        ],
    }


def on_device(path: Path, name: str, device: str) -> Any:
    """The device's detector, also on a processor, where there is nothing to gain from it."""
    from face_restore_worker.models.store import BUILTIN_DIR
    from face_restore_worker.pipeline import detect
    from face_restore_worker.pipeline.facexlib_nets import load_retinaface
    from face_restore_worker.pipeline.gpu_detect import DeviceDetector

    if device.startswith("cuda"):
        found = detect.load_detector(path, name, device=device)
        assert isinstance(found, DeviceDetector), found.notes
        return found
    profile = detect.PROFILES[name]
    return DeviceDetector(
        load_retinaface(path),
        device,
        precision="fp32",
        batches=detect.SHEETS[profile.variant],
        proposer=(BUILTIN_DIR / detect.PROPOSER_FILE, detect.PROPOSER_THRESHOLD),
        usual=lambda: detect.load_detector(path, name),
        threshold_default=profile.threshold,
        confirm=profile.confirm,
        budget=profile.budgets[1],
    )


def stages(found: Any, picture: Any, args: argparse.Namespace) -> dict[str, float]:
    """Medians of the search's parts one after the other, each until the device has done it."""
    import torch
    from face_restore_worker.network.cuda.context import exact
    from face_restore_worker.pipeline import gpu_pyramid
    from face_restore_worker.pipeline.gpu_bus import Bus
    from face_restore_worker.pipeline.pyramid import Picture

    clock = Clock(args.device)
    bus = Bus(torch.device(args.device))
    kept: dict[str, Any] = {}

    def upload() -> None:
        kept["photo"] = gpu_pyramid.upload(Picture(picture), bus)

    def levels() -> None:
        kept["levels"] = gpu_pyramid.build_levels(kept["photo"], 1)

    def propose() -> None:
        for level in kept["levels"][:2]:
            found.proposer.places(level, (0, 0, level.width, level.height))

    def network() -> None:
        found.sheets.network.run(found.sheets.shapes[0])

    parts = {"upload": upload, "levels": levels, "proposer": propose, "one sheet": network}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    with torch.inference_mode(), exact(torch.device(args.device)):
        for _ in range(args.rounds + 1):
            for name, part in parts.items():
                seconds[name].append(clock.wall(part))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def distance(found: list[Any], wanted: list[Any]) -> float | None:
    """The most that landmarks are apart, in pixels; None where other faces were found."""
    import numpy as np

    if len(found) != len(wanted):
        return None
    pairs = zip(*(sorted(faces, key=lambda f: f.centre) for faces in (found, wanted)), strict=True)
    return max((float(np.abs(a.landmarks - b.landmarks).max()) for a, b in pairs), default=0.0)


def whole(args: argparse.Namespace) -> dict[str, Any]:
    """Find and restore the faces of a photograph in this process; what memory that took.

    photograph: bytes reserved on a GPU. patches: faces restored. notes: to the user.
    """
    import tempfile

    import torch
    from face_restore_worker import Restorer
    from face_restore_worker.bench.scenes import scene

    picture, faces = scene(args.megapixels, args.faces)
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(args.size, Path(folder))
        restorer = Restorer(weights, device=args.device, precision=args.precision)
        found = restorer.detect(picture)
        outcome = restorer.restore(picture, found or faces)
    row: dict[str, Any] = {"patches": len(outcome.patches), "notes": outcome.notes}
    if args.device.startswith("cuda"):
        row["photograph"] = torch.cuda.max_memory_reserved()
    return row


def random_weights(size: int, folder: Path) -> Path:
    """A checkpoint of a size with random weights."""
    from face_restore_worker.bench.weights import random_state
    from face_restore_worker.checkpoints.gpen import write_gpen_safetensors

    path = folder / f"gpen-{size}.safetensors"
    write_gpen_safetensors(random_state(architecture_of(size)), path)
    return path


def job(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A photograph from file to file through a worker on the device: what `bench` reports."""
    weights = random_weights(args.size, folder)
    command = [
        sys.executable, "-m", "face_restore_worker.cli", "bench", "--part", "job,start",
        "--model", str(weights), "--device", args.device, "--megapixels", f"{args.megapixels:g}",
        "--faces", str(args.faces), "--rounds", str(max(1, args.rounds // 3)), "--json", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    report = json.loads(done.stdout)
    return {"worker": report["start"]["worker"], **report["job"]["photographs"][0]}


def calculated(precision: str) -> dict[str, dict[str, float]]:
    """Work of the networks by going through their code: GFLOP, GB moved, MB at once."""
    from face_restore_worker.models.store import BUILTIN_DIR
    from face_restore_worker.network.cuda.memory import META, work_of
    from face_restore_worker.network.proposer import FaceProposer
    from face_restore_worker.network.proposer_cuda import ProposerCuda
    from face_restore_worker.network.retinaface_cuda import RetinaFaceCuda
    from face_restore_worker.pipeline.facexlib_nets import load_retinaface
    from face_restore_worker.pipeline.gpu_propose import BATCHES, SIDE
    from face_restore_worker.pipeline.search import TILE

    dtype = torch_type(precision)
    detector = load_retinaface(BUILTIN_DIR / "builtin-detector.safetensors")
    network = RetinaFaceCuda(detector, dtype, META, [(1, TILE), (4, TILE)])
    proposer = ProposerCuda(FaceProposer(), dtype, META, SIDE, BATCHES)
    found = {
        f"detector, {count} x {side} x {side}": work_of(lambda: network.run((count, side)))  # noqa: B023
        for count, side in network.shapes
    }
    for count in BATCHES:
        work = work_of(lambda: proposer.run(count))  # noqa: B023
        found[f"proposer, {count} x {SIDE} x {SIDE}"] = work
    return {
        name: {"gflop": work.flop / 1e9, "gb": work.moved / 1e9, "peak_mb": work.peak / 1e6}
        for name, work in found.items()
    }
