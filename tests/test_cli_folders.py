"""``face-restore restore`` with many pictures and many outputs: folders, going on, saved faces.

The backend is replaced by one that paints every face it is told of; test_cli_e2e.py uses the real
worker and models.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from face_restore_shared.errors import FaceRestoreError
from painter import Painter, run
from picture_files import album, photo, save_pillow
from PIL import Image


def test_faces_are_saved(tmp_path: Path, painter: Painter, source: Path) -> None:
    assert run(source, "-o", tmp_path / "b.png", "--save-faces", tmp_path / "faces") == 0
    names = sorted(p.name for p in (tmp_path / "faces").iterdir())
    assert names == [f"b-face{n}-{w}.png" for n in (1, 2, 3) for w in ("after", "before")]
    assert np.asarray(Image.open(tmp_path / "faces" / "b-face1-after.png")).mean() == 191


def test_faces_that_cannot_be_saved_are_told_before_the_work(
    tmp_path: Path, painter: Painter, source: Path
) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "b-face1-before.png").write_bytes(b"precious")
    for folder in (tmp_path / "faces", source):
        assert run(source, "-o", tmp_path / "b.png", "--save-faces", folder) == 1
        assert not (tmp_path / "b.png").exists() and painter.calls == []
    folder = tmp_path / "faces"
    assert run(source, "-o", tmp_path / "b.png", "--save-faces", folder, "--overwrite") == 0
    assert (folder / "b-face1-before.png").read_bytes() != b"precious"


def test_faces_of_a_killed_run_are_not_lost(
    tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there before the result, which says that a picture is done; going on keeps them."""
    folder, faces = album(tmp_path, 2), tmp_path / "faces"
    command = [folder, "-o", tmp_path / "out", "--save-faces", faces]

    def killed(*_: object, **__: object) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("face_restore_worker.cli.outputs.write_result", killed)
        assert run(*command) == 130
    assert sorted(p.name for p in faces.iterdir())[0] == "0-face1-after.png"
    before = {p: p.stat().st_mtime_ns for p in faces.iterdir()}
    assert run(*command) == 0
    assert len(list(faces.iterdir())) == 12 and len(list((tmp_path / "out").iterdir())) == 2
    assert {p: p.stat().st_mtime_ns for p in before} == before
    # What is not this picture's stays: neither replaced nor taken for done.
    (faces / "0-face1-after.png").write_bytes(b"precious")
    (tmp_path / "out" / "0.png").unlink()
    assert run(*command) == 1
    assert (faces / "0-face1-after.png").read_bytes() == b"precious"
    assert not (tmp_path / "out" / "0.png").exists()


def test_faces_of_names_that_differ_in_the_extension_alone(
    tmp_path: Path, painter: Painter
) -> None:
    folder, faces = album(tmp_path, 1), tmp_path / "faces"
    for name in ("0.tif", "0-tif.png"):
        save_pillow(folder / name, photo())
    assert run(folder, "-o", tmp_path / "out", "--save-faces", faces) == 0
    stems = {p.name.partition("-face")[0] for p in faces.iterdir()}
    assert stems == {"0", "0-tif", "0-tif-2"}
    assert len(list(faces.iterdir())) == 18


def test_a_folder_goes_on_after_a_bad_picture_and_lists_it(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = album(tmp_path)
    (folder / "1.png").write_bytes(b"not a picture")
    assert run(folder, "-o", tmp_path / "out") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "2.png"]
    err = capsys.readouterr().err
    assert "3 pictures: 2 restored, 1 failed." in err
    assert "plain text" in err.partition("These failed:")[2]


def test_a_folder_run_goes_on_where_it_stopped(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = album(tmp_path)

    def interrupt(number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    painter.before = interrupt
    assert run(folder, "-o", tmp_path / "out") == 130
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["0.png"]
    assert "again to go on" in capsys.readouterr().err
    painter.before = lambda number: None
    painter.calls.clear()
    assert run(folder, "-o", tmp_path / "out") == 0
    assert len(painter.calls) == 2
    assert "2 restored, 1 done before" in capsys.readouterr().err
    painter.calls.clear()
    assert run(folder, "-o", tmp_path / "out", "--overwrite") == 0
    assert len(painter.calls) == 3


def test_a_cancelled_job_ends_the_run_as_ctrl_c_does(tmp_path: Path, painter: Painter) -> None:
    def cancel(number: int) -> None:
        raise FaceRestoreError("Cancelled.", code="cancelled")

    painter.before = cancel
    assert run(album(tmp_path), "-o", tmp_path / "out") == 130


def test_outputs_older_than_their_inputs_are_not_replaced(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = album(tmp_path, 1)
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "0.png"
    old.write_bytes(b"precious")
    os.utime(old, (1, 1))
    assert run(folder, "-o", tmp_path / "out") == 1
    assert old.read_bytes() == b"precious"
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["model-missing", "checkpoint-unsafe", "licence-declined"])
def test_an_error_that_meets_all_pictures_stops_the_run(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    def fail(number: int) -> None:
        raise FaceRestoreError("No such model.", hint="Get it.", code=code)

    painter.before = fail
    assert run(album(tmp_path), "-o", tmp_path / "out") == (4 if "licence" in code else 3)
    err = capsys.readouterr().err
    assert "2 not begun" in err and "Get it." in err


def test_the_input_is_never_overwritten(tmp_path: Path, painter: Painter) -> None:
    folder = album(tmp_path, 1)
    source = folder / "0.png"
    before = source.read_bytes()
    (tmp_path / "link.png").symlink_to(source)
    assert run(source, "-o", source, "--overwrite") == 1
    assert run(source, "-o", tmp_path / "link.png", "--overwrite") == 1
    assert run(folder, "-o", folder, "--overwrite") == 2
    assert source.read_bytes() == before
    assert painter.calls == []
