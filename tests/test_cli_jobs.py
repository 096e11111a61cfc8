"""From arguments to pictures and outputs."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from face_restore_shared.errors import FaceRestoreError
from face_restore_worker.cli.jobs import Plan, UsageError, is_done, plan, sources


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """album/: two pictures, a text, a hidden picture, and sub/ with one picture."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/c.gif"):
        (folder / name).write_bytes(b"x")
    return folder


def pairs(found: Plan) -> list[tuple[str, str]]:
    return [(job.source.as_posix(), job.target.as_posix()) for job in found.jobs]


def test_one_file(album: Path) -> None:
    found = plan(["album/b.jpg"], "out.png")
    assert pairs(found) == [("album/b.jpg", "out.png")] and not found.is_folder


@pytest.mark.parametrize("output", ["out", "out/"])
def test_one_file_into_a_folder(album: Path, output: str) -> None:
    found = plan(["album/b.jpg"], output)
    assert pairs(found) == [("album/b.jpg", "out/b.jpg")] and found.is_folder


def test_a_folder_without_and_with_its_sub_folders(album: Path) -> None:
    assert pairs(plan(["album"], "out")) == [
        ("album/a.PNG", "out/a.PNG"),
        ("album/b.jpg", "out/b.jpg"),
    ]
    # GIF cannot be written: it becomes PNG.
    assert pairs(plan(["album"], "out", recursive=True))[2:] == [
        ("album/sub/c.gif", "out/sub/c.png")
    ]


def test_extension_of_all_outputs(album: Path) -> None:
    found = plan(["album"], "out", extension=".tif")
    assert [target for _, target in pairs(found)] == ["out/a.tif", "out/b.tif"]


def test_patterns_keep_the_layout_below_the_first_wildcard(album: Path) -> None:
    assert pairs(plan(["album/**/*.gif"], "out")) == [("album/sub/c.gif", "out/sub/c.png")]
    assert pairs(plan(["album/*.jpg"], "out")) == [("album/b.jpg", "out/b.jpg")]
    assert pairs(plan(["alb?m/sub/*.gif"], "out")) == [("album/sub/c.gif", "out/album/sub/c.png")]


def test_a_file_with_brackets_in_its_name_is_no_pattern(album: Path) -> None:
    (album / "c[1].jpg").write_bytes(b"x")
    assert pairs(plan(["album/c[1].jpg"], "out.jpg")) == [("album/c[1].jpg", "out.jpg")]


def test_the_output_folder_inside_the_input_is_left_out(album: Path) -> None:
    (album / "done").mkdir()
    (album / "done" / "old.jpg").write_bytes(b"x")
    found = plan(["album"], "album/done", recursive=True)
    assert "album/done/old.jpg" not in [source for source, _ in pairs(found)]
    found = plan(["album/**/*.jpg"], "album/done")
    assert [source for source, _ in pairs(found)] == ["album/b.jpg"]


def test_a_picture_named_twice_is_done_once(album: Path) -> None:
    found = plan(["album/b.jpg", "album", "album/*.jpg"], "out")
    assert [s for s, _ in pairs(found)].count("album/b.jpg") == 1


def test_same_names_of_two_kinds_get_their_kind(album: Path) -> None:
    for name in ("x.jpg", "x.webp"):
        (album / name).write_bytes(b"x")
    found = plan(["album/x.*"], "out", extension=".png")
    assert [target for _, target in pairs(found)] == ["out/x-jpg.png", "out/x-webp.png"]
    assert len(found.notes) == 2


def test_same_names_from_two_folders_get_a_number(album: Path) -> None:
    (album / "sub" / "b.jpg").write_bytes(b"x")
    (album / "b-2.jpg").write_bytes(b"x")
    found = plan(["album/b.jpg", "album/sub/b.jpg", "album/b-2.jpg"], "out")
    assert [target for _, target in pairs(found)] == ["out/b.jpg", "out/b-3.jpg", "out/b-2.jpg"]


def test_names_that_differ_in_case_or_unicode_form_collide(album: Path) -> None:
    names = ["Ä.jpg", unicodedata.normalize("NFD", "Ä.jpg"), "ä.JPG"]
    for name in names:
        (album / name).write_bytes(b"x")
    if len({p.name for p in album.iterdir()} & set(names)) < 3:
        pytest.skip("this file system takes them for one")
    targets = [t for s, t in pairs(plan(["album"], "out")) if Path(s).name in names]
    folded = {unicodedata.normalize("NFC", t).casefold() for t in targets}
    assert len(folded) == 3


def test_nothing_found_is_said(album: Path) -> None:
    empty = album / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"no pictures in .*empty") as caught:
        plan([str(empty)], "out")
    assert caught.value.code == "no-pictures"
    (empty / "deep").mkdir()
    (empty / "deep" / "a.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="--recursive"):
        plan([str(empty)], "out")
    with pytest.raises(UsageError, match="No picture matches"):
        plan(["album/*.xyz"], "out")


def test_an_empty_folder_among_others_is_remarked(album: Path) -> None:
    (album / "empty").mkdir()
    found = plan(["album/b.jpg", "album/empty"], "out")
    assert len(found.jobs) == 1 and "holds no pictures" in found.notes[0]


def test_outputs_that_do_not_fit(album: Path) -> None:
    with pytest.raises(UsageError, match="name of one picture"):
        plan(["album"], "out.jpg")
    with pytest.raises(UsageError, match="is a file"):
        plan(["album"], "album/b.jpg")
    for output in ("album", "album/.", "album/../album"):
        with pytest.raises(UsageError, match="input itself") as caught:
            plan(["album"], output)
        assert caught.value.code == "would-overwrite-input"


def test_an_output_that_is_another_input(album: Path) -> None:
    (album / "sub" / "b.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="another input"):
        plan(["album/b.jpg", "album/sub/b.jpg"], "album/sub")


def test_a_missing_file_stays_in_the_list(album: Path) -> None:
    assert pairs(plan(["nowhere.jpg", "album/b.jpg"], "out"))[0] == (
        "nowhere.jpg",
        "out/nowhere.jpg",
    )


def test_done_means_newer_than_the_input(album: Path) -> None:
    (job,) = plan(["album/b.jpg"], "out.jpg").jobs
    assert not is_done(job)
    Path("out.jpg").write_bytes(b"x")
    os.utime("out.jpg", ns=(0, job.source.stat().st_mtime_ns))
    assert is_done(job)
    os.utime("out.jpg", ns=(0, job.source.stat().st_mtime_ns - 1))
    assert not is_done(job)


def test_names_of_any_bytes(album: Path) -> None:
    name = os.fsencode(album) + b"/sub/\xff\xfe \n.jpg"
    try:
        Path(os.fsdecode(name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system wants Unicode")
    assert name in [os.fsencode(path) for path in sources([str(album / "sub")])]
    targets = [os.fsencode(job.target.name) for job in plan(["album/sub"], "out").jobs]
    assert b"\xff\xfe \n.jpg" in targets


def test_errors_are_usage_errors() -> None:
    assert issubclass(UsageError, FaceRestoreError)
