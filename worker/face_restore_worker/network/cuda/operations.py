"""Which implementation of each fused operation runs: Triton's where it proves itself, else plain.

Nothing is taken on trust: on a GPU every kernel first computes small tensors beside its plain
twin, and one that does not compile, fails or disagrees is replaced by the twin, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from face_restore_worker.network.cuda import plain
from face_restore_worker.network.cuda.layers import Feature, Rgb, Styled, nhwc

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operations:
    """The fused operations; ``plain`` says what each computes.

    notes: a sentence for each operation, or for all, that does not run in Triton although the
        device could.
    """

    normalise: Callable[[Tensor, Tensor], None] = plain.normalise
    to_pixels: Callable[[Tensor, torch.dtype], Tensor] = plain.to_pixels
    blur_feature: Callable[[Feature, torch.dtype], Tensor] = plain.blur_feature
    finish_up: Callable[[Tensor, Feature, Styled], Tensor] = plain.finish_up
    finish_conv: Callable[[Tensor, Feature, Styled, Rgb], tuple[Tensor | None, Tensor]] = (
        plain.finish_conv
    )
    notes: tuple[str, ...] = ()

    @property
    def fused(self) -> tuple[str, ...]:
        """The names of the operations that do not run in plain PyTorch."""
        return tuple(name for name in NAMES if getattr(self, name) is not getattr(plain, name))


PLAIN = Operations()
NAMES = tuple(field.name for field in fields(Operations) if field.name != "notes")

#: Largest relative error of a kernel to its twin by the result's type: both round once or twice.
_BOUND = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3, torch.uint8: 2e-3}


def choose_operations(device: torch.device, dtype: torch.dtype) -> Operations:
    """The operations for a device and a type of activations; says in the log what was chosen."""
    if device.type != "cuda":
        return PLAIN
    try:
        from face_restore_worker.network.cuda import fused
    except Exception as error:  # Triton is missing, or its own parts are: any import error counts
        return _without_triton(f"Triton cannot be imported ({_line(error)})")
    candidates = Operations(**{name: getattr(fused, name) for name in NAMES})
    chosen = checked(candidates, device, dtype)
    log.info("Fused kernels on %s: %s.", device, ", ".join(chosen.fused) or "none")
    return chosen


def checked(candidates: Operations, device: torch.device, dtype: torch.dtype) -> Operations:
    """``candidates``, each that fails its trial replaced by its plain twin and noted."""
    chosen = candidates
    for name in NAMES:
        if getattr(candidates, name) is getattr(plain, name):
            continue
        reason = try_operation(name, candidates, device, dtype)
        if reason is not None:
            note = f"The fused kernel {name} is not used on {device}: {reason}."
            log.warning("%s Plain PyTorch takes its place, which is slower.", note)
            chosen = replace(chosen, **{name: getattr(plain, name)}, notes=(*chosen.notes, note))
    return chosen


def try_operation(
    name: str, candidates: Operations, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Run one operation on small tensors beside its plain twin; what went wrong, or None."""
    for case in _cases(name, device, dtype):
        try:
            found = _as_list(case(candidates))
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # errors of a kernel come late
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"it failed ({_line(error)})"
        wanted = _as_list(case(PLAIN))
        for a, b in zip(found, wanted, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"it gave {tuple(a.shape)} {a.dtype}, not {tuple(b.shape)} {b.dtype}"
            bound, error_found = _BOUND[a.dtype], relative_error(a, b)
            if not error_found <= bound:
                return f"its result is off by {error_found:.2g}, more than {bound:.2g}"
    return None


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; not a number where either is not finite."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


Case = Callable[[Operations], Any]


def _cases(name: str, device: torch.device, dtype: torch.dtype) -> list[Case]:
    """Trials of one operation: several widths of channels, a size that no block divides."""
    make = _Maker(device, dtype)
    if name == "normalise":
        return [make.normalise(torch.uint8), make.normalise(torch.float32)]
    if name == "to_pixels":
        picture = make.random(1, 3, 34, 34)
        return [
            lambda ops: ops.to_pixels(picture, torch.float32),
            # Values that rounding and truncation tell apart, none of them on the border between.
            lambda ops: ops.to_pixels((picture * 10).round() * 0.11, torch.uint8),
        ]
    if name == "blur_feature":
        features = [make.feature(34, 16, True), make.feature(34, 16), make.feature(10, 80)]
        return [make.blur(feature) for feature in features]
    return [
        make.finish(name, *case)
        for case in ((34, 16, True, True), (34, 16, True, False), (10, 32, False, True),
                     (10, 80, False, True), (4, 64, False, True))
    ]  # fmt: skip


class _Maker:
    """Reproducible random tensors on a device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(2048)

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, generator=self.generator).to(self.device, dtype)
        return nhwc(values) if len(shape) == 4 and shape[1] != 3 else values

    def normalise(self, dtype: torch.dtype) -> Case:
        pixels = torch.rand((34, 34, 3), generator=self.generator).to(self.device)
        if dtype == torch.uint8:
            pixels = (pixels * 255).to(torch.uint8)

        def run(ops: Operations) -> Tensor:
            out = nhwc(torch.zeros((1, 3, 34, 34), dtype=self.dtype, device=self.device))
            ops.normalise(pixels, out)
            return out

        return run

    def feature(self, size: int, channels: int, picture: bool = False) -> Feature:
        raw = self.random(1, 3 if picture else channels, size, size, dtype=self.dtype)
        weight = self.random(channels, 3) if picture else None
        return Feature(nhwc(raw), self.random(channels), weight)

    def blur(self, feature: Feature) -> Case:
        return lambda ops: ops.blur_feature(feature, self.dtype)

    def finish(self, name: str, size: int, channels: int, picture: bool, keep: bool) -> Case:
        feature = self.feature(size, channels, picture)
        up = name == "finish_up"
        style = self.random(2 * channels) if keep or up else None
        styled = Styled(self.random(channels), self.random(2 * channels), self.random(1), style)
        side = size + 1 if up else size
        values = self.random(1, channels, side, side, dtype=self.dtype)
        if up:
            return lambda ops: ops.finish_up(values, feature, styled)
        below = self.random(1, 3, size // 2, size // 2) if size > 4 else None
        rgb = Rgb(self.random(3, 2 * channels), self.random(3), below)
        return lambda ops: ops.finish_conv(values, feature, styled, rgb)


def _as_list(result: Any) -> list[Tensor]:
    values = result if isinstance(result, tuple) else (result,)
    return [value for value in values if value is not None]


def _without_triton(why: str) -> Operations:
    note = f"The fused kernels are not used: {why}."
    log.warning("%s Plain PyTorch takes their place, which is slower.", note)
    return replace(PLAIN, notes=(note,))


def _line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[-1][:200].rstrip(".")
    return f"{type(error).__name__}: {text}"
