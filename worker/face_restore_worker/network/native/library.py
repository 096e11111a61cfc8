"""The compiled kernels for Python: found, checked, called through ctypes.

They are used where the library was made from the sources that lie here (`build.py`), the processor
has AVX-512 (for bf16 also AVX512_BF16, and no AMX), and small examples come out as torch has them
(`cpu_kernels.agrees`). Otherwise a line is logged and torch computes. ``FACE_RESTORE_NATIVE=0`` in
the environment turns them off.

A call computes in the calling thread and lets other Python threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from face_restore_worker.network.native import build

log = logging.getLogger(__name__)

VARIABLE = "FACE_RESTORE_NATIVE"


def _structure(name: str, pointers: str, sizes: str, integers: str, reals: str) -> type:
    kinds = ((pointers, ctypes.c_void_p), (sizes, ctypes.c_ssize_t), (integers, ctypes.c_int32),
             (reals, ctypes.c_float))  # fmt: skip
    fields = [(field, kind) for names, kind in kinds for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


#: As in kernels.h.
ARGUMENTS = {
    "prepare": _structure(
        "Prepare",
        "weight transform phases out unit scratch",
        "",
        "outputs inputs matrices run",
        "",
    ),
    "first": _structure("First", "picture out weight bias", "plane", "outputs rows columns", ""),
    "winograd": _structure(
        "Winograd",
        "image encoder out weight unit style shift scale bias scratch",
        "image_pixel encoder_pixel out_pixel",
        "image_channels encoder_channels outputs rows_in rows_out columns top block",
        "gain",
    ),
    "upsample": _structure(
        "Upsample",
        "source out weight style scale bias raised scratch",
        "pixel out_pixel matrix",
        "inputs outputs rows columns raised_width first last from to block shared",
        "",
    ),
    "downsample": _structure(
        "Downsample",
        "source out weight unit strength bias scratch",
        "pixel",
        "inputs outputs first rows columns from to block",
        "",
    ),
    "finish": _structure(
        "Finish",
        "image encoder part weight shift bias below out",
        "image_pixel encoder_pixel part_pixel below_plane out_plane out_line",
        "channels first rows columns",
        "gain",
    ),
}


def _compound(name: str, parts: str, pointers: str, integers: str = "") -> type:
    fields = [
        (field, ARGUMENTS[kind]) for field, kind in (part.split("=") for part in parts.split())
    ]
    fields += [(field, ctypes.c_void_p) for field in pointers.split()]
    fields += [(field, ctypes.c_int32) for field in integers.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


ARGUMENTS["encode"] = _compound("Encode", "down=downsample first=first", "feature")
ARGUMENTS["band"] = _compound(
    "Band",
    "up=upsample conv=winograd finish=finish first=first",
    "blurred feature",
    "from to step",
)
Argument = Tensor | ctypes.Structure | float | None
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Library:
    """The loaded kernels.

    Raises OSError where `path` is no library of these sources for this processor.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        try:
            version, features = self._library.version, self._library.features
        except AttributeError as error:
            raise OSError(f"{path.name} is another library: {error}") from error
        version.restype = ctypes.c_uint64
        if version() != build.source_version():
            raise OSError(f"{path.name} was made from other sources; install again")
        self._features = int(features())
        if not self._features:
            raise OSError("the processor has no AVX-512")

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether the kernels compute planes of `dtype` faster than torch on this processor."""
        return bool(self._features & {torch.float32: 1, torch.bfloat16: 2}[dtype])

    def call(self, name: str, dtype: torch.dtype, **arguments: Argument) -> None:
        """Call the kernel `name` for planes of `dtype`; tensors are passed by their address.

        Nothing is checked: shapes, types and strides are the caller's to keep as kernels.h says.
        """
        function = getattr(self._library, f"{name}_{_TYPES[dtype]}")
        function(ctypes.byref(structure(name, **arguments)))


def structure(name: str, **arguments: Argument) -> ctypes.Structure:
    """A kernel's arguments; what is not given is zero. The tensors must outlive it."""
    values = {
        key: value.data_ptr() if isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    made: ctypes.Structure = ARGUMENTS[name](**values)
    return made


def load(path: Path) -> Library | None:
    """The library at `path`, None where it cannot be used, which is logged."""
    if not path.exists():
        log.info("compiled kernels: %s is not there, torch computes", path.name)
        return None
    try:
        return Library(path)
    except OSError as error:
        log.warning("compiled kernels: not used, torch computes: %s", error)
        return None


@lru_cache(maxsize=1)
def installed() -> Library | None:
    """The library that lies here, loaded once."""
    return load(build.LIBRARY)


def wanted() -> bool:
    """Whether the environment lets the kernels be used."""
    return os.environ.get(VARIABLE, "").strip() != "0"
