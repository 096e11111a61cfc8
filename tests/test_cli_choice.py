"""Faces chosen by number, and what ``detect`` tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from face_restore_worker.cli.main import main
from face_restore_worker.images.read import read_image
from painter import PLACES, Painter, run
from picture_files import photo


def test_faces_by_number_from_left_to_right(tmp_path: Path, painter: Painter, source: Path) -> None:
    assert run(source, "-o", tmp_path / "b.png", "--faces", "1,3") == 0
    result = read_image(tmp_path / "b.png").pixels
    changed = [(result[y + 8, x + 8] != photo()[y + 8, x + 8]).any() for x, y in sorted(PLACES)]
    assert changed == [True, False, True]


def test_a_face_that_is_not_there(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "-o", tmp_path / "b.png", "--faces", "2-4") == 1
    assert "no face 4" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_detect(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 faces (painter)" in lines[0]
    assert lines[1].split() == ["1", "at", "4,", "8,", "16", "x", "16", "pixels,", "score", "0.90"]
    assert main(["detect", str(source), str(tmp_path / "no.png"), "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [f["status"] for f in document["files"]] == ["detected", "failed"]
    assert (document["summary"]["detected"], document["summary"]["failed"]) == (1, 1)


def test_detect_tells_how_the_search_was_limited(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.notes = ["It looked for large faces only."]
    assert main(["detect", str(source)]) == 0
    assert "note: " in (err := capsys.readouterr().err) and painter.notes[0] in err
    assert main(["detect", str(source), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["notes"] == painter.notes
    # Faces chosen by number were searched for by detect.
    assert run(source, "-o", tmp_path / "b.png", "--faces", "1") == 0
    assert painter.notes[0] in capsys.readouterr().err


def test_detect_of_a_face_that_is_not_there_fails(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(source), "--faces", "2-3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["2", "3"]
    assert main(["detect", str(source), "--faces", "4"]) == 1
    assert "3 faces, so there is no face 4" in capsys.readouterr().err


def test_a_chosen_face_keeps_its_number(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [source, "-o", tmp_path / "b.png", "--faces", "3,2", "--format", "json"]
    assert run(*command) == 0
    (report,) = json.loads(capsys.readouterr().out)["files"]
    assert [(f["number"], f["box"][0]) for f in report["faces"]] == [(2, 22), (3, 40)]
    assert report["detector"] == "painter"
