"""``face-restore doctor`` on the compiled kernels: in use, or why not and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from face_restore_worker.cli import checks, checks_kernels
from face_restore_worker.cli.checks import Finding
from face_restore_worker.network import cpu_kernels
from face_restore_worker.network.native import build, library

BUILD = "-m face_restore_worker.network.native.build"


class _Loaded:
    """A library for a processor with these precisions."""

    precisions: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)

    def __init__(self, path: Path) -> None:
        self.path = path

    def supports(self, dtype: torch.dtype) -> bool:
        return dtype in self.precisions


@pytest.fixture(autouse=True)
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As on a processor with AVX-512, AVX512_BF16 and compiled kernels that work."""
    path = tmp_path / build.LIBRARY.name
    path.write_bytes(b"compiled")
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(build, "LIBRARY", path)
    monkeypatch.setattr(library, "Library", _Loaded)
    monkeypatch.setattr(cpu_kernels, "agrees", lambda *_: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return path


def test_in_use() -> None:
    found = checks_kernels.finding()
    assert (found.level, found.text) == ("ok", "compute GPEN in fp32 and bf16 on the processor")


def test_in_use_for_fp32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Loaded, "precisions", (torch.float32,))
    found = checks_kernels.finding()
    assert found.level == "ok"
    assert found.text.startswith("compute GPEN in fp32 on") and "AVX512_BF16" in found.text


def test_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "0")
    found = checks_kernels.finding()
    assert found.level == "warn"
    assert "FACE_RESTORE_NATIVE=0" in found.text and "Unset" in found.mend


@pytest.mark.parametrize(("there", "helps"), [("sh", "Run:"), ("no-such-compiler", "apt install")])
def test_not_compiled(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, there: str, helps: str
) -> None:
    compiled.unlink()
    monkeypatch.setenv("CC", there)
    found = checks_kernels.finding()
    assert found.level == "warn" and "not compiled" in found.text
    assert helps in found.mend
    assert BUILD in found.mend


@pytest.mark.parametrize("why", ["kernels.so was made from other sources", "invalid ELF header"])
def test_a_library_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(why)

    monkeypatch.setattr(library, "Library", refuse)
    found = checks_kernels.finding()
    assert found.level == "warn" and why in found.text and BUILD in found.mend


def test_a_processor_without_avx512(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to mend, whether or not they were compiled."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(library, "Library", _no_avx512)
    compiled_too = checks_kernels.finding()
    compiled.unlink()
    for found in (compiled_too, checks_kernels.finding()):
        assert found.level == "ok" and "no AVX-512" in found.text


def _no_avx512(_path: Path) -> None:
    raise OSError("the processor has no AVX-512")


def test_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "agrees", lambda _library, dtype: dtype == torch.float32)
    found = checks_kernels.finding()
    assert found.level == "warn" and "wrong results in bf16" in found.text


def _all_import(kernels: dict[str, Any], devices: list[Any]) -> list[Finding]:
    """What the check of the packages says of kernels and devices."""
    found = {module: {"version": "1"} for _, module in checks.PACKAGES}
    torch_there = {"version": "1", "devices": devices, "cuda": "13.0", "mps": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checks, "probe", lambda names: found | {"torch": torch_there, names[-1]: kernels}
        )
        return list(checks.check_packages())


def test_with_a_gpu_they_are_no_warning() -> None:
    finding = Finding("warn", "compiled kernels", "not compiled", "Compile them.").as_json()
    assert _all_import({"finding": finding}, [])[-1].level == "warn"
    assert _all_import({"finding": finding}, [["H200", 1 << 37]])[-1].level == "ok"


def test_kernels_that_crash_are_named() -> None:
    found = _all_import({"error": "importing it ended the process with status -4"}, [])[-1]
    assert (found.level, found.topic) == ("fail", "compiled kernels")
    assert "status -4" in found.text and "FACE_RESTORE_NATIVE=0" in found.mend


@pytest.mark.slow
def test_the_real_ones() -> None:
    """Whatever this machine has: the probe's process says it, and does not crash."""
    found = checks.probe(["torch", checks_kernels.__name__])[checks_kernels.__name__]
    assert Finding(**found["finding"]).topic == "compiled kernels"
