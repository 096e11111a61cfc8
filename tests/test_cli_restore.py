"""``face-restore restore`` around the work itself: files, failures, reports, statuses.

The backend is replaced by one that paints every face it is told of; test_cli_e2e.py uses the real
worker and models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import DetectOptions, RestoreOptions
from face_restore_worker.cli import backend as backends
from face_restore_worker.cli.main import main
from face_restore_worker.images.read import read_image
from face_restore_worker.pipeline.types import Face, RestoreOutcome
from faces import face_at, patch_at
from picture_files import photo, save_pillow, save_png16
from PIL import Image

PLACES = [(40, 20), (4, 8), (22, 28)]


class Painter:
    """A backend that knows three faces and paints them with one colour."""

    def __init__(self) -> None:
        self.places = list(PLACES)
        self.colour = (0.9, 0.1, 0.2)
        self.calls: list[dict[str, Any]] = []
        self.before: Callable[[int], None] = lambda number: None

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def detect(
        self, image: np.ndarray, options: DetectOptions, selection: np.ndarray | None
    ) -> tuple[list[Face], str]:
        self.calls.append({"detect": options, "selection": selection})
        return [face_at(x, y) for x, y in self.places], "painter"

    def restore(
        self,
        image: np.ndarray,
        *,
        detect: DetectOptions,
        restore: RestoreOptions,
        faces: Sequence[Face] | None,
        selection: np.ndarray | None,
        listener: Callable[[str, int, int, float], None],
    ) -> RestoreOutcome:
        self.before(sum("restore" in call for call in self.calls))
        self.calls.append({"restore": restore, "detect": detect, "selection": selection})
        places = self.places
        if faces is not None:
            places = [(int(face.box[0]), int(face.box[1])) for face in faces]
        for number in range(len(places)):
            listener("restoring", number + 1, len(places), number / len(places))
        aligned = 32 if restore.return_aligned else 0
        patches = [
            patch_at(x, y, self.colour, strength=restore.strength, aligned=aligned)
            for x, y in places
        ]
        return RestoreOutcome(
            patches,
            [patch.face for patch in patches],
            "painter-1",
            "the painter",
            "painter",
            "easel",
            ["paint is wet"],
            {"restoring": 0.5},
        )


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    made = Painter()
    monkeypatch.setattr(backends, "open_backend", lambda args, tell: made)
    return made


def run(*arguments: object) -> int:
    return main(["restore", *map(str, arguments)])


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


def test_options_reach_the_pipeline(tmp_path: Path, painter: Painter) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
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


def test_faces_by_number_from_left_to_right(tmp_path: Path, painter: Painter) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert run(source, "-o", tmp_path / "b.png", "--faces", "1,3") == 0
    result = read_image(tmp_path / "b.png").pixels
    changed = [(result[y + 8, x + 8] != photo()[y + 8, x + 8]).any() for x, y in sorted(PLACES)]
    assert changed == [True, False, True]


def test_a_face_that_is_not_there(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert run(source, "-o", tmp_path / "b.png", "--faces", "2-4") == 1
    assert "no face 4" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


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
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.places = []
    source = save_pillow(tmp_path / "a.png", photo())
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


def test_layers_take_the_strength_as_opacity(tmp_path: Path, painter: Painter) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert run(source, "-o", tmp_path / "b.ora", "--strength", 0.6) == 0
    assert painter.calls[0]["restore"].strength == 1.0
    import zipfile

    with zipfile.ZipFile(tmp_path / "b.ora") as archive:
        assert b'opacity="0.6000"' in archive.read("stack.xml")


def test_faces_are_saved(tmp_path: Path, painter: Painter) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert run(source, "-o", tmp_path / "b.png", "--save-faces", tmp_path / "faces") == 0
    names = sorted(p.name for p in (tmp_path / "faces").iterdir())
    assert names == [f"b-face{n}-{w}.png" for n in (1, 2, 3) for w in ("after", "before")]
    assert np.asarray(Image.open(tmp_path / "faces" / "b-face1-after.png")).mean() == 191


def test_faces_that_cannot_be_saved_are_told_before_the_work(
    tmp_path: Path, painter: Painter
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
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


def test_json(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
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


def album(tmp_path: Path, count: int = 3) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(count):
        save_pillow(folder / f"{number}.png", photo())
    return folder


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


@pytest.mark.parametrize(("size", "is_told"), [("512", True), ("16", False)])
def test_a_size_that_is_not_the_checkpoints_is_told(
    tmp_path: Path,
    painter: Painter,
    capsys: pytest.CaptureFixture[str],
    size: str,
    is_told: bool,
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert run(source, "-o", tmp_path / "b.png", "--expected-size", size) == 0
    said = "--size 512 has no effect: the checkpoint is of size 16" in capsys.readouterr().err
    assert said == is_told


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


def test_an_existing_output_is_refused_before_the_work(tmp_path: Path, painter: Painter) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    (tmp_path / "b.png").write_bytes(b"precious")
    assert run(source, "-o", tmp_path / "b.png") == 1
    assert painter.calls == []
    assert run(source, "-o", tmp_path / "b.bmp") == 1
    assert run(source, "-o", tmp_path / "no" / "b.png") == 1
    assert painter.calls == []


def test_a_selection_of_another_size(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    save_pillow(tmp_path / "mask.png", np.zeros((40, 40), np.uint8))
    selection = tmp_path / "mask.png"
    assert run(source, "-o", tmp_path / "b.png", "--selection", selection) == 1
    assert "40 x 40" in capsys.readouterr().err


def test_quiet_prints_errors_only(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert run(source, "-o", tmp_path / "b.png", "-q") == 0
    assert capsys.readouterr() == ("", "")


def test_detect(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_pillow(tmp_path / "a.png", photo())
    assert main(["detect", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 faces (painter)" in lines[0]
    assert lines[1].split() == ["1", "at", "4,", "8,", "16", "x", "16", "pixels,", "score", "0.90"]
    assert main(["detect", str(source), str(tmp_path / "no.png"), "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [f["status"] for f in document["files"]] == ["detected", "failed"]
    assert (document["summary"]["detected"], document["summary"]["failed"]) == (1, 1)
