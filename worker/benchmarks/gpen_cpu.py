"""Time one GPEN face on the processor: the reference network beside the path that is used.

    python worker/benchmarks/gpen_cpu.py [--size 2048] [--repeats 5] [--json]

Random weights (their values do not change the time). The variants alternate, so that a busy
machine slows all of them; medians are what to compare. Peak memory is of a process of its own
for each variant, one face.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIANTS = ("reference fp32", "fp32", "bf16")


def build(variant: str, size: int) -> Callable[[Any], Any]:
    """A callable for (1, 3, S, S) fp32, with random weights."""
    import torch
    from face_restore_worker.checkpoints.gpen import GpenRestorer
    from face_restore_worker.network.architecture import GpenArchitecture
    from face_restore_worker.network.gpen import build_gpen

    architecture = GpenArchitecture.from_parameters(size, *((1, 0.5) if size == 256 else (2, 1)))
    generator = torch.Generator().manual_seed(size)
    state = {
        name: torch.randn(shape, generator=generator)
        for name, shape in architecture.shapes().items()
    }
    network = build_gpen(architecture, state)
    if variant.startswith("reference"):
        return network
    return GpenRestorer(network, torch.device("cpu"), variant)


def seconds(call: Callable[[Any], Any], x: Any) -> float:
    """Seconds of one call."""
    import torch

    start = time.perf_counter()
    with torch.inference_mode():
        call(x)
    return time.perf_counter() - start


def peak_memory(variant: str, size: int) -> float:
    """Peak resident GB of a fresh process that restores one face."""
    command = [sys.executable, __file__, "--size", str(size), "--only", variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["peak_gb"])


def only(variant: str, size: int) -> dict[str, float]:
    """One first face in this process."""
    import torch

    call, x = build(variant, size), torch.zeros(1, 3, size, size)
    first = seconds(call, x)
    return {"first": first, "peak_gb": own_peak()}


def own_peak() -> float:
    """Peak resident GB of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it forked
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def compare(size: int, repeats: int) -> dict[str, Any]:
    """Alternate the variants and report medians."""
    import torch

    calls = {variant: build(variant, size) for variant in VARIANTS}
    x = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(1)) * 2 - 1
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(repeats + 1):
        for variant, call in calls.items():
            times[variant].append(seconds(call, x))
    rows = {
        variant: {
            "median": statistics.median(values[1:]),
            "fastest": min(values[1:]),
            "slowest": max(values[1:]),
            "peak_gb": peak_memory(variant, size),
        }
        for variant, values in times.items()
    }
    return {
        "size": size,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "variants": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, choices=(256, 512, 1024, 2048))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(only(args.only, args.size)))
        return
    report = compare(args.size, args.repeats)
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print(f"GPEN {args.size}, torch {report['torch']}, {report['threads']} threads")
    for variant, row in report["variants"].items():
        print(
            f"{variant:15} {row['median']:6.2f} s ({row['fastest']:.2f} to {row['slowest']:.2f})"
            f"  peak {row['peak_gb']:.2f} GB"
        )


if __name__ == "__main__":
    main()
