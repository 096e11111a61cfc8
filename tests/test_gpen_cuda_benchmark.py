"""The GPU benchmark without a GPU: it says so, its proofs and tables are right, a dry run runs."""

from __future__ import annotations

import importlib
import json
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
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return importlib.import_module("gpen_cuda")
    finally:
        sys.path.remove(str(SCRIPT.parent))


def report(error: float = 1e-3, levels: float = 0.5, golden: float = 1e-3) -> dict[str, Any]:
    near = {"error": error, "levels_mean": 0.1, "levels_999": levels}
    process = {"load": 1.0, "first": 0.003, "steady": 0.002, "reserved": 9e8, "photograph": 1.2e9}
    seconds = [0.002, 0.003, 0.0025]
    return {
        "size": 2048,
        "precision": "fp16",
        "device": "GPU",
        "torch": "2.13",
        "golden": {"fp16": {"tiny-64": near | {"error": golden}}},
        "network": [
            {"name": "GpenCuda fp16", "seconds": seconds, **near},
            {"name": "eager", "seconds": [0.02], **near, "levels_999": 50.0},
            {"name": "onnxruntime", "failed": "ModuleNotFoundError: No module"},
        ],
        "processes": [
            {"precision": "fp16", "state": "limited", "calculated": 7e8, "notes": [], **process}
        ],
        "detection": {
            "megapixels": 24.0,
            "precision": "fp16",
            "wall": [0.012],
            "device": [0.011],
            "everywhere": [0.2],
            "stages": {"upload": 0.004},
            "recorded": True,
            "faces": [1, 1, 1],
            "differences": [0.2, 0.3],
        },
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="says nothing where there is a GPU")
@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_stops() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "needs a GPU" in done.stderr and "Traceback" not in done.stderr


def test_the_table_has_everything_and_what_is_aimed_at(bench: ModuleType) -> None:
    text = bench.table(report())
    assert "| GpenCuda fp16 | 2.50 | 2.00 to 3.00 |" in text and "WRONG" not in text
    assert "failed: ModuleNotFoundError" in text
    assert "| fp16 | limited | 1.00 | 3.0 | 2.00 | 0.90 | 0.70 | 1.20 | - |" in text
    assert "Detection, 24.0 MP, fp16: 12.0 ms" in text and "upload 4.00" in text
    for line in ("network ms: 3, measured 2.50", "times eager: 5, measured 8.00",
                 "network GB: 2.5, measured 0.90", "detection ms: 25, measured 12.00",
                 "Times as fast as eager: 8.00"):  # fmt: skip
        assert line in text
    bare = {key: report()[key] for key in ("size", "precision", "device", "torch")}
    assert "WRONG" not in bench.table(bare)


def test_what_is_wrong_is_said(bench: ModuleType) -> None:
    assert bench.wrong(report()) == []
    assert "levels off" in bench.wrong(report(levels=1.2))[0]
    assert "levels off" in bench.wrong(report(levels=float("nan")))[0]
    assert "golden tiny-64" in bench.wrong(report(golden=0.1))[0]
    assert "relative error" in bench.wrong(report(error=0.1))[0]
    full = report(error=1e-3) | {"precision": "fp32"}
    assert "relative error" in bench.wrong(full)[0]
    failed = report() | {"failed": {"job": "no worker"}}
    failed["processes"] = [{"precision": "fp32", "state": "limited", "failed": "OOM"}]
    failed["network"][0] = {"name": "GpenCuda fp16", "failed": "no kernel image"}
    found = bench.wrong(failed)
    assert len(found) == 3 and all(any(why in one for one in found) for why in ("OOM", "kernel"))
    assert "no worker" in bench.table(failed)
    for differences in ([0.2, None], [5.0, 0.1]):
        other = report()
        other["detection"]["differences"] = differences
        assert "detection" in bench.wrong(other)[0]


def test_golden_vectors_are_compared(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench.network.golden_errors("fp32", "cpu", ["tiny-64"])["tiny-64"]
    assert 0 < found["error"] < bench.network.BOUND["fp32"] and found["levels_999"] < 0.01
    from face_restore_worker.network import gpen_cuda

    whole = gpen_cuda.GpenCuda.__call__
    monkeypatch.setattr(gpen_cuda.GpenCuda, "__call__", lambda self, x: whole(self, x).flip(1))
    assert bench.network.golden_errors("fp32", "cpu", ["tiny-64"])["tiny-64"]["error"] > 0.1


def test_differences_are_counted_in_levels_of_a_photograph(bench: ModuleType) -> None:
    exact = torch.linspace(-0.9, 0.9, 3 * 64 * 64).view(1, 3, 64, 64)
    exact *= 0.16 / exact.std()
    for contrast in (1.0, 4.0):
        found = bench.network.differences((exact + 2 / 255) * contrast, exact * contrast)
        assert found["levels_mean"] == pytest.approx(1, abs=1e-3)
        assert found["levels_999"] == pytest.approx(1, abs=1e-3)
    assert bench.network.differences(exact, exact)["error"] == 0


def test_memory_is_limited_to_a_share(bench: ModuleType) -> None:
    assert bench.network.limit_memory(4, 140 * 10**9) == pytest.approx(4 / 140)
    assert bench.network.limit_memory(24, 8 * 10**9) == 1


def test_a_part_that_fails_leaves_the_others(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no such driver")

    monkeypatch.setattr(bench.network, "compare", broken)
    command = "--device cpu --size 64 --parts network,golden --golden tiny-64 --precisions fp32"
    found = bench.measure(bench.options(command.split()))
    assert found["failed"] == {"network": "RuntimeError: no such driver"}
    assert set(found["golden"]["fp32"]) == {"tiny-64"} and len(bench.wrong(found)) == 1
    assert "no such driver" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--peers eager,tensorrt", "--parts tea", "--precisions fp8"])
def test_unknown_words_are_refused(
    bench: ModuleType, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.options(wrong.split())
    assert "not among" in capsys.readouterr().err


def test_the_detectors_work_is_calculated(bench: ModuleType) -> None:
    found = bench.photograph.calculated("fp16")
    one, four, proposer, more = found.values()
    assert four["gflop"] == pytest.approx(4 * one["gflop"]) and 4 < one["gflop"] < 6
    assert four["gb"] == pytest.approx(4 * one["gb"], rel=0.01)
    assert 10 < one["peak_mb"] < 100 and 0.7 < proposer["gflop"] < 1 and more["peak_mb"] < 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_goes_through_everything() -> None:
    command = (
        "--device cpu --size 64 --rounds 1 --megapixels 1 --peers eager,reference,onnxruntime "
        "--precisions fp16 --golden tiny-64 --json"
    )
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command.split()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["failed"] == {} and list(found["golden"]) == ["fp16"]
    timed = [row["name"] for row in found["network"] if row.get("seconds")]
    assert len(timed) >= 5 and {"eager", "reference", "GpenCuda fp16"} <= set(timed)
    assert len(found["processes"]) == 3
    assert all(row["patches"] == 1 and row["steady"] > 0 for row in found["processes"])
    assert found["detection"]["faces"] == [1, 1, 1] and found["detection"]["stages"]["upload"] > 0
    assert found["job"]["found"] == 1 and found["job"]["worker"]["loaded"] > 0
