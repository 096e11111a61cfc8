"""Time one GPEN face on the processor: the reference network beside the path that is used.

    python worker/benchmarks/gpen_cpu.py [--size 2048] [--repeats 5] [--json]

Random weights (their values do not change the time). Every variant has a process of its own, set
up as the worker is; they take turns, so that a busy machine slows all of them. Medians are what
to compare. `cpu` is processor time per thread, which other programs disturb less. `first` is a
fresh process's first face, `peak` its memory with the model loaded and that face restored. `torch`
is the same without the compiled kernels; `--variants` chooses some.

`face-restore bench` times the same beside other programs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VARIANTS = ("reference fp32", "fp32", "fp32 torch", "bf16", "bf16 torch")
Times = dict[str, list[float]]


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
    return GpenRestorer(network, torch.device("cpu"), variant.split()[0])


def serve(variant: str, size: int) -> None:
    """Restore a face for every line of standard input, answering with what it took."""
    from face_restore_worker.server import memory
    from face_restore_worker.threads import share_processor

    share_processor()
    memory.prepare()
    import torch

    call = build(variant, size)
    x = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(1)) * 2 - 1
    threads = torch.get_num_threads()
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            call(x)
        wall, cpu = time.perf_counter() - wall, (time.process_time() - cpu) / threads
        print(json.dumps({"wall": wall, "cpu": cpu, "peak": own_peak()}), flush=True)


def own_peak() -> float:
    """Peak resident GB of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it forked
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def start(variant: str, size: int) -> subprocess.Popen[str]:
    """A process that serves one variant."""
    command = [sys.executable, __file__, "--size", str(size), "--serve", variant]
    kernels = {"FACE_RESTORE_NATIVE": "0"} if variant.endswith("torch") else {}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **kernels},
    )


def face(process: subprocess.Popen[str]) -> dict[str, float]:
    """One more face by a serving process."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(size: int, repeats: int, variants: Sequence[str] = VARIANTS) -> dict[str, Any]:
    """Let the variants take turns and report medians."""
    import torch

    servers = {variant: start(variant, size) for variant in variants}
    try:
        first = {variant: face(server) for variant, server in servers.items()}
        for server in servers.values():
            face(server)  # the second warms up what the first has not
        faces: dict[str, Times] = {v: {"wall": [], "cpu": []} for v in variants}
        for _ in range(repeats):
            for variant, server in servers.items():
                took = face(server)
                for key, values in faces[variant].items():
                    values.append(took[key])
    finally:
        for server in servers.values():
            server.communicate()
    return {
        "size": size,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "variants": {variant: row(first[variant], faces[variant]) for variant in variants},
    }


def row(first: dict[str, float], times: Times) -> dict[str, float]:
    """One variant's figures: seconds and GB."""
    return {
        "median": statistics.median(times["wall"]),
        "fastest": min(times["wall"]),
        "slowest": max(times["wall"]),
        "cpu": statistics.median(times["cpu"]),
        "first": first["wall"],
        "first_cpu": first["cpu"],
        "peak_gb": first["peak"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, choices=(256, 512, 1024, 2048))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.size)
        return
    report = compare(args.size, args.repeats, args.variants)
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print(f"GPEN {args.size}, torch {report['torch']}, {report['threads']} threads")
    for variant, x in report["variants"].items():
        print(
            f"{variant:15} {x['median']:6.2f} s ({x['fastest']:.2f} to {x['slowest']:.2f})"
            f"  cpu {x['cpu']:.2f}  first {x['first']:.2f} (cpu {x['first_cpu']:.2f})"
            f"  peak {x['peak_gb']:.2f} GB"
        )


if __name__ == "__main__":
    main()
