"""The process that holds one variant: builds it, then computes a face whenever it is told to.

It reads one JSON object a line from standard input and answers with one on standard output:
{"do": "run", "calls": N} with {"seconds": [...]}, {"do": "memory"} with {"peak_gb", "gpu_gb"},
{"do": "save", "path": ...} with {}. The first line it writes tells how long loading took. Every
answer has "busy", the processor seconds used so far. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.bench import builders
from face_restore_worker.bench.machine import peak_bytes

if TYPE_CHECKING:
    from torch import Tensor


def face(size: int) -> Tensor:
    """The input of every variant: (1, 3, S, S) fp32 in [-1, 1], the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.rand((1, 3, size, size), generator=generator) * 2 - 1


class Holder:
    """One variant, loaded. job: see `main`."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        self._torch = torch
        torch.set_num_threads(job["threads"])
        self._device = job["device"]
        self._on_gpu = self._device.partition(":")[0] == "cuda"
        self._free = self._free_gpu()
        start = time.perf_counter()
        onnx = Path(job["onnx"]) if job["onnx"] else None
        self._call = builders.build(
            job["key"], Path(job["weights"]), onnx, self._device, job["threads"]
        )
        self._wait()
        self.load_seconds = time.perf_counter() - start
        self._input = face(job["size"])
        self._output: Tensor | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked for."""
        if request["do"] == "run":
            return self._run(request["calls"])
        if request["do"] == "memory":
            used = self._free - self._free_gpu()
            return {"peak_gb": peak_bytes() / 1e9, "gpu_gb": used / 1e9 if self._on_gpu else None}
        if request["do"] == "save":
            import numpy as np

            assert self._output is not None
            np.save(request["path"], self._output.float().cpu().numpy())
            return {}
        raise ValueError(f"unknown request {request['do']!r}")

    def _run(self, calls: int) -> dict[str, Any]:
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            self._output = self._call(self._input)
            self._wait()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def _wait(self) -> None:
        if self._on_gpu:
            self._torch.cuda.synchronize(self._device)

    def _free_gpu(self) -> int:
        return int(self._torch.cuda.mem_get_info(self._device)[0]) if self._on_gpu else 0


def main() -> int:
    """Serve until standard input ends. sys.argv[1]: the job as JSON.

    It holds key, weights, onnx ("" or a path), device, threads, size, spawned (time.time() of the
    parent); or {"export": path, "weights": path, "form": "authors" or "tidy"}.
    """
    # Libraries print: what they print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = json.loads(sys.argv[1])
    try:
        if "export" in job:
            builders.export(Path(job["weights"]), Path(job["export"]), job["form"])
            _say(answers, {})
            return 0
        holder = Holder(job)
        since = time.time() - job["spawned"]
        answer = {"load_seconds": holder.load_seconds, "since_start": since}
        _say(answers, answer | {"version": builders.version(job["key"])})
        for line in sys.stdin:
            _say(answers, holder.answer(json.loads(line)))
    except Exception as error:
        text = (
            str(error)
            if isinstance(error, FaceRestoreError)
            else f"{type(error).__name__}: {error}"
        )
        _say(answers, {"error": text})
        return 1
    return 0


def _say(stream: TextIO, value: dict[str, Any]) -> None:
    busy = sum(os.times()[:4])  # compilers that were started count as well
    stream.write(json.dumps(value | {"busy": busy}) + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
