"""``face-restore restore`` around the work itself: files, failures, reports, statuses.

The backend is replaced by one that paints every face it is told of; test_cli_e2e.py uses the real
worker and models.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from face_restore_shared.schema import DetectOptions, RestoreOptions
from face_restore_worker.cli.main import main
from face_restore_worker.images.read import read_image
from painter import Painter, run
from picture_files import photo, save_pillow, save_png16


def test_one_picture(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_png16(tmp_path / "a.png", photo(dtype=np.uint16))
    assert run(source, "-o", tmp_path / "b.png") == 0
    result = read_image(tmp_path / "b.png")
    assert result.bits == 16
    assert result.pixels[16, 12] == pytest.approx(np.array(painter.colour) * 65535, abs=1)
    np.testing.assert_array_equal(result.pixels[:8], photo(dtype=np.uint16)[:8])
    out, err = capsys.readouterr()
    assert "3 faces restored (the painter, easel)" in out
    assert "paint is wet" in err


def test_options_reach_the_pipeline(tmp_path: Path, painter: Painter, source: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:60] = 255
    save_pillow(tmp_path / "mask.png", mask)
    status = run(
        *(source, "-o", tmp_path / "b.png", "--strength", "80%", "--template", "gpen"),
        *("--mask", "oval", "--mask-softness", 2, "--no-keep-colour", "--precision", "bf16"),
        *("--model", "gpen-bfr-512", "--detector", "builtin-detector", "--threshold", 0.4),
        *("--min-face", 30, "--max-faces", 5, "--rotations", "--largest"),
        *("--selection", tmp_path / "mask.png"),
    )
    assert status == 0
    (call,) = painter.calls
    assert call["restore"] == RestoreOptions(
        model="gpen-bfr-512",
        strength=0.8,
        template="gpen",
        mask="oval",
        mask_softness=2,
        keep_colour=False,
        precision="bf16",
    )
    assert call["detect"] == DetectOptions(
        detector="builtin-detector",
        threshold=0.4,
        min_face=30,
        max_faces=5,
        rotations=True,
        only_largest=True,
    )
    np.testing.assert_array_equal(call["selection"], mask)


def test_a_models_file_is_made_absolute(
    tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pillow(tmp_path / "a.png", photo())
    assert run("a.png", "-o", "b.png", "--model", "mine.pth") == 0
    assert painter.calls[0]["restore"].model == str(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--faces", "0"],
        ["--faces", "x"],
        ["--strength", "1.2"],
        ["--quality", "0"],
        ["--device", "x"],
    ],
)
def test_wrong_values(tmp_path: Path, painter: Painter, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("a.png", "-o", "b.png", *wrong)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["--aligned", "--faces", "1"],
        ["--largest", "--faces", "1"],
        ["--mask-softness", "9"],
        ["--ext", ".bmp"],
    ],
)
def test_contradictions(tmp_path: Path, painter: Painter, wrong: list[str]) -> None:
    assert run("a.png", "-o", "b.png", *wrong) == 2


def test_what_an_aligned_face_makes_needless_is_said(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "-o", tmp_path / "b.png", "--aligned", "--template", "gpen") == 0
    assert "no effect" not in capsys.readouterr().err
    assert run(source, "-o", tmp_path / "c.png", "--aligned", "--mask", "oval") == 0
    assert "note: --mask has no effect: --aligned takes the whole" in capsys.readouterr().err
    ignored = ["--faces", "largest", "--largest", "--min-face", 30, "--max-faces", 2]
    ignored += ["--threshold", 0.3, "--rotations", "--detector", "x", "--mask-softness", 2]
    assert run(source, "-o", tmp_path / "d.png", "--aligned", *ignored) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    names = {word for word in map(str, ignored) if word.startswith("--")}
    assert names == {word for word in note.split() if word.startswith("--")} - {"--aligned"}
    assert "have no effect" in note


def test_no_face_copies_the_file_byte_for_byte(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.places = []
    source = save_pillow(tmp_path / "a.jpg", photo(), quality=40)
    assert run(source, "-o", tmp_path / "b.jpg") == 0
    assert (tmp_path / "b.jpg").read_bytes() == source.read_bytes()
    assert "no face found, written unchanged" in capsys.readouterr().out
    assert run(source, "-o", tmp_path / "b.png") == 0
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, read_image(source).pixels)


def test_no_face_names_the_options_that_may_have_kept_it_away(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.places = []
    mask = save_pillow(tmp_path / "mask.png", np.zeros((48, 64), np.uint8))
    assert run(source, "-o", tmp_path / "b.png") == 0
    assert "limited" not in capsys.readouterr().err
    narrow = ["--min-face", 200, "--threshold", 0.95, "--selection", mask]
    assert run(source, "-o", tmp_path / "c.png", *narrow) == 0
    said = capsys.readouterr().err
    assert "limited by --min-face 200 and --threshold 0.95 and --selection" in said
    assert run(source, "-o", tmp_path / "d.png", "--min-face", 200, "--faces", "1") == 1
    assert "limited by --min-face 200: without it" in capsys.readouterr().err
    assert main(["detect", str(source), "--threshold", "0.9"]) == 0
    assert "limited by --threshold 0.9" in capsys.readouterr().err
    assert main(["detect", str(source), "--threshold", "0.9", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_layers_take_the_strength_as_opacity(
    tmp_path: Path, painter: Painter, source: Path
) -> None:
    assert run(source, "-o", tmp_path / "b.ora", "--strength", 0.6) == 0
    assert painter.calls[0]["restore"].strength == 1.0
    import zipfile

    with zipfile.ZipFile(tmp_path / "b.ora") as archive:
        assert b'opacity="0.6000"' in archive.read("stack.xml")


def test_json(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "no.png", "-o", tmp_path / "out", "--format", "json") == 1
    document = json.loads(capsys.readouterr().out)
    first, second = document["files"]
    assert first["status"] == "restored" and first["output"] == str(tmp_path / "out" / "a.png")
    assert [face["number"] for face in first["faces"]] == [1, 2, 3]
    assert first["faces"][0]["box"] == [4, 8, 20, 24]
    assert len(first["faces"][0]["landmarks"]) == 5
    assert (first["model"], first["detector"]) == ("the painter", "painter")
    assert second["status"] == "failed" and second["error"]["code"] == "not-found"
    assert document["summary"] == {
        "restored": 1,
        "no_face": 0,
        "skipped": 0,
        "failed": 1,
        "detected": 0,
        "left": 0,
    }


@pytest.mark.parametrize(("size", "is_told"), [("512", True), ("16", False)])
def test_a_size_that_is_not_the_checkpoints_is_told(
    tmp_path: Path,
    painter: Painter,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    size: str,
    is_told: bool,
) -> None:
    assert run(source, "-o", tmp_path / "b.png", "--expected-size", size) == 0
    said = "--size 512 has no effect: the checkpoint is of size 16" in capsys.readouterr().err
    assert said == is_told


def test_an_existing_output_is_refused_before_the_work(
    tmp_path: Path, painter: Painter, source: Path
) -> None:
    (tmp_path / "b.png").write_bytes(b"precious")
    assert run(source, "-o", tmp_path / "b.png") == 1
    assert painter.calls == []
    assert run(source, "-o", tmp_path / "b.bmp") == 1
    assert run(source, "-o", tmp_path / "no" / "b.png") == 1
    assert painter.calls == []


def test_a_selection_of_another_size(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pillow(tmp_path / "mask.png", np.zeros((40, 40), np.uint8))
    selection = tmp_path / "mask.png"
    assert run(source, "-o", tmp_path / "b.png", "--selection", selection) == 1
    assert "40 x 40" in capsys.readouterr().err


def test_quiet_prints_errors_only(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "-o", tmp_path / "b.png", "-q") == 0
    assert capsys.readouterr() == ("", "")
