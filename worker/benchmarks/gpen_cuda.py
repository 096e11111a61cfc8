"""Measure this project on a GPU: one command, one report.

    python worker/benchmarks/gpen_cuda.py [--size 2048] [--precision fp16] [--rounds 15]
        [--peers eager,reference,compile,onnxruntime,onnxruntime-tidy,onnxruntime-fp16]
        [--limit-gb 4] [--megapixels 24] [--faces 1] [--parts golden,network,processes,...] [--json]

* golden: the golden vectors in tests/golden must come out right, in every precision;
* network: one face beside peers (eager and torch.compile(max-autotune) in --precision), CUDA events
  around calls whose input and output lie on the GPU, taking turns in one process;
* processes: load, first face and memory, of a process of its own for each precision, and of one
  photograph in it; also with what PyTorch may allocate limited to --limit-gb;
* detection: a photograph, by events and on the wall, by stage, and against the processor's finds;
* job: the photograph from file to file through a worker, and how that starts;
* calculated: the networks' work, by going through their code.

Random weights (their values do not change the time); medians are what to compare. --device cpu is a
dry run at --size 64: everything but graphs, kernels and the GPU's memory runs, to be tried where
there is no GPU; its times mean nothing.
Exit status: 0; 1 where a result is wrong or a part failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_network as network
import gpu_photograph as photograph

#: Levels of 255 that 16 bits may differ from fp32, for a picture of network.DEVIATION: on average,
#: and at the 99.9th percentile.
LEVELS = (0.2, 1.0)
PARTS = ("golden", "network", "processes", "detection", "job", "calculated")
NO_GPU = (
    "This benchmark needs a GPU that PyTorch can use (CUDA or ROCm), and there is none: install a "
    "CUDA build of PyTorch, or see worker/benchmarks/gpen_cpu.py for the processor."
)
#: On an H200: a face of GPEN-BFR-2048 in 16 bits, its memory, against eager, detection in 24 MP.
TARGETS = {"network ms": 3.0, "network GB": 2.5, "times eager": 5.0, "detection ms": 25.0}


def wrong(report: dict[str, Any]) -> list[str]:
    """What is out of bounds or failed, in sentences."""
    found = [f"{part}: {why}" for part, why in report.get("failed", {}).items()]
    for precision, cases in report.get("golden", {}).items():
        for name, row in cases.items():
            bound = network.GOLDEN_BOUND[precision]
            found += out_of_bounds(f"golden {name} in {precision}", bound, row)
    for row in report.get("network", []):
        if row["name"].startswith("GpenCuda"):
            if "failed" in row:
                found.append(f"{row['name']}: {row['failed']}")
            else:
                found += out_of_bounds(row["name"], network.BOUND[report["precision"]], row)
    found += [
        f"{row['precision']}, {row['state']}: {row['failed']}"
        for row in report.get("processes", [])
        if "failed" in row
    ]
    detection = report.get("detection")
    if detection and not all(off is not None and off < 3 for off in detection["differences"]):
        found.append(f"detection: {detection['faces']} faces, {detection['differences']} px apart")
    if "failed" in report.get("job", {}):
        found.append(f"job: {report['job']['failed']}")
    return found


def out_of_bounds(name: str, bound: float, row: dict[str, float]) -> list[str]:
    """What is wrong with one result's differences."""
    found = []
    if not row["error"] <= bound:
        found.append(f"{name}: relative error {row['error']:.2g}, more than {bound:.2g}")
    mean, most = row["levels_mean"], row["levels_999"]
    if not (mean <= LEVELS[0] and most <= LEVELS[1]):
        found.append(f"{name}: {mean:.2f} levels off on average, {most:.2f} at 99.9 %")
    return found


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"GPEN {report['size']} on {report['device']}, torch {report['torch']}"]
    if "network" in report:
        lines += ["", *network_table(report["network"])]
    if "processes" in report:
        lines += ["", *process_table(report["processes"])]
    if "detection" in report:
        lines += ["", *detection_lines(report["detection"])]
    if "job" in report and "failed" not in report["job"]:
        job = report["job"]
        shown = ", ".join(f"{name} {1000 * value:.0f}" for name, value in job["stages"].items())
        lines += ["", f"Job: {1000 * job['total']:.0f} ms ({shown})"]
        lines.append(f"Worker: loaded after {job['worker']['loaded']:.2f} s")
    for precision, cases in report.get("golden", {}).items():
        shown = ", ".join(
            f"{name} {row['error']:.1e} ({row['levels_mean']:.2f}, {row['levels_999']:.2f} levels)"
            for name, row in cases.items()
        )
        lines += ["", f"Golden vectors, {precision}: {shown}"]
    for name, row in report.get("calculated", {}).items():
        shown = ", ".join(f"{value:.2f} {unit}" for unit, value in row.items())
        lines.append(f"Calculated, {name}: {shown}")
    lines += ["", *(f"{name}: {value}" for name, value in against_targets(report).items())]
    return "\n".join([*lines, *(f"WRONG: {what}" for what in wrong(report))])


def network_table(rows: list[dict[str, Any]]) -> list[str]:
    """Variants and peers."""
    heads = ("variant", "ms", "fastest to slowest", "rel. error", "levels, mean", "levels, 99.9 %")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | failed: {row['failed']} | | | | |")
            continue
        ms = [1000 * value for value in row["seconds"]]
        lines.append(
            f"| {row['name']} | {statistics.median(ms):.2f} | {min(ms):.2f} to {max(ms):.2f} "
            f"| {row['error']:.1e} | {row['levels_mean']:.2f} | {row['levels_999']:.2f} |"
        )
    return lines


def process_table(rows: list[dict[str, Any]]) -> list[str]:
    """Processes of their own."""
    heads = (
        *("precision", "state", "load s", "first ms", "steady ms", "GB", "calculated GB"),
        *("GB, a photograph", "notes"),
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        start = f"| {row['precision']} | {row['state']} |"
        if "failed" in row:
            lines.append(f"{start} failed: {row['failed']} | | | | | | |")
            continue
        memory, all_of_it = (
            f"{row[name] / 1e9:.2f}" if name in row else "-" for name in ("reserved", "photograph")
        )
        lines.append(
            f"{start} {row['load']:.2f} | {1000 * row['first']:.1f} | {1000 * row['steady']:.2f} "
            f"| {memory} | {row['calculated'] / 1e9:.2f} | {all_of_it} "
            f"| {' '.join(row['notes']) or '-'} |"
        )
    return lines


def detection_lines(row: dict[str, Any]) -> list[str]:
    """Finding the faces of a photograph."""
    ms = {name: 1000 * statistics.median(row[name]) for name in ("wall", "device", "everywhere")}
    parts = ", ".join(f"{name} {1000 * value:.2f}" for name, value in row["stages"].items())
    return [
        f"Detection, {row['megapixels']:.1f} MP, {row['precision']}: {ms['wall']:.1f} ms on the "
        f"wall, {ms['device']:.1f} by events; searched everywhere {ms['everywhere']:.1f} ms",
        f"  parts one after the other, ms: {parts}; graphs: {row['recorded']}",
        f"  faces: {row['faces'][0]}, everywhere {row['faces'][1]}, on the processor "
        f"{row['faces'][2]}; landmarks apart by at most {row['differences']} px",
    ]


def against_targets(report: dict[str, Any]) -> dict[str, str]:
    """Each target that was measured beside its figure; they are for an H200."""
    rows = {row["name"]: row for row in report.get("network", []) if row.get("seconds")}
    times = {name: statistics.median(row["seconds"]) for name, row in rows.items()}
    own = times.get(f"GpenCuda {report['precision']}")
    found = {}
    if own is not None:
        found["network ms"] = 1000 * own
        if "eager" in times:
            found["times eager"] = times["eager"] / own
    memory = [r["reserved"] for r in report.get("processes", []) if "reserved" in r]
    if memory:
        found["network GB"] = max(memory) / 1e9
    if "detection" in report:
        found["detection ms"] = 1000 * statistics.median(report["detection"]["wall"])
    shown = {f"Target, {name}": f"{TARGETS[name]:g}, measured {found[name]:.2f}" for name in found}
    for name, seconds in times.items():
        if own is not None and not name.startswith("GpenCuda"):
            shown[f"Times as fast as {name}"] = f"{seconds / own:.2f}"
    return shown


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every part asked for; one that fails is told and the others go on."""
    import torch

    names = sorted(path.stem for path in network.GOLDEN.glob("*.json"))
    names = [name for name in names if name in args.golden] if args.golden else names
    gpu = args.device.startswith("cuda")
    report: dict[str, Any] = {
        "size": args.size,
        "precision": args.precision,
        "device": torch.cuda.get_device_name(args.device) if gpu else "the processor (a dry run)",
        "torch": torch.__version__,
        "limit_gb": args.limit_gb,
        "failed": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Any]] = {
            "golden": lambda: {
                precision: network.golden_errors(precision, args.device, names)
                for precision in args.precisions
            },
            "network": lambda: network.compare(args, folder),
            "processes": lambda: network.processes(Path(__file__), args, folder),
            "detection": lambda: photograph.detection(args),
            "job": lambda: photograph.job(args, folder),
            "calculated": lambda: photograph.calculated("fp16"),
        }
        for part in args.parts:
            print(f"{part} ...", file=sys.stderr, flush=True)
            try:
                report[part] = parts[part]()
            except Exception as error:
                traceback.print_exc()
                report["failed"][part] = f"{type(error).__name__}: {error}"[:300]
    return report


def words(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A parser of words with commas between them."""

    def parse(text: str) -> list[str]:
        found = [word for word in text.split(",") if word]
        unknown = set(found) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {known}")
        return found

    return parse


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    precisions = tuple(network.BOUND)
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:1, or cpu for a dry run")
    add("--size", type=int, default=2048, choices=(network.DRY_SIZE, 256, 512, 1024, 2048))
    add("--precision", default="fp16", choices=precisions)
    add("--precisions", type=words(precisions), default=list(precisions))
    add("--rounds", type=int, default=15)
    add("--peers", type=words(network.PEERS), default=list(network.PEERS))
    add("--parts", type=words(PARTS), default=list(PARTS))
    add("--limit-gb", type=float, default=4.0, help="0 for no limit")
    add("--megapixels", type=float, default=24.0)
    add("--faces", type=int, default=1)
    add("--golden", type=lambda text: text.split(","), help="some of the golden vectors only")
    add("--json", action="store_true")
    add("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Measure and print; see the top of this file for the exit status."""
    args = options()
    import torch

    if args.device != "cpu" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    if args.alone:
        print(json.dumps(network.alone(args) | photograph.whole(args)))
        return 0
    report = measure(args)
    print(json.dumps(report, indent=2) if args.json else table(report))
    return 1 if wrong(report) else 0


if __name__ == "__main__":
    sys.exit(main())
