"""Where the networks run, in which precision, and what to call it."""

from __future__ import annotations

import gc
import logging
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_worker.errors import DeviceError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16")
KINDS = ("cpu", "cuda", "mps")

#: bf16 on a CPU must be at least this much faster than fp32 to be worth its lower precision.
_WORTHWHILE = 1.2


def choose_device(name: str = "auto") -> str:
    """The device for ``name``: "auto" is CUDA (or ROCm), else Apple's GPU, else the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        DeviceError: the device is unknown or not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    hint = "Leave the device at auto, or see what `face-restore doctor` finds."
    if kind not in KINDS or (number and not (number.isdecimal() and kind == "cuda")):
        raise DeviceError(
            f"There is no device {name!r}; known are auto, cpu, cuda, cuda:N and mps.", hint=hint
        )
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            found = f"{count} GPU{'s' if count != 1 else ''}" if count else "no GPU it can use"
            raise DeviceError(f"The device {name} is not there: PyTorch finds {found}.", hint=hint)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "The device mps is not there: it needs a Mac with Apple silicon.", hint=hint
        )
    return name


def describe_device(device: str) -> dict[str, Any]:
    """kind, id, name, memory_total and memory_free (bytes) of a device from ``choose_device``."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        values = {"kind": kind, "id": device, "name": name}
        return values | {"memory_total": total, "memory_free": free}
    import psutil

    memory = psutil.virtual_memory()
    return {
        "kind": kind,
        "id": device,
        "name": device_name(device),
        "memory_total": memory.total,
        "memory_free": memory.available,
    }


def device_name(device: str) -> str:
    """The name to show, such as "NVIDIA GeForce RTX 4090" or "AMD Ryzen 9 7950X"."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    return "Apple GPU" if kind == "mps" else _cpu_name()


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or "CPU"
    except OSError:
        pass  # only Linux has this file
    return platform.processor() or platform.machine() or "CPU"


def choose_precision(name: str, device: str) -> str:
    """The precision for ``name`` on a device.

    "auto" is fp16 on CUDA devices that multiply it natively (compute capability 7.0), bf16 on
    processors with native bf16 matrix instructions where a convolution measures faster than in
    fp32, else fp32.

    Raises:
        DeviceError: the precision is unknown.
    """
    if name in PRECISIONS:
        return name
    if name != "auto":
        raise DeviceError(
            f"There is no precision {name!r}.",
            hint=f"Choose auto or one of: {', '.join(PRECISIONS)}.",
        )
    kind = device.partition(":")[0]
    if kind == "cuda":
        import torch

        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    return "bf16" if kind == "cpu" and native_bf16() and bf16_pays() else "fp32"


@lru_cache(maxsize=1)
def native_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices natively (AVX-512 BF16, AMX, or Arm BF16)."""
    import torch

    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, probe, None)
        if supported is not None and supported():
            return True
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


@lru_cache(maxsize=1)
def bf16_pays() -> bool:
    """Whether a typical convolution is clearly faster in bf16 than in fp32 here (a few 10 ms)."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(1, 64, 128, 128, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.ones(64, 64, 3, 3, dtype=dtype)
        best = float("inf")
        with torch.inference_mode():
            for _ in range(4):  # the first runs prepare; the fastest is the least disturbed
                start = time.perf_counter()
                torch.nn.functional.conv2d(x, weight, padding=1)
                best = min(best, time.perf_counter() - start)
        seconds[dtype] = best
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    log.debug("bf16 convolution is %.2f times as fast as fp32", gain)
    return gain >= _WORTHWHILE


def free_caches(device: torch.device | str) -> None:
    """Give memory that nothing uses back to the device."""
    import torch

    gc.collect()
    kind = torch.device(device).type
    if kind == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif kind == "mps" and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a device had too little memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # Apple's GPU and the CPU's allocator report plain RuntimeErrors.
    causes = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(cause in text for cause in causes)
