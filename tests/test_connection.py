"""The connection file and the folders: private, atomic, refused when they cannot be trusted."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import asdict, replace
from pathlib import Path

import platformdirs
import pytest
from face_restore_shared import connection, paths
from face_restore_shared.connection import Connection
from face_restore_shared.errors import ConnectionFileError, FaceRestoreError
from hypothesis import given
from hypothesis import strategies as st

GOOD = Connection("tcp://127.0.0.1:5555", "ab" * 32, 123, 1, "0.1.0", 1.5, "/log")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return paths.private_folder(tmp_path / "state") / "worker.json"


def test_round_trip_and_modes(file: Path) -> None:
    assert connection.read(file) is None
    connection.write(file, GOOD)
    assert connection.read(file) == GOOD
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_the_token_is_not_shown() -> None:
    assert GOOD.token not in repr(GOOD)
    assert GOOD.token not in json.dumps(GOOD.public())


def test_replacing_is_atomic(file: Path) -> None:
    connection.write(file, GOOD)
    seen, stop = set(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            found = connection.read(file)
            assert found is not None
            seen.add(found.pid)

    thread = threading.Thread(target=look)
    thread.start()
    for pid in range(1, 200):
        connection.write(file, replace(GOOD, pid=pid))
    stop.set()
    thread.join()
    assert seen


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o666])
def test_open_to_others_is_refused(file: Path, mode: int) -> None:
    connection.write(file, GOOD)
    file.chmod(mode)
    with pytest.raises(ConnectionFileError, match="other users"):
        connection.read(file)


def test_a_folder_others_can_write_to_is_refused(file: Path) -> None:
    connection.write(file, GOOD)
    file.parent.chmod(0o770)
    with pytest.raises(ConnectionFileError, match="folder"):
        connection.read(file)


def test_links_folders_and_pipes_are_refused(file: Path) -> None:
    other = file.with_name("other.json")
    connection.write(other, GOOD)
    file.symlink_to(other)
    with pytest.raises(ConnectionFileError, match="symbolic link"):
        connection.read(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConnectionFileError):
        connection.read(file)
    file.rmdir()
    os.mkfifo(file, 0o600)
    with pytest.raises(ConnectionFileError, match="regular"):
        connection.read(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_somebody_elses_file_is_refused(file: Path) -> None:
    connection.write(file, GOOD)
    os.chown(file, 12345, -1)
    with pytest.raises(ConnectionFileError, match="another user"):
        connection.read(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "tcp://0.0.0.0:5555"),
        ("endpoint", "tcp://127.0.0.1:70000"),
        ("endpoint", "tcp://127.0.0.1:5555/x"),
        ("endpoint", "ipc:///tmp/x"),
        ("token", "ab" * 31),
        ("token", "AB" * 32),
        ("pid", 0),
        ("pid", True),
        ("pid", "1"),
        ("protocol", 1.5),
        ("version", None),
        ("started", float("nan")),
        ("log", 5),
    ],
)
def test_wrong_values_are_named(file: Path, field: str, value: object) -> None:
    file.write_text(json.dumps({**asdict(GOOD), field: value}))
    file.chmod(0o600)
    with pytest.raises(ConnectionFileError, match=field):
        connection.read(file)


def test_a_missing_field_is_named_and_more_fields_are_skipped(file: Path) -> None:
    values = {**asdict(GOOD), "later": 1}
    assert connection.parse(json.dumps(values).encode(), file) == GOOD
    del values["token"]
    with pytest.raises(ConnectionFileError, match="token"):
        connection.parse(json.dumps(values).encode(), file)


@given(st.binary(max_size=200) | st.text().map(lambda t: json.dumps(t).encode()))
def test_any_content_is_refused_cleanly(data: bytes) -> None:
    with pytest.raises(ConnectionFileError):
        connection.parse(data, Path("x"))


def test_deep_and_large_files_are_refused(file: Path) -> None:
    with pytest.raises(ConnectionFileError):
        connection.parse(b"[" * 10_000, file)
    file.write_bytes(b" " * (connection.MAX_FILE + 1))
    file.chmod(0o600)
    with pytest.raises(ConnectionFileError, match="large"):
        connection.read(file)


def test_only_the_own_file_is_removed(file: Path) -> None:
    connection.write(file, GOOD)
    connection.remove(file, "cd" * 32)
    assert file.exists()
    connection.remove(file, GOOD.token)
    assert not file.exists()


def test_the_defaults_are_those_of_platformdirs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FACE_RESTORE_HOME", "FACE_RESTORE_MODELS", "FLATPAK_ID"):
        monkeypatch.delenv(name, raising=False)
    for data, state in ((None, None), ("/xdg/data", "/xdg/state"), ("relative", "")):
        for name, value in (("XDG_DATA_HOME", data), ("XDG_STATE_HOME", state)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        if data == "relative":  # the specification: such values are to be ignored
            assert paths.data_dir().is_absolute()
        else:
            assert paths.data_dir() == platformdirs.user_data_path(paths.APP, False)
            assert paths.state_dir() == platformdirs.user_state_path(paths.APP, False)
    assert paths.models_dir() == paths.data_dir() / "models"


def test_one_folder_for_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    monkeypatch.delenv("FACE_RESTORE_MODELS", raising=False)
    assert paths.connection_file() == tmp_path / "state" / "worker.json"
    assert paths.models_dir() == tmp_path / "data" / "models"
    monkeypatch.setenv("FACE_RESTORE_MODELS", "/elsewhere")
    assert paths.models_dir() == Path("/elsewhere")


def test_a_flatpak_looks_where_the_host_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACE_RESTORE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("FLATPAK_ID", "org.gimp.GIMP")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/.var/app/org.gimp.GIMP/.local/state")
    monkeypatch.delenv("HOST_XDG_STATE_HOME", raising=False)
    assert paths.state_dir() == Path("/home/x/.local/state/gimp-face-restore")
    monkeypatch.setenv("HOST_XDG_STATE_HOME", "/host/state")
    assert paths.state_dir() == Path("/host/state/gimp-face-restore")


def test_folders_are_private(tmp_path: Path) -> None:
    folder = paths.private_folder(tmp_path / "a" / "b")
    for made in (folder, folder.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert stat.S_IMODE(paths.private_folder(folder).stat().st_mode) == 0o700
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(FaceRestoreError, match="symbolic"):
        paths.private_folder(link)
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FaceRestoreError) as caught:
            paths.private_folder(wrong)
        assert caught.value.code == "folder"
