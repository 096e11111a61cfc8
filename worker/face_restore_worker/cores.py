"""How many processor cores the work may take, and telling the libraries so."""

from __future__ import annotations

import math
import os
from pathlib import Path

from face_restore_shared.errors import FaceRestoreError

#: Takes what --threads takes, for workers that something else starts (GIMP, `restore`).
VARIABLE = "FACE_RESTORE_THREADS"
_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Physical cores this process may use: its affinity and its container's quota counted.

    Two hardware threads of one core count once: convolutions keep a core's units busy alone.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # Windows, macOS
        import psutil

        return max(1, psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    cores = {_core(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(_QUOTA)))


def _core(cpu: int) -> tuple[str, str]:
    """What tells a logical processor's core from others; the processor itself where unknown."""
    topology = _CPUS / f"cpu{cpu}" / "topology"
    try:
        package = (topology / "physical_package_id").read_text().strip()
        return package, (topology / "core_id").read_text().strip()
    except OSError:
        return "cpu", str(cpu)


def _quota(path: Path) -> int:
    """Cores' worth of time that control groups grant ("200000 100000" is 2); many when no limit."""
    try:
        quota, period = path.read_text().split()[:2]
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max 100000"
        return 1 << 16


def choose_threads(wish: int | None = None) -> int:
    """The number of threads for a wish as --threads takes it; never more than there are cores.

    wish: a number of threads; 0 is every usable core; -N leaves N cores to other programs. None
        asks the environment's FACE_RESTORE_THREADS, then OMP_NUM_THREADS, then takes every core.
    Raises FaceRestoreError (code "usage") where FACE_RESTORE_THREADS is no whole number.
    """
    cores = usable_cores()
    if wish is None:
        wish = _from_environment()
    if wish <= 0:
        return max(1, cores + wish)
    return min(wish, cores)


def _from_environment() -> int:
    text = os.environ.get(VARIABLE, "").strip()
    if text:
        try:
            return int(text)
        except ValueError:
            raise FaceRestoreError(
                f"The environment's {VARIABLE} is {text!r}, which is no whole number.",
                hint="Set it to a number of threads, to -1 to leave one core free, or not at all.",
                code="usage",
            ) from None
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def limit_threads(count: int) -> None:
    """Have torch, OpenCV and libvips use `count` threads each; call in the thread that computes.

    They work one after the other, so together they keep to `count` as well. torch and OpenCV are
    imported; libvips takes its number when it is imported later.
    """
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    os.environ["VIPS_CONCURRENCY"] = str(count)
