"""For gpen_cuda.py: GPEN's network beside its peers, its correctness, processes of its own."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
#: Largest relative error to the reference network in fp32.
BOUND = {"fp32": 2e-6, "bf16": 3e-2, "fp16": 4e-3}
#: And to the golden vectors, of which fp32 itself, in the reference, is off by up to 3.5e-6.
GOLDEN_BOUND = BOUND | {"fp32": 1e-5}
#: Contrast that levels of 255 are given for: random weights give more than a photograph has.
DEVIATION = 0.16
PEERS = (
    *("eager", "reference", "compile"),
    *("onnxruntime", "onnxruntime-tidy", "onnxruntime-fp16"),
)
CALLS = 10  # of one measurement: a call takes milliseconds
DRY_SIZE = 64

Call = Callable[[Any], Any]


class Clock:
    """Seconds of calls on a device: by CUDA events on a GPU, else on the wall."""

    def __init__(self, device: str) -> None:
        self.gpu = device.startswith("cuda")

    def wait(self) -> None:
        """Until the device has done everything."""
        import torch

        if self.gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], calls: int = 1) -> float:
        """Of one call, the mean of several in a row."""
        import torch

        with torch.inference_mode():
            if not self.gpu:
                begin = time.perf_counter()
                for _ in range(calls):
                    call()
                return (time.perf_counter() - begin) / calls
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                call()
            stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1000 / calls

    def wall(self, call: Callable[[], Any]) -> float:
        """Of one call on the wall, until the device has done everything."""
        self.wait()
        begin = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begin


def architecture_of(size: int) -> Any:
    """The published one of a size; a small one for DRY_SIZE."""
    from face_restore_worker.network.architecture import GpenArchitecture

    if size == DRY_SIZE:
        return GpenArchitecture.from_parameters(size, 2, 1 / 16, 32, 2)
    return GpenArchitecture.from_parameters(size, *((1, 0.5) if size == 256 else (2, 1)))


def random_network(size: int) -> Any:
    """The reference network of a size with random weights, on the CPU."""
    from face_restore_worker.bench.weights import random_state
    from face_restore_worker.network.gpen import build_gpen

    architecture = architecture_of(size)
    return build_gpen(architecture, random_state(architecture))


def torch_type(precision: str) -> Any:
    """The torch type of a precision."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def own_variants(network: Any, precision: str, device: str) -> dict[str, Call]:
    """GpenCuda as it is used, and with parts of it left out."""
    from face_restore_worker.network.cuda.operations import PLAIN
    from face_restore_worker.network.gpen_cuda import GpenCuda

    dtype = torch_type(precision)
    return {
        f"GpenCuda {precision}": GpenCuda(network, dtype, device),
        f"GpenCuda {precision}, no graph": GpenCuda(network, dtype, device, graph=False),
        f"GpenCuda {precision}, plain operations": GpenCuda(network, dtype, device, PLAIN),
        f"GpenCuda {precision}, cuDNN timed": GpenCuda(network, dtype, device, timed=True),
    }


def peer(name: str, network: Any, precision: str, device: str, folder: Path) -> Call:
    """Another implementation of the same network; raises where it cannot run."""
    import torch

    dtype = torch_type(precision)
    if name == "eager":
        from face_restore_worker.bench.authors_eager import AuthorsGpen

        state = {k: v.detach().to(device, dtype) for k, v in network.state_dict().items()}
        authors = AuthorsGpen(network.architecture, state)
        return lambda x: authors(x.to(dtype))
    if name.startswith("onnxruntime"):
        return onnxruntime_call(name, network, device, folder)
    module: Any = copy.deepcopy(network).to(device)
    if name == "compile":
        module = torch.compile(module, mode="max-autotune")
    return lambda x: module(x.to(dtype))


def onnxruntime_call(name: str, network: Any, device: str, folder: Path) -> Call:
    """ONNX Runtime, tensors staying on the device: as the authors' code exports (TF32 off), our
    readable network's graph (TF32 as it likes), that graph in fp16."""
    import onnxruntime  # type: ignore[import-not-found, unused-ignore]
    import torch
    from face_restore_worker.bench.builders import INPUT, OUTPUT

    gpu = device.startswith("cuda")
    provider = "CUDAExecutionProvider" if gpu else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError("this onnxruntime has no CUDA provider: pip install onnxruntime-gpu")
    path = folder / f"{name}.onnx"
    exported(name, network, path)
    options = {"use_tf32": "0"} if gpu and name == "onnxruntime" else {}
    session = onnxruntime.InferenceSession(str(path), providers=[(provider, options)])
    if provider not in session.get_providers():
        raise RuntimeError(f"onnxruntime fell back from {provider}")
    kinds = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
    given, made = (kinds[one[0].type] for one in (session.get_inputs(), session.get_outputs()))

    def call(x: Any) -> Any:
        x = x.to(given).contiguous()
        out = torch.empty_like(x, dtype=made)
        binding = session.io_binding()
        for bind, name, value in (
            (binding.bind_input, INPUT, x),
            (binding.bind_output, OUTPUT, out),
        ):
            kind = "float16" if value.dtype == torch.float16 else "float32"
            place = ("cuda", 0) if gpu else ("cpu", 0)
            bind(name, *place, kind, tuple(value.shape), value.data_ptr())
        if gpu:
            torch.cuda.synchronize()
        session.run_with_iobinding(binding)
        return out

    return call


def exported(name: str, network: Any, path: Path) -> None:
    """Write the network for ONNX Runtime."""
    import torch
    from face_restore_worker.bench.builders import export, write_onnx
    from face_restore_worker.checkpoints.gpen import write_gpen_safetensors

    if name != "onnxruntime-fp16":
        weights = path.with_suffix(".safetensors")
        names = network.architecture.shapes()
        state = {key: value for key, value in network.state_dict().items() if key in names}
        write_gpen_safetensors(state, weights)
        export(weights, path, "tidy" if name.endswith("-tidy") else "authors")
        return
    size = network.architecture.size
    example = torch.zeros(1, 3, size, size, dtype=torch.float16)
    write_onnx(copy.deepcopy(network), example, path)


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Own variants and peers taking turns; each row: name, seconds, differences to fp32, or why."""
    import torch

    network = random_network(args.size)
    clock = Clock(args.device)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((1, 3, args.size, args.size), generator=generator) * 2 - 1
    x = x.to(args.device)
    exact = exact_result(network, x)
    calls: dict[str, Call] = dict(own_variants(network, args.precision, args.device))
    rows: dict[str, dict[str, Any]] = {}
    for name in args.peers:
        try:
            calls[name] = peer(name, network, args.precision, args.device, folder)
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
            rows[name]["seconds"].append(clock.seconds(lambda call=call: call(x), CALLS))
    return list(rows.values())


def exact_result(network: Any, x: Any) -> Any:
    """The reference network in fp32 without TF32."""
    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        result = copy.deepcopy(network).to(x.device)(x)
    if x.device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def differences(result: Any, exact: Any) -> dict[str, float]:
    """Relative error, and levels of 255 for a picture of DEVIATION: mean, 99.9th percentile."""
    off = (result.double() - exact.double()).flatten()
    levels = off.abs() * (127.5 * DEVIATION / float(exact.double().std()))
    rank = max(1, round(0.999 * levels.numel()))
    return {
        "error": float(off.norm() / exact.double().norm()),
        "levels_mean": float(levels.mean()),
        "levels_999": float(levels.cpu().kthvalue(rank).values),
    }


def golden_errors(precision: str, device: str, names: list[str]) -> dict[str, dict[str, float]]:
    """`differences` to the authors' own results, for each case."""
    import numpy as np
    import torch
    from face_restore_worker.checkpoints.gpen import gpen_state
    from face_restore_worker.network.gpen import build_gpen
    from face_restore_worker.network.gpen_cuda import GpenCuda

    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    found = {}
    for name in names:
        config = json.loads((GOLDEN / f"{name}.json").read_text())
        shapes = {key: tuple(shape) for key, shape in config["shapes"].items()}
        arrays = recipe.random_state_dict(shapes, config["seed"])
        state = {key: torch.from_numpy(value).float() for key, value in arrays.items()}
        learned, architecture = gpen_state(state, name)
        network = GpenCuda(build_gpen(architecture, learned), torch_type(precision), device)
        picture = torch.from_numpy(recipe.input_image(config["in_size"], config["seed"])).float()
        output = network(picture.to(device))[0].double().cpu()
        with np.load(GOLDEN / f"{name}.npz") as golden:
            index = torch.from_numpy(golden["index"].astype(np.int64))
            value = torch.from_numpy(golden["value"])
        found[name] = differences(output[index[:, 0], index[:, 1], index[:, 2]], value)
    return found


def limit_memory(gigabytes: float, total: int) -> float:
    """The share of the GPU's memory that is ``gigabytes``, at most all of it."""
    return min(1.0, gigabytes * 1e9 / total)


def alone(args: argparse.Namespace) -> dict[str, Any]:
    """Load and restore in this process; seconds of both and bytes on the device."""
    import torch
    from face_restore_worker.network.gpen_cuda import GpenCuda

    clock = Clock(args.device)
    free = 0
    if clock.gpu:
        free, total = torch.cuda.mem_get_info()
        if args.limit_gb:
            torch.cuda.set_per_process_memory_fraction(limit_memory(args.limit_gb, total))
    network = random_network(args.size)
    made: list[GpenCuda] = []
    loaded = clock.wall(
        lambda: made.append(GpenCuda(network, torch_type(args.precision), args.device))
    )
    pixels = torch.zeros(args.size, args.size, 3, dtype=torch.uint8, device=args.device)
    faces = [clock.wall(lambda: made[0].restore_pixels(pixels)) for _ in range(5)]
    row: dict[str, Any] = {
        "load": loaded,
        "first": faces[0],
        "steady": statistics.median(faces[1:]),
        "recorded": made[0].recorded,
        "notes": list(made[0].notes),
    }
    if clock.gpu:
        row |= {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "used": free - torch.cuda.mem_get_info()[0],
        }
    return row


def in_own_process(
    script: Path, args: argparse.Namespace, precision: str, limit_gb: float, cache: Path
) -> dict[str, Any]:
    """``alone`` in a fresh process, with Triton's cache in a folder."""
    command = [
        sys.executable, str(script), "--alone", "--size", str(args.size), "--precision", precision,
        "--limit-gb", str(limit_gb), "--device", args.device,
        "--megapixels", str(args.megapixels), "--faces", str(args.faces),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TRITON_CACHE_DIR": str(cache)}
    )
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def processes(script: Path, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every precision: with nothing compiled, with what that left on disk, with little memory."""
    from face_restore_worker.network.cuda.memory import calculated

    rows = []
    for precision in args.precisions:
        memory = calculated(architecture_of(args.size), torch_type(precision))
        states = {"nothing compiled": 0.0, "compiled before": 0.0}
        if args.limit_gb:
            states[f"at most {args.limit_gb:g} GB"] = args.limit_gb
        for state, limit in states.items():
            row = in_own_process(script, args, precision, limit, folder / f"triton-{precision}")
            rows.append({"precision": precision, "state": state, "calculated": memory.total} | row)
    return rows
