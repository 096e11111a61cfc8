"""Without usable kernels torch computes the processor's GPEN, and a line says why."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from face_restore_worker.network.native import build, library
from test_gpen_native import uses_kernels


class Answer:
    """A function of a loaded library."""

    restype: object = None

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self, *arguments: object) -> int:
        return self.value


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type]:
    """Make the library that lies here one of the given version and features."""

    class Loaded:
        def __init__(self, version: int | None = None, features: int = 1) -> None:
            if version is not None:
                self.version = Answer(version)
            self.features = Answer(features)
            for kernel in library.ARGUMENTS:
                setattr(self, f"{kernel}_fp32", Answer(0))  # does nothing
            path = tmp_path / build.LIBRARY.name
            path.write_bytes(b"")
            monkeypatch.setattr(build, "LIBRARY", path)
            monkeypatch.setattr(ctypes, "CDLL", lambda name: self)
            library.installed.cache_clear()

    monkeypatch.delenv(library.VARIABLE, raising=False)
    yield Loaded
    library.installed.cache_clear()


def test_without_the_library_torch_computes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "kernels.so")
    library.installed.cache_clear()
    with caplog.at_level(logging.INFO):
        assert not uses_kernels()
    library.installed.cache_clear()
    assert "kernels.so is not there, torch computes" in caplog.text


def test_a_library_that_cannot_be_loaded_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "kernels.so")
    build.LIBRARY.write_bytes(b"no library")
    library.installed.cache_clear()
    assert not uses_kernels()
    library.installed.cache_clear()
    assert "compiled kernels: not used, torch computes" in caplog.text


def test_a_library_of_other_sources_is_not_used(
    pretend: type, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(version=build.source_version() ^ 1)
    assert not uses_kernels()
    assert "was made from other sources" in caplog.text


def test_a_library_that_is_something_else_is_not_used(
    pretend: type, caplog: pytest.LogCaptureFixture
) -> None:
    pretend()
    assert not uses_kernels()
    assert "another library" in caplog.text


def test_without_avx512_torch_computes(pretend: type, caplog: pytest.LogCaptureFixture) -> None:
    pretend(version=build.source_version(), features=0)
    assert not uses_kernels()
    assert "the processor has no AVX-512" in caplog.text


def test_kernels_that_compute_something_else_are_not_used(
    pretend: type, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(version=build.source_version())
    assert not uses_kernels()
    assert caplog.text.count("not used, torch computes: in torch.float32") == 1
    assert not uses_kernels()
    assert caplog.text.count("not used, torch computes: in torch.float32") == 1  # checked once


# --- compiling ---------------------------------------------------------------------------


def test_an_installation_without_a_compiler_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    line = build.build(library=tmp_path / "kernels.so")
    assert "no C compiler found, so torch computes" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compiler", ["false", "/bin/false --option"])
def test_a_compiler_that_fails_leaves_nothing(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CC", compiler)
    line = build.build(library=tmp_path / "kernels.so")
    assert line.startswith("compiled kernels: ") and "failed, so torch computes" in line
    assert list(tmp_path.iterdir()) == []


def test_other_processors_have_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "not for this processor (aarch64)" in build.build(library=tmp_path / "kernels.so")
    assert list(tmp_path.iterdir()) == []


def test_line_ends_of_a_checkout_do_not_change_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for file in build.FOLDER.glob("*.[ch]"):
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    version = build.source_version()
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.source_version() == version
    (tmp_path / "winograd.c").write_bytes(b"int other;")
    assert build.source_version() != version
