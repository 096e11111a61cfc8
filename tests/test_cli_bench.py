"""``face-restore bench``: its options, its tables, and the whole thing with a tiny network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import Home, home
from face_restore_worker.bench import report as reports
from face_restore_worker.bench.job import worker_options
from face_restore_worker.bench.scenes import scene
from face_restore_worker.bench.weights import Weights, random_state
from face_restore_worker.checkpoints.gpen import write_gpen_safetensors
from face_restore_worker.cli.main import main
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.pipeline.restore import Restorer
from face_restore_worker.server.process import parser


def tiny(folder: Path) -> Path:
    path = folder / "tiny.safetensors"
    architecture = GpenArchitecture.from_parameters(64, 2, 1 / 32, 16, 2)
    write_gpen_safetensors(random_state(architecture), path)
    return path


@pytest.mark.parametrize(
    "wrong",
    [
        ["--compare", "tensorrt"],
        ["--part", "network,tea"],
        ["--size", "2048", "--model", "gpen-bfr-2048"],
        ["--rounds", "0"],
        ["--faces", "1,0"],
        ["--json", "--markdown"],
    ],
)
def test_wrong_options(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *wrong])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_model_that_is_no_gpen_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--part", "network", "--model", "builtin-restorer", "--quiet"]) == 2
    assert "is no GPEN" in capsys.readouterr().err


@pytest.mark.slow
def test_network_with_a_peer_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from face_restore_worker.bench import variants

    known = variants.util.find_spec
    absent = {"openvino"}
    monkeypatch.setattr(
        variants.util, "find_spec", lambda name: None if name in absent else known(name)
    )
    options = ["--part", "network", "--model", str(tiny(tmp_path)), "--precision", "fp32"]
    status = main(["bench", *options, "--compare", "openvino", "--rounds", "1", "--json"])
    out, err = capsys.readouterr()
    assert status == 1  # not everything asked for was measured
    assert "Not timed: OpenVINO, f32: openvino" in err and "pip install openvino" in err
    report = json.loads(out)
    assert report["size"] == 64 and report["model"] == "tiny.safetensors"
    (row,) = report["network"]["variants"]
    assert row["key"] == "fp32" and row["median"] > 0 and row["ratios"] == {"fp32": 1.0}
    assert [gap["label"] for gap in report["network"]["missing"]] == [
        "OpenVINO, f32",
        "OpenVINO, its default",
    ]
    machine = report["machine"]
    assert machine["cores"] >= 1 and machine["torch"] and machine["processor"]


def test_its_worker_ends_with_it(tmp_path: Path) -> None:
    weights = Weights(tmp_path / "tiny.safetensors", "tiny", 64)
    taken = parser().parse_args(worker_options(weights, "cpu", 1))
    assert taken.for_process == os.getpid() and taken.keep


@pytest.mark.slow
def test_job_and_start_with_a_real_worker(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    with home(folder) as made:
        started = made.run("worker", "start")
        assert started.returncode == 0, started.stderr
        before = made.run("status", "--format", "json").stdout
        done = bench(made, tmp_path)
        assert done["job"]["photographs"][0]["found"] == 2
        (job,) = done["job"]["photographs"]
        assert (job["megapixels"], job["faces"]) == (1.0, 2)
        assert job["total"] >= job["stages"]["restoring"] > 0
        assert job["stages"]["detecting"] > 0 and job["stages"]["writing"] > 0
        assert 0 < done["start"]["worker"]["answers"] <= done["start"]["worker"]["loaded"]
        assert done["start"]["commands"][0]["what"] == "face-restore --help"
        # The user's own worker goes on as it was.
        pid = json.loads(before)["pid"]
        assert json.loads(made.run("status", "--format", "json").stdout)["pid"] == pid


def bench(made: Home, folder: Path) -> dict[str, Any]:
    options = ["--part", "job,start", "--model", tiny(folder), "--rounds", "1", "--json"]
    done = made.run("bench", *options, "--megapixels", "1", "--faces", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_scenes_hold_the_faces_that_are_said() -> None:
    picture, targets = scene(0.6, 3)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert abs(picture.shape[0] * picture.shape[1] / 0.6e6 - 1) < 0.02
    assert abs(picture.shape[1] / picture.shape[0] - 1.5) < 0.02
    found = sorted(Restorer(device="cpu").detect(picture), key=lambda face: face.centre[0])
    assert len(found) == len(targets) == 3
    for face, target in zip(found, targets, strict=True):
        error = np.abs(face.landmarks - np.array(target.landmarks)).max()
        assert error < 0.08 * face.height


# --- tables ---------------------------------------------------------------------------------------


def canned() -> dict[str, Any]:
    ours = {
        "key": "fp32",
        "label": "this project, fp32",
        "version": "",
        "median": 2.5,
        "fastest": 2.4,
        "slowest": 2.75,
        "first": 3.0,
        "load": 0.25,
        "peak_gb_one_face": 1.5,
        "gpu_gb": None,
        "relative_error": 1.2e-6,
        "ratios": {"fp32": 1.0},
    }
    peer = ours | {
        "key": "openvino-f32",
        "label": "OpenVINO, f32",
        "version": "1.2",
        "median": 6.25,
        "relative_error": None,
        "ratios": {"fp32": 2.5},
    }
    machine = {
        "processor": "CPU 1",
        "cores": 4,
        "instructions": ["avx2"],
        "memory_gb": 16.0,
        "system": "Linux x86_64",
        "torch": "2.13",
        "load_average": 0.1,
    }
    gap = {"label": "ONNX Runtime", "why": "onnxruntime is not installed", "mend": "pip install x"}
    failed = {"key": "compile", "label": "torch.compile", "failed": "no room"}
    return {
        "date": "2026-01-02",
        "command": "face-restore bench --rounds 3",
        "machine": machine,
        "threads": 4,
        "model": "GPEN-BFR-2048",
        "others": 0.01,
        "network": {
            "variants": [ours, peer, failed],
            "own": ["fp32"],
            "missing": [gap],
            "on_gpu": False,
        },
    }


def test_text_names_everything_that_was_and_was_not_timed() -> None:
    text = reports.as_text(canned())
    lines = text.splitlines()
    assert "4 cores of CPU 1" in lines[0] and "busy" not in text
    (row,) = [line for line in lines if line.startswith("OpenVINO, f32 1.2")]
    assert row.split()[3:] == ["6.25", "2.40", "to", "2.75", "3.00", "0.250", "1.50", "-", "2.50"]
    assert "torch.compile" in text and "failed: no room" in text
    assert "not timed: onnxruntime is not installed" in text and "pip install x" in text


def test_markdown_is_a_table_with_date_versions_and_command() -> None:
    lines = reports.as_markdown(canned()).splitlines()
    assert lines[0].startswith("2026-01-02: 4 cores of CPU 1")
    assert "torch 2.13" in lines[0] and "`face-restore bench --rounds 3`" in lines[0]
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 6
    assert "| OpenVINO, f32 1.2 | 6.25 |" in table[3]


def test_a_busy_machine_is_said() -> None:
    report = canned()
    report["machine"]["load_average"] = 3.0
    report["others"] = 0.4
    for text in (reports.as_text(report), reports.as_markdown(report)):
        assert "load average 3 on 4 cores" in text and "took 40% of the processor" in text
