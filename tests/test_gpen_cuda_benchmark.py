"""The GPU benchmark without a GPU: it says so; what it proves and prints is right."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "worker" / "benchmarks" / "gpen_cuda.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpen_cuda_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(error: float = 1e-3, levels: float = 0.5, golden: float = 1e-3) -> dict[str, Any]:
    variant = {"seconds": [0.002, 0.003, 0.0025], "error": error, "levels_mean": 0.1}
    process = {"load": 1.0, "first": 0.003, "steady": 0.002, "reserved": 9e8}
    return {
        "size": 2048,
        "precision": "fp16",
        "gpu": "GPU",
        "torch": "2.13",
        "golden": {"fp16": {"tiny-64": golden}},
        "variants": [
            {"name": "GpenCuda fp16", **variant, "levels_999": levels},
            {"name": "eager", **variant, "levels_999": 50.0},
            {"name": "onnxruntime", "failed": "ModuleNotFoundError: No module"},
        ],
        "processes": [
            {"precision": "fp16", "kernels": "compiled before", "calculated": 7e8, **process},
            {"precision": "fp32", "kernels": "compiled before", "calculated": 1, "failed": "OOM"},
        ],
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="says nothing where there is a GPU")
@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_stops() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "needs a GPU" in done.stderr and "Traceback" not in done.stderr


def test_the_table_has_every_variant_and_says_what_is_wrong(bench: ModuleType) -> None:
    text = bench.table(report())
    assert "| GpenCuda fp16 | 2.50 | 2.00 to 3.00 |" in text and "WRONG" not in text
    assert "failed: ModuleNotFoundError" in text and "failed: OOM" in text and "0.90 | 0.70" in text
    assert bench.wrong(report()) == []
    assert "levels off" in bench.wrong(report(levels=1.2))[0]
    assert "levels off" in bench.wrong(report(levels=float("nan")))[0]
    assert "golden tiny-64" in bench.wrong(report(golden=0.1))[0]
    full = report(error=1e-3) | {"precision": "fp32"}
    assert "relative error" in bench.wrong(full)[0]


def test_golden_vectors_are_compared(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < bench.golden_errors("fp32", "cpu", ["tiny-64"])["tiny-64"] < bench.BOUND["fp32"]
    from face_restore_worker.checkpoints import gpen

    whole = gpen.GpenRestorer.__call__
    monkeypatch.setattr(gpen.GpenRestorer, "__call__", lambda self, x: whole(self, x).flip(1))
    assert bench.golden_errors("fp32", "cpu", ["tiny-64"])["tiny-64"] > 0.1


def test_differences_are_counted_in_levels(bench: ModuleType) -> None:
    exact = torch.linspace(-0.9, 0.9, 3 * 64 * 64).view(1, 3, 64, 64)
    found = bench.differences(exact + 2 / 255, exact)
    assert found["levels_mean"] == pytest.approx(1, abs=1e-3)
    assert found["levels_999"] == pytest.approx(1, abs=1e-3)
    assert bench.differences(exact, exact)["error"] == 0


def test_memory_is_limited_to_a_share(bench: ModuleType) -> None:
    assert bench.limit_memory(4, 140 * 10**9) == pytest.approx(4 / 140)
    assert bench.limit_memory(24, 8 * 10**9) == 1


@pytest.mark.slow
def test_a_process_that_fails_is_a_row(bench: ModuleType, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    args = argparse.Namespace(size=256, limit_gb=4.0)
    row = bench.in_own_process(args, "fp16", tmp_path)
    assert "needs a GPU" in row["failed"]
