"""Time one GPEN face on a GPU beside its peers, prove it right, and measure its memory.

    python worker/benchmarks/gpen_cuda.py [--size 2048] [--precision fp16] [--rounds 15]
        [--peers eager,reference,compile,onnxruntime] [--limit-gb 4] [--json]

Random weights (their values do not change the time). Times are CUDA events around calls whose input
and output lie on the GPU; the variants take turns in one process, medians are what to compare.
Before any of it the golden vectors in tests/golden must come out right. Memory and the first face
are of a process of its own for each precision, --limit-gb limits what PyTorch may allocate in it.
Exit status: 0; 1 where a result is wrong; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
#: Largest relative error to the golden vectors.
BOUND = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}
#: Levels of 255 that fp16 may differ from fp32: on average, and at the 99.9th percentile. Those of
#: bf16 depend on the picture's contrast; its relative error is bounded instead.
LEVELS = (0.2, 1.0)
NEAR = {"fp32": 1e-5, "bf16": 1e-2}
PEERS = ("eager", "reference", "compile", "onnxruntime")
CALLS = 10  # of one measurement: a call takes milliseconds
NO_GPU = (
    "This benchmark needs a GPU that PyTorch can use (CUDA or ROCm), and there is none: install a "
    "CUDA build of PyTorch, or see worker/benchmarks/gpen_cpu.py for the processor."
)

Call = Callable[[Any], Any]


def random_network(size: int) -> Any:
    """The reference network of a published size with random weights, on the CPU."""
    from face_restore_worker.bench.weights import random_state
    from face_restore_worker.network.architecture import GpenArchitecture
    from face_restore_worker.network.gpen import build_gpen

    architecture = GpenArchitecture.from_parameters(size, *((1, 0.5) if size == 256 else (2, 1)))
    return build_gpen(architecture, random_state(architecture))


def own_variants(network: Any, precision: str) -> dict[str, Call]:
    """GpenCuda as it is used, and with parts of it left out."""
    from face_restore_worker.network.cuda.operations import PLAIN
    from face_restore_worker.network.gpen_cuda import GpenCuda

    dtype = torch_type(precision)
    return {
        f"GpenCuda {precision}": GpenCuda(network, dtype, "cuda"),
        f"GpenCuda {precision}, no graph": GpenCuda(network, dtype, "cuda", graph=False),
        f"GpenCuda {precision}, plain operations": GpenCuda(network, dtype, "cuda", PLAIN),
    }


def torch_type(precision: str) -> Any:
    """The torch type of a precision."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def peer(name: str, network: Any, precision: str, folder: Path) -> Call:
    """Another implementation of the same network; raises where it cannot run."""
    import copy

    import torch

    dtype = torch_type(precision)
    if name == "eager":
        from face_restore_worker.bench.authors_eager import AuthorsGpen

        state = {k: v.detach().to("cuda", dtype) for k, v in network.state_dict().items()}
        return AuthorsGpen(network.architecture, state)
    if name == "onnxruntime":
        return onnxruntime_call(network, folder)
    module: Any = copy.deepcopy(network).to("cuda")
    if name == "compile":
        module = torch.compile(module, mode="max-autotune")
    return lambda x: module(x.to(dtype))


def onnxruntime_call(network: Any, folder: Path) -> Call:
    """ONNX Runtime's CUDA provider, fp32 as exported, tensors staying on the GPU."""
    import onnxruntime  # type: ignore[import-not-found, unused-ignore]
    import torch
    from face_restore_worker.bench.builders import INPUT, OUTPUT, export
    from face_restore_worker.bench.weights import prepare

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("this onnxruntime has no CUDA provider: pip install onnxruntime-gpu")
    path = folder / "network.onnx"
    export(prepare(None, network.architecture.size, folder).path, path)
    session = onnxruntime.InferenceSession(
        str(path), providers=[("CUDAExecutionProvider", {"use_tf32": "0"})]
    )

    def call(x: Any) -> Any:
        x = x.contiguous()
        out = torch.empty_like(x)
        binding = session.io_binding()
        for bind, name, value in (
            (binding.bind_input, INPUT, x),
            (binding.bind_output, OUTPUT, out),
        ):
            bind(name, "cuda", 0, "float32", tuple(value.shape), value.data_ptr())
        torch.cuda.synchronize()
        session.run_with_iobinding(binding)
        return out

    return call


def seconds(call: Call, x: Any, calls: int = CALLS) -> float:
    """Seconds of one call by CUDA events, the mean of several in a row."""
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.inference_mode():
        start.record()
        for _ in range(calls):
            call(x)
        stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1000 / calls


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Own variants and peers taking turns; each row: name, seconds, differences to fp32, or why."""
    import torch

    network = random_network(args.size)
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand((1, 3, args.size, args.size), generator=generator) * 2 - 1).cuda()
    exact = exact_result(network, x)
    calls: dict[str, Call] = dict(own_variants(network, args.precision))
    rows: dict[str, dict[str, Any]] = {}
    for name in args.peers:
        try:
            calls[name] = peer(name, network, args.precision, folder)
        except Exception as error:  # a peer that is missing or fails is a row of the table
            rows[name] = {"name": name, "failed": f"{type(error).__name__}: {error}"[:300]}
    for name, call in list(calls.items()):
        try:
            with torch.inference_mode():
                for _ in range(3):
                    result = call(x)
            rows[name] = {"name": name, "seconds": [], **differences(result, exact)}
        except Exception as error:
            del calls[name]
            rows[name] = {"name": name, "failed": f"{type(error).__name__}: {error}"[:300]}
    for _ in range(args.rounds):
        for name, call in calls.items():
            rows[name]["seconds"].append(seconds(call, x))
    return list(rows.values())


def exact_result(network: Any, x: Any) -> Any:
    """The reference network in fp32 without TF32."""
    import copy

    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        result = copy.deepcopy(network).to("cuda")(x)
    torch.cuda.empty_cache()
    return result


def differences(result: Any, exact: Any) -> dict[str, float]:
    """Relative error, and levels of 255 as shown: mean and 99.9th percentile."""
    error = (result.double() - exact.double()).norm() / exact.double().norm()
    shown = [value.float().mul(0.5).add(0.5).clamp(0, 1) * 255 for value in (result, exact)]
    levels = (shown[0] - shown[1]).abs().flatten()
    rank = max(1, round(0.999 * levels.numel()))
    return {
        "error": float(error),
        "levels_mean": float(levels.mean()),
        "levels_999": float(levels.cpu().kthvalue(rank).values),
    }


def golden_errors(precision: str, device: str, names: list[str]) -> dict[str, float]:
    """Relative error to the authors' own results, for each case."""
    import numpy as np
    import torch
    from face_restore_worker.checkpoints.gpen import load_gpen

    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    found = {}
    for name in names:
        config = json.loads((GOLDEN / f"{name}.json").read_text())
        shapes = {key: tuple(shape) for key, shape in config["shapes"].items()}
        state = recipe.random_state_dict(shapes, config["seed"])
        restorer = load_gpen(
            {key: torch.from_numpy(value) for key, value in state.items()},
            device=device,
            precision=precision,
        )
        picture = torch.from_numpy(recipe.input_image(config["in_size"], config["seed"]))
        output = restorer(picture)[0].double().cpu()
        with np.load(GOLDEN / f"{name}.npz") as golden:
            index = torch.from_numpy(golden["index"].astype(np.int64))
            value = torch.from_numpy(golden["value"])
        sampled = output[index[:, 0], index[:, 1], index[:, 2]]
        found[name] = float((sampled - value).norm() / value.norm())
    return found


def limit_memory(gigabytes: float, total: int) -> float:
    """The share of the GPU's memory that is ``gigabytes``, at most all of it."""
    return min(1.0, gigabytes * 1e9 / total)


def alone(args: argparse.Namespace) -> dict[str, Any]:
    """Load and restore in this process; seconds of both and bytes on the GPU."""
    import torch
    from face_restore_worker.checkpoints.gpen import GpenRestorer

    free, total = torch.cuda.mem_get_info()
    if args.limit_gb:
        torch.cuda.set_per_process_memory_fraction(limit_memory(args.limit_gb, total))
    network = random_network(args.size)
    start = time.perf_counter()
    restorer = GpenRestorer(network, torch.device("cuda"), args.precision)
    torch.cuda.synchronize()
    loaded = time.perf_counter() - start
    x = torch.zeros(1, 3, args.size, args.size, device="cuda")
    faces = []
    for _ in range(5):
        start = time.perf_counter()
        restorer(x)
        torch.cuda.synchronize()
        faces.append(time.perf_counter() - start)
    fast = restorer.fast
    assert fast is not None
    return {
        "load": loaded,
        "first": faces[0],
        "steady": statistics.median(faces[1:]),
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "used": free - torch.cuda.mem_get_info()[0],
        "recorded": bool(getattr(fast, "recorded", False)),
        "notes": list(getattr(fast, "notes", ())),
    }


def in_own_process(args: argparse.Namespace, precision: str, cache: Path) -> dict[str, Any]:
    """``alone`` in a fresh process, with Triton's cache in a folder."""
    command = [
        sys.executable, __file__, "--alone", "--size", str(args.size), "--precision", precision,
        "--limit-gb", str(args.limit_gb),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TRITON_CACHE_DIR": str(cache)}
    )
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def processes(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every precision, first with nothing compiled, then with what that left on disk."""
    from face_restore_worker.network.cuda.memory import calculated

    architecture = random_network(args.size).architecture
    rows = []
    for precision in BOUND:
        memory = calculated(architecture, torch_type(precision))
        for state in ("nothing compiled", "compiled before"):
            row = in_own_process(args, precision, folder / f"triton-{precision}")
            rows.append(
                {"precision": precision, "kernels": state, "calculated": memory.total} | row
            )
    return rows


def wrong(report: dict[str, Any]) -> list[str]:
    """What is out of bounds, in sentences."""
    found = [
        f"golden {name} in {precision}: {error:.2g} is more than {BOUND[precision]:.2g}"
        for precision, errors in report["golden"].items()
        for name, error in errors.items()
        if not error <= BOUND[precision]
    ]
    for row in report["variants"]:
        if not row["name"].startswith("GpenCuda") or "failed" in row:
            continue
        near = NEAR.get(report["precision"])
        if near is not None:
            if not row["error"] <= near:
                found.append(f"{row['name']}: relative error {row['error']:.2g}")
        elif not (row["levels_mean"] <= LEVELS[0] and row["levels_999"] <= LEVELS[1]):
            found.append(f"{row['name']}: {row['levels_999']:.2f} levels off")
    return found


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"GPEN {report['size']} on {report['gpu']}, torch {report['torch']}", ""]
    lines += [
        "| variant | ms | fastest to slowest | rel. error | levels, 99.9 % |",
        "|" + "---|" * 5,
    ]
    for row in report["variants"]:
        if "failed" in row:
            lines.append(f"| {row['name']} | failed: {row['failed']} | | | |")
            continue
        ms = [1000 * value for value in row["seconds"]]
        lines.append(
            f"| {row['name']} | {statistics.median(ms):.2f} | {min(ms):.2f} to {max(ms):.2f} "
            f"| {row['error']:.1e} | {row['levels_999']:.2f} |"
        )
    heads = ("precision", "kernels", "load s", "first ms", "steady ms", "GB", "calculated GB")
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in report["processes"]:
        start = f"| {row['precision']} | {row['kernels']} |"
        if "failed" in row:
            lines.append(f"{start} failed: {row['failed']} | | | | |")
            continue
        lines.append(
            f"{start} {row['load']:.2f} | {1000 * row['first']:.1f} | {1000 * row['steady']:.2f} "
            f"| {row['reserved'] / 1e9:.2f} | {row['calculated'] / 1e9:.2f} |"
        )
    for precision, errors in report["golden"].items():
        shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        lines += ["", f"Golden vectors, {precision}: {shown}"]
    return "\n".join([*lines, *(f"WRONG: {what}" for what in wrong(report))])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    import torch

    names = sorted(path.stem for path in GOLDEN.glob("*.json"))
    golden = {precision: golden_errors(precision, "cuda", names) for precision in BOUND}
    with tempfile.TemporaryDirectory() as folder:
        return {
            "size": args.size,
            "precision": args.precision,
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "limit_gb": args.limit_gb,
            "golden": golden,
            "variants": compare(args, Path(folder)),
            "processes": processes(args, Path(folder)),
        }


def main() -> int:
    """Read the command line; see the top of this file for the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=2048, choices=(256, 512, 1024, 2048))
    parser.add_argument("--precision", default="fp16", choices=tuple(BOUND))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", type=lambda text: text.split(",") if text else [], default=PEERS)
    parser.add_argument("--limit-gb", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    import torch

    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    if args.alone:
        print(json.dumps(alone(args)))
        return 0
    report = measure(args)
    print(json.dumps(report, indent=2) if args.json else table(report))
    return 1 if wrong(report) else 0


if __name__ == "__main__":
    sys.exit(main())
