"""Judge a local restorer on face crops it was not trained on.

    python worker/training/restorer/evaluate.py --data DIR --weights FILE [--json FILE]

Three settings, each with the same held-out crops:

* ``512``: the 256-pixel face enlarged to 512 pixels, degraded there (the network's working size);
* ``small``: the face degraded at its own scale, picture and reference then enlarged to 512 (a
  small face in a photograph);
* ``native``: the whole crop at its own scale.

For each: the mean gain in PSNR and SSIM over the degraded input, the same for OpenCV's classical
filters with the parameters that do best on windows of a part of these pictures (tuned on data they
are judged on, the network is not), the PSNR kept on clean crops, and how far gray input stays
gray.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from degradations import FIRST, Float, degrade
from losses import psnr, ssim
from safetensors.torch import load_file
from sources import NATIVE_FIRST, load_faces
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from face_restore_worker.network.local_restorer import (
    LocalRestorer,
    count_flop,
)

Pair = tuple[Float, Float]
Filter = Callable[[Float], Float]

SETTINGS = ("512", "small", "native")


def make_pairs(faces: list[Any], setting: str, seed: int, repeats: int) -> list[Pair]:
    """Degraded and clean crops of one setting, (H, W, 3) float32 RGB in [0, 1]."""
    pairs = []
    for index, repeat in itertools.product(range(len(faces)), range(repeats)):
        rng = np.random.default_rng((seed, SETTINGS.index(setting), index, repeat))
        native = faces[index].astype(np.float32) / np.float32(255)
        gray = bool(np.ptp(faces[index].astype(int), axis=2).max() <= 2)
        height, width = native.shape[:2]
        top, left = (height - 256) // 2, (width - 256) // 2
        face = native[top : top + 256, left : left + 256]
        if setting == "512":
            clean = _enlarge(face)
            degraded = degrade(rng, clean, FIRST, gray=gray)
        elif setting == "small":
            clean, degraded = _enlarge(face), _enlarge(degrade(rng, face, NATIVE_FIRST, gray=gray))
        else:
            clean, degraded = native, degrade(rng, native, NATIVE_FIRST, gray=gray)
        pairs.append((degraded, clean))
    return pairs


def gain(pairs: list[Pair], restore: Filter) -> dict[str, float]:
    """Mean gains in PSNR (dB) and SSIM of ``restore`` over the degraded crops."""
    rises = []
    for degraded, clean in pairs:
        before, after = _score(degraded, clean), _score(restore(degraded), clean)
        rises.append((after[0] - before[0], after[1] - before[1]))
    mean = np.mean(rises, axis=0)
    return {"psnr": float(mean[0]), "ssim": float(mean[1])}


def classical_filters() -> dict[str, list[Filter]]:
    """OpenCV's filters, each with a grid of parameters."""
    nlm: list[Filter] = [partial(_nlm, h=h, h_colour=c) for h in (3, 6, 10, 15) for c in (5, 15)]
    bilateral: list[Filter] = [
        partial(_bilateral, colour=c, space=s) for c in (10, 20, 35, 60, 90) for s in (2, 4, 8)
    ]
    unsharp: list[Filter] = [
        partial(_unsharp, amount=a, sigma=s) for a in (0.1, 0.3, 0.7) for s in (1, 2, 4)
    ]
    return {"fastNlMeansDenoisingColored": nlm, "bilateral": bilateral, "unsharp masking": unsharp}


def judge_filters(pairs: list[Pair], tuning: int) -> dict[str, dict[str, Any]]:
    """Tune every filter on up to ``tuning`` of the pairs (by PSNR), then judge it on all."""
    step = max(1, len(pairs) // tuning)
    subset = [(_window(d), _window(c)) for d, c in pairs[::step]]
    results: dict[str, dict[str, Any]] = {}
    for name, candidates in classical_filters().items():
        best = max(candidates, key=lambda candidate: gain(subset, candidate)["psnr"])
        settings = best.keywords if isinstance(best, partial) else {}
        results[name] = {**gain(pairs, best), "parameters": settings}
    return results


def network_filter(network: LocalRestorer, precision: torch.dtype) -> Filter:
    """Wrap the network as a function of (H, W, 3) float32 RGB in [0, 1]."""
    network = network.to(precision, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def restore(picture: Float) -> Float:
        with torch.no_grad():
            output = network((_tensor(picture) * 2 - 1).to(precision)).float()
        restored: Float = ((output[0] * 0.5 + 0.5).clamp(0, 1)).permute(1, 2, 0).numpy()
        return restored

    return restore


def clean_figures(pairs: list[Pair], restore: Filter) -> dict[str, float]:
    """PSNR of clean crops after the network: mean, fifth percentile; 8-bit output as saved."""
    kept = [_score(_rounded(restore(clean)), clean)[0] for _, clean in pairs]
    return {"mean": float(np.mean(kept)), "p5": float(np.percentile(kept, 5))}


def gray_figures(pairs: list[Pair], restore: Filter) -> dict[str, float]:
    """Spread between channels for gray input, in 8-bit levels: mean and largest."""
    spreads = []
    for degraded, _ in pairs:
        gray = cv2.cvtColor(degraded, cv2.COLOR_RGB2GRAY)
        spreads.append(np.ptp(restore(np.repeat(gray[..., None], 3, axis=2)), axis=2) * 255)
    return {
        "mean": float(np.mean([s.mean() for s in spreads])),
        "max": float(np.max([s.max() for s in spreads])),
    }


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; see the module's text."""
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    network = LocalRestorer.from_state_dict(load_file(options.weights))
    flop = count_flop(network, 512, 512)
    restore = network_filter(network, getattr(torch, options.precision))
    faces = load_faces(options.data, held_out=True)[: options.limit]
    figures: dict[str, Any] = {
        "crops": len(faces),
        "repeats": options.repeats,
        "seed": options.seed,
        "precision": options.precision,
        "gflop": round(flop / 1e9, 2),
        "parameters": sum(p.numel() for p in network.parameters()),
        "bytes": options.weights.stat().st_size,
        "sha256": hashlib.sha256(options.weights.read_bytes()).hexdigest(),
    }
    for setting in SETTINGS:
        pairs = make_pairs(faces, setting, options.seed, options.repeats)
        entry: dict[str, Any] = {"gain": gain(pairs, restore)}
        scores = np.mean([_score(d, c) for d, c in pairs], axis=0)
        entry["input"] = {"psnr": float(scores[0]), "ssim": float(scores[1])}
        one_each = pairs[:: options.repeats]
        entry["clean_psnr"] = clean_figures(one_each, restore)
        entry["gray_spread"] = gray_figures(one_each[::4], restore)
        if not options.no_filters:
            known = _known_filters(options.filters_from, figures, setting)
            entry["filters"] = known or judge_filters(pairs, options.tuning)
            best = max(f["psnr"] for f in entry["filters"].values())
            entry["gain_over_best_filter"] = entry["gain"]["psnr"] - best
        figures[setting] = entry
    return figures


def _known_filters(
    report: Path | None, figures: dict[str, Any], setting: str
) -> dict[str, dict[str, Any]] | None:
    """The filters' figures of an earlier report: they depend on the pictures only.

    Raises:
        ValueError: the report is about other pictures.
    """
    if report is None:
        return None
    earlier: dict[str, Any] = json.loads(report.read_text())
    if any(earlier[key] != figures[key] for key in ("crops", "repeats", "seed")):
        raise ValueError(
            f"{report} was made with other --limit, --repeats or --seed; leave --filters-from out"
        )
    filters: dict[str, dict[str, Any]] = earlier[setting]["filters"]
    return filters


def print_table(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    print(f"{figures['crops']} held-out crops x {figures['repeats']} degradations, "
          f"{figures['precision']}; {figures['gflop']} GFLOP at 512, "
          f"{figures['parameters']} parameters, {figures['bytes']} bytes")  # fmt: skip
    print(f"{'setting':10}{'method':30}{'dB':>8}{'SSIM':>9}")
    for setting in SETTINGS:
        entry = figures[setting]
        source, rise, clean = entry["input"], entry["gain"], entry["clean_psnr"]
        print(f"{setting:10}{'degraded input (absolute)':30}"
              f"{source['psnr']:8.2f}{source['ssim']:9.3f}")  # fmt: skip
        print(f"{'':10}{'gain, network':30}{rise['psnr']:+8.2f}{rise['ssim']:+9.3f}")
        for name, result in entry.get("filters", {}).items():
            print(f"{'':10}{'gain, ' + name:30}{result['psnr']:+8.2f}{result['ssim']:+9.3f}"
                  f"   {result['parameters']}")  # fmt: skip
        spread = entry["gray_spread"]
        print(f"{'':10}{'clean crops kept at':30}{clean['mean']:8.2f}   (p5 {clean['p5']:.2f})")
        print(f"{'':10}{'gray stays gray within':30}{spread['mean']:8.2f} levels on average, "
              f"{spread['max']:.1f} at most")  # fmt: skip


def _enlarge(picture: Float) -> Float:
    larger = cv2.resize(picture, (512, 512), interpolation=cv2.INTER_CUBIC)
    return _rounded(np.clip(larger, 0, 1))


def _rounded(picture: Float) -> Float:
    levels: Float = np.round(picture * 255).astype(np.float32) / np.float32(255)
    return levels


def _window(picture: Float, size: int = 192) -> Float:
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def _tensor(picture: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]


def _score(picture: Float, clean: Float) -> tuple[float, float]:
    first, second = _tensor(picture.astype(np.float32)), _tensor(clean)
    return float(psnr(first, second)), float(ssim(first, second))


def _bytes(picture: Float) -> Any:
    return np.round(picture * 255).astype(np.uint8)


def _nlm(picture: Float, h: float, h_colour: float) -> Float:
    filtered = cv2.fastNlMeansDenoisingColored(_bytes(picture), None, h, h_colour, 7, 21)
    return np.asarray(filtered, np.float32) / np.float32(255)


def _bilateral(picture: Float, colour: float, space: float) -> Float:
    filtered = cv2.bilateralFilter(_bytes(picture), 9, colour, space)
    return np.asarray(filtered, np.float32) / np.float32(255)


def _unsharp(picture: Float, amount: float, sigma: float) -> Float:
    soft = cv2.GaussianBlur(picture, (0, 0), sigma)
    return np.clip(picture + amount * (picture - soft), 0, 1)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Judge a local restorer on held-out faces.")
    parser.add_argument("--data", type=Path, required=True, help="folder of aligned crops (*.jpg)")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--repeats", type=int, default=1, help="degradations per crop")
    parser.add_argument("--limit", type=int, help="use only so many crops")
    parser.add_argument("--tuning", type=int, default=24, help="crops to tune the filters on")
    parser.add_argument("--no-filters", action="store_true", help="leave the filters out")
    parser.add_argument("--filters-from", type=Path, help="earlier --json with their figures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args(argv)
    figures = evaluate(options)
    print_table(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
