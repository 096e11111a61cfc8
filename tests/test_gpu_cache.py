"""Compiled kernels are kept in a folder of the user's own."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from face_restore_shared import paths
from face_restore_worker.pipeline.gpu_cache import keep_kernels


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # set, so that it is put back afterwards
    return tmp_path / "home"


def test_kernels_are_kept_where_only_their_owner_reaches(home: Path) -> None:
    keep_kernels()
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    assert folder == home / "cache" / "triton" and folder.is_dir()
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    keep_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == "elsewhere" and not home.exists()


def test_a_folder_that_cannot_be_made_is_told(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        keep_kernels()
    assert not os.environ["TRITON_CACHE_DIR"] and "Triton's own folder" in caplog.text


def test_the_cache_lies_beside_data_and_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACE_RESTORE_HOME", "")
    assert paths.cache_dir().name in (paths.APP, "cache")
    assert paths.cache_dir() not in (paths.data_dir(), paths.state_dir())
