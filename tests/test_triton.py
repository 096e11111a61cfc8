"""The Triton kernels without a GPU: interpreted on the CPU, and compiled for several GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="Triton is published for Linux; elsewhere nothing uses it"
)


def interpret(*arguments: str) -> int:
    """Run the interpreted tests in a process where Triton interprets; how many passed."""
    # xdist's own variables would make the other pytest take itself for one of its workers.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "interpreted_kernels.py", "-p", "no:cacheprovider",
         "-p", "no:xdist", "--strict-markers", "-o", "timeout=1800", *arguments],
        cwd=HERE,
        env=environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = re.search(r"(\d+) passed(?!.*skipped)", done.stdout)
    assert summary is not None, done.stdout[-2000:]
    return int(summary[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the interpreter is slow, and a busy machine slower
def test_interpreted_kernels_equal_their_twins() -> None:
    assert interpret("-v", "-m", "not slow") >= 13


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_interpreted_kernels_equal_their_twins_at_length() -> None:
    assert interpret("-v", "-m", "slow") >= 12


# -- compiled, as far as to the machine code of a GPU that is not there ----------------------------

SIXTEEN, FULL = "*fp16", "*fp32"
SIZES = ["i32", "i32", "i32"]
VARIANTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "normalise_kernel": (["*u8", SIXTEEN, "fp32", "i32"], {"BLOCK": 1024}),
    "to_pixels_kernel": ([FULL, "*u8", "i32", "fp32"], {"ROUND": True, "BLOCK": 1024}),
    "blur_feature_kernel": (
        [SIXTEEN, FULL, FULL, SIXTEEN, *SIZES],
        {"FROM_PICTURE": False, "BX": 32, "BC": 32},
    ),
    "finish_up_kernel": (
        [SIXTEEN, SIXTEEN, *[FULL] * 6, SIXTEEN, *SIZES],
        {"FROM_PICTURE": True, "BX": 64, "BC": 16},
    ),
    "finish_conv_kernel": (
        [SIXTEEN, SIXTEEN, *[FULL] * 9, SIXTEEN, FULL, *SIZES],
        {"FROM_PICTURE": False, "KEEP": True, "BELOW": True, "BX": 16, "BC": 64},
    ),
}


def compiled(name: str, capability: int, element: str = "fp16", **flags: bool) -> str:
    """A kernel's PTX for a compute capability such as 75; assembled to machine code as well."""
    import triton
    from face_restore_worker.network.cuda import kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, name)
    types, constants = VARIANTS[name]
    constants = constants | flags
    types = [kind.replace("fp16", element) for kind in types]
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(constants)], strict=True))
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (argument, kind) in enumerate(signature.items())
        if kind.startswith("*") or argument in ("C", "count", "plane")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(result.asm["cubin"]) > 1000
    return str(result.asm["ptx"])


def check(name: str, ptx: str) -> None:
    # Channels lie side by side: without wide accesses a kernel would take a multiple of the time.
    assert re.search(r"ld\.global(\.\w+)*\.v[24]\.", ptx), f"{name} reads value by value"
    assert re.search(r"st\.global(\.\w+)*\.v[24]\.|st\.global\.v[24]", ptx) or "pixels" in name
    assert ".local" not in ptx, f"{name} spills"


@pytest.mark.timeout(1800)
def test_a_kernel_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    check("finish_conv_kernel", compiled("finish_conv_kernel", 86))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 75, 80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_kernel_compiles_for_every_gpu(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    check(name, compiled(name, capability))
    if capability == 80:
        compiled(name, capability, "bf16")
        compiled(name, capability, "fp32")
        if "FROM_PICTURE" in VARIANTS[name][1]:
            other = not VARIANTS[name][1]["FROM_PICTURE"]
            compiled(name, capability, FROM_PICTURE=other)
