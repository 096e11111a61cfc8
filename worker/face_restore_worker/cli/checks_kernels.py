"""The check of ``face-restore doctor`` on the compiled kernels.

It runs beside torch in the process that imports the packages (`checks.probe`): a library that does
not fit the processor may crash, and torch is not imported a second time.
"""

from __future__ import annotations

import sys

import torch

from face_restore_worker.cli.checks import OK, WARN, Finding
from face_restore_worker.network import cpu_kernels
from face_restore_worker.network.native import build, library

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def finding() -> Finding:
    """For which precisions the kernels compute GPEN on this processor, or why torch does."""
    if not library.wanted():
        text = f"{library.VARIABLE}=0 turns them off, torch computes"
        return _found(WARN, text, f"Unset {library.VARIABLE}.")
    # Where there is nothing to gain, there is nothing to mend.
    level = WARN if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else OK
    if not build.LIBRARY.exists():
        if level == OK:
            return _found(OK, "not for this processor (no AVX-512), torch computes")
        if build.compiler() is None:
            first = "Install a C compiler (Debian, Ubuntu: apt install gcc), then run:"
            return _found(
                WARN, "not compiled for lack of a C compiler, torch computes", _mend(first)
            )
        return _found(WARN, "not compiled, torch computes", _mend())
    try:
        loaded = library.Library(build.LIBRARY)
    except OSError as error:
        return _found(level, f"not used, torch computes: {error}", _mend())
    return _of(loaded)


def _of(loaded: library.Library) -> Finding:
    """For a library that is one of these sources for this processor."""
    used = [name for name, dtype in _DTYPES.items() if loaded.supports(dtype)]
    wrong = [name for name in used if not cpu_kernels.agrees(loaded, _DTYPES[name])]
    if wrong:
        text = f"wrong results in {' and '.join(wrong)} when checked, there torch computes"
        return _found(WARN, text, "Please report this with the output of --format json.")
    text = f"compute GPEN in {' and '.join(used)} on the processor"
    if "bf16" not in used:
        text += "; torch does in bf16 (they need AVX512_BF16 and VNNI; with AMX torch is faster)"
    return _found(OK, text)


def _found(level: str, text: str, mend: str = "") -> Finding:
    return Finding(level, "compiled kernels", text, mend)


def _mend(first: str = "Run:") -> str:
    return f"{first} {sys.executable} -m {build.__name__}"
