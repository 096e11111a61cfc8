"""What the figures were measured on, and whether anything else was running."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from face_restore_worker.cores import usable_cores

_WORTH_NAMING = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "sve", "bf16", "i8mm"),
)
#: Share of the machine that others may take before figures are called doubtful.
BUSY = 0.1


def describe(device: str) -> dict[str, Any]:
    """Processor, memory, system and versions, as plain values."""
    import psutil
    import torch

    from face_restore_worker.pipeline.device import choose_precision, device_name

    found = {
        "processor": device_name("cpu"),
        "cores": usable_cores(),
        "logical": os.cpu_count() or 1,
        "instructions": instruction_sets(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "default_precision": choose_precision("auto", device),
        "load_average": load_average(),
    }
    if device.partition(":")[0] == "cuda":
        found["gpu"] = device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def instruction_sets() -> list[str]:
    """Of the processor, those that matter to a network."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            return [name for name in _WORTH_NAMING if name in flags]
    return []


def load_average() -> float | None:
    """Of the last minute; None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def peak_bytes() -> int:
    """The most memory that was ever resident in this process.

    Linux: VmHWM, which starts anew with each program (getrusage counts what the parent had).
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Others:
    """How much of the processor others took between its making and `share`.

    Tell `own` the processor seconds that were the measured processes'.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy = _busy_seconds()
        self._own = 0.0

    def own(self, seconds: float) -> None:
        """Count processor seconds as our own."""
        self._own += seconds

    def share(self) -> float:
        """0 to 1: processor time of others, of all there was."""
        wall = (time.monotonic() - self._start) * (os.cpu_count() or 1)
        others = _busy_seconds() - self._busy - self._own
        return min(1.0, max(0.0, others / wall)) if wall > 0 else 0.0


def _busy_seconds() -> float:
    """Processor seconds of the whole machine that were not idle."""
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    doubled = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # also in user
    return float(sum(times) - idle - doubled)
