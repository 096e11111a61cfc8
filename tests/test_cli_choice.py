"""Faces chosen by number, and what ``detect`` tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from face_restore_worker.cli import backend as backends
from face_restore_worker.cli.main import main
from painter import Painter, run
from picture_files import photo, save_pillow


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    made = Painter()
    monkeypatch.setattr(backends, "open_backend", lambda args, tell: made)
    return made


def test_detect_tells_how_the_search_was_limited(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    painter.notes = ["It looked for large faces only."]
    assert main(["detect", str(source)]) == 0
    assert "note: " in (err := capsys.readouterr().err) and painter.notes[0] in err
    assert main(["detect", str(source), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["notes"] == painter.notes
    # Faces chosen by number were searched for by detect.
    assert run(source, "-o", tmp_path / "b.png", "--faces", "1") == 0
    assert painter.notes[0] in capsys.readouterr().err


def test_detect_of_a_face_that_is_not_there_fails(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert main(["detect", str(source), "--faces", "2-3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["2", "3"]
    assert main(["detect", str(source), "--faces", "4"]) == 1
    assert "3 faces, so there is no face 4" in capsys.readouterr().err


def test_a_chosen_face_keeps_its_number(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    command = [source, "-o", tmp_path / "b.png", "--faces", "3,2", "--format", "json"]
    assert run(*command) == 0
    (report,) = json.loads(capsys.readouterr().out)["files"]
    assert [(f["number"], f["box"][0]) for f in report["faces"]] == [(2, 22), (3, 40)]
    assert report["detector"] == "painter"
