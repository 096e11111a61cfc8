"""The real thing: real command, real worker process, built-in models, a real photograph."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from cli_process import Home, home, wait_for
from face_restore_shared import connection
from face_restore_worker.client.client import WorkerClient
from face_restore_worker.images.read import read_image
from PIL import Image
from skimage import data


def degraded(size: int = 512) -> np.ndarray:
    """scikit-image's astronaut, half its resolution lost, with noise: (size, size, 3) uint8."""
    small = cv2.resize(data.astronaut(), (256, 256), interpolation=cv2.INTER_AREA)
    whole = cv2.resize(small, (size, size)).astype(np.float64)
    whole += np.random.default_rng(1).normal(0, 12, whole.shape)
    return np.clip(np.rint(whole), 0, 255).astype(np.uint8)


FACE = np.s_[60:190, 170:280]  # of the 512-pixel astronaut


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home(tmp_path_factory.mktemp("home")) as made:
        yield made


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def wait_until_busy(of: Home, process: subprocess.Popen[str]) -> None:
    """Wait until the worker is busy or the process has ended; one connection misses nothing."""
    found = connection.read(of.folder / "state" / "worker.json")
    assert found is not None
    with WorkerClient.connect(found) as client:
        wait_for(lambda: client.status().state == "busy" or process.poll() is not None)


def status(of: Home) -> dict[str, object]:
    done = of.run("status", "--format", "json")
    return json.loads(done.stdout) if done.returncode == 0 else {"running": False}


def test_restore_through_the_worker(real: Home, tmp_path: Path) -> None:
    source, target = tmp_path / "in put.png", tmp_path / "out.png"
    Image.fromarray(degraded()).save(source, dpi=(300, 300))
    done = real.run("restore", source, "-o", target, "--format", "json")
    assert done.returncode == 0, said(done)
    (report,) = json.loads(done.stdout)["files"]
    assert report["status"] == "restored"
    assert report["model"] == "built-in, not GPEN"
    assert "models download gpen-bfr-2048" in done.stderr
    boxes = [np.array(face["box"]) for face in report["faces"]]
    assert any(b[0] < 225 < b[2] and b[1] < 120 < b[3] for b in boxes)

    before, after = degraded().astype(np.float64), read_image(target).pixels.astype(np.float64)
    truth = data.astronaut().astype(np.float64)
    assert after.shape == before.shape
    changed = np.abs(after - before).max(axis=2) > 0
    assert changed[FACE].mean() > 0.3
    # Far from all faces nothing changes at all.
    assert not changed[:40].any() and not changed[:, 400:].any()
    error = [((picture - truth)[FACE] ** 2).mean() for picture in (before, after)]
    assert error[1] < error[0]
    meta = read_image(target).metadata
    assert meta.resolution == pytest.approx((300, 300), rel=1e-3)


@pytest.mark.slow
def test_worker_and_process_agree(real: Home, tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(degraded()).save(source)
    for name, extra in (("worker.png", []), ("here.png", ["--no-worker"])):
        done = real.run("restore", source, "-o", tmp_path / name, "--faces", "largest", *extra)
        assert done.returncode == 0, said(done)
    one, other = (read_image(tmp_path / name).pixels for name in ("worker.png", "here.png"))
    # Patches cross the wire as float32, so only the number of threads could make a difference.
    assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.slow
def test_detect_strength_and_layers(real: Home, tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(degraded()).save(source)
    done = real.run("detect", source, "--format", "json")
    (report,) = json.loads(done.stdout)["files"]
    largest = max(report["faces"], key=lambda f: f["box"][3] - f["box"][1])["number"]
    done = real.run("restore", source, "-o", tmp_path / "a.png", "--faces", largest)
    assert done.returncode == 0, said(done)
    assert "1 face restored" in done.stdout
    done = real.run("restore", source, "-o", tmp_path / "b.png", "--strength", 0)
    assert done.returncode == 0, said(done)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, degraded())
    done = real.run("restore", source, "-o", tmp_path / "c.ora", "--faces", largest)
    assert done.returncode == 0, said(done)
    import zipfile

    with zipfile.ZipFile(tmp_path / "c.ora") as archive:
        (tmp_path / "merged.png").write_bytes(archive.read("mergedimage.png"))
    merged = read_image(tmp_path / "merged.png").pixels.astype(int)
    assert np.abs(merged - read_image(tmp_path / "a.png").pixels).max() <= 1


def test_aligned_and_saved_faces(real: Home, tmp_path: Path) -> None:
    crop = degraded()[20:276, 95:351]
    Image.fromarray(np.ascontiguousarray(crop)).save(tmp_path / "crop.png")
    done = real.run(
        *("restore", tmp_path / "crop.png", "-o", tmp_path / "out.png", "--aligned"),
        *("--save-faces", tmp_path / "faces"),
    )
    assert done.returncode == 0, said(done)
    assert (read_image(tmp_path / "out.png").pixels != crop).mean() > 0.5
    names = sorted(p.name for p in (tmp_path / "faces").iterdir())
    assert names == ["out-face1-after.png", "out-face1-before.png"]


def test_a_selection_without_faces_changes_nothing(real: Home, tmp_path: Path) -> None:
    source = tmp_path / "in.jpg"
    Image.fromarray(degraded()).save(source)
    Image.fromarray(np.zeros((512, 512), np.uint8)).save(tmp_path / "mask.png")
    done = real.run(
        *("restore", source, "-o", tmp_path / "out.jpg", "--selection", tmp_path / "mask.png")
    )
    assert done.returncode == 0, said(done)
    assert "no face found" in done.stdout
    assert (tmp_path / "out.jpg").read_bytes() == source.read_bytes()


def test_blog_form_with_a_folder_of_odd_names(real: Home, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("two words.jpg", "emoji 😀.jpg", "new\nline.jpg"):
        Image.fromarray(degraded()).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "two words.jpg").read_bytes()[:5000])
    done = real.run("--indir", folder, "--outdir", tmp_path / "out")
    assert done.returncode == 1, said(done)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"two words.jpg", "emoji 😀.jpg", "new\nline.jpg"}
    assert "broken.jpg is damaged" in done.stderr


@pytest.mark.slow
def test_status_and_logs(real: Home) -> None:
    real.run("worker", "start")
    found = status(real)
    assert found["running"] and found["state"] in ("ready", "busy", "loading")
    text = real.run("status").stdout
    assert f"{found['pid']}" in text and "device:" in text
    assert "Worker" in real.run("worker", "logs").stdout
    done = real.run("worker", "start")
    assert "runs already" in done.stdout
    done = real.run("doctor", "--full", "--format", "json")
    assert done.returncode == 0, said(done)
    checks = {c["topic"]: c["level"] for c in json.loads(done.stdout)["checks"]}
    assert (checks["worker"], checks["small job"]) == ("ok", "ok")


def crowd(path: Path, rows: int = 2) -> Path:
    """A picture with many faces: three in a row, so that a job takes some seconds or long."""
    Image.fromarray(np.tile(degraded(), (rows, 3, 1))).save(path)
    return path


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_started_once_more(real: Home, tmp_path: Path) -> None:
    for rows in (2, 6, 18):  # on a busy machine the worker may be done before it is killed
        source = crowd(tmp_path / "crowd.png", rows)
        assert real.run("worker", "start").returncode == 0
        first = status(real)["pid"]
        process = real.start("restore", source, "-o", tmp_path / "out.png", "--overwrite")
        wait_until_busy(real, process)
        os.kill(int(str(first)), signal.SIGKILL)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
        if f"{first}" in err:
            break
    assert f"{first}" in err and "again" in err
    assert (tmp_path / "out.png").exists()
    assert status(real)["pid"] != first


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupt_cancels_and_leaves_nothing(
    real: Home, tmp_path: Path, number: signal.Signals
) -> None:
    source = crowd(tmp_path / "crowd.png", 20)
    assert real.run("worker", "start").returncode == 0
    process = real.start("restore", source, "-o", tmp_path / "out.png")
    wait_until_busy(real, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, out + err
    assert "interrupted" in err and "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["crowd.png"]
    wait_for(lambda: status(real).get("state") == "ready")
