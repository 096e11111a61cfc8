"""What can be timed: this project's own paths and what others run the same network with."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util

from face_restore_shared.errors import FaceRestoreError

PEERS = (
    "onnxruntime",
    "onnxruntime-tidy",
    "openvino",
    "openvino-tidy",
    "eager",
    "compile",
    "reference",
)


@dataclass(frozen=True)
class Variant:
    """One way to compute GPEN.

    key: names it between the processes. label: for people.
    warm_up: calls after the first one until it runs at its steady speed.
    peak, kept: about its memory in GB during and between 2048 faces on a processor, to plan with.
    needs: packages that must be importable. onnx: the form of the exported network that it reads
        (see `builders.export`), "" when it reads none.
    """

    key: str
    label: str
    warm_up: int = 0
    peak: float = 1.9
    kept: float = 1.1
    needs: tuple[str, ...] = ()
    onnx: str = ""


@dataclass(frozen=True)
class Missing:
    """A variant that cannot run here. why: what is not there; mend: how to get it."""

    label: str
    why: str
    mend: str


def own(precision: str) -> Variant:
    """This project's path in "fp32", "bf16" or "fp16"."""
    return Variant(precision, f"this project, {precision}", warm_up=1)


def peers(name: str, device: str) -> list[Variant]:
    """The variants that one word of --compare stands for, on a device."""
    kind = device.partition(":")[0]
    eager = "fp16" if kind == "cuda" else "fp32"
    exporter = ("onnxscript",)
    program, _, form = name.partition("-")
    more = ", given our tidied graph" if form else ""
    tail, form = (f"-{form}", form) if form else ("", "authors")
    if program == "onnxruntime":
        label = f"ONNX Runtime, {'CUDA, ' if kind == 'cuda' else ''}fp32{more}"
        return [Variant(name, label, 2, 8.5, 8.5, ("onnxruntime", *exporter), form)]
    if program == "openvino":
        needs = ("openvino", *exporter)
        default = f"OpenVINO, its default{more}"
        return [
            Variant(f"openvino-f32{tail}", f"OpenVINO, f32{more}", 1, 4.0, 4.0, needs, form),
            Variant(f"openvino-default{tail}", default, 1, 3.0, 3.0, needs, form),
        ]
    if name == "eager":
        return [Variant(name, f"the authors' way, eager, {eager}", 0, 6.6, 0.9)]
    if name == "compile":
        mode = "max-autotune, " if kind == "cuda" else ""
        return [Variant(name, f"torch.compile of the reference, {mode}{eager}", 2, 5.0, 1.5)]
    if name == "reference":
        return [Variant(name, f"the readable reference network, {eager}", 0, 2.8, 0.9)]
    raise FaceRestoreError(
        f"--compare knows no {name!r}.", hint=f"It takes {', '.join(PEERS)}.", code="usage"
    )


def why_missing(variant: Variant, device: str) -> Missing | None:
    """Why a variant cannot run in this environment; None when it can."""
    absent = [name for name in variant.needs if util.find_spec(name) is None]
    if absent:
        names = " and ".join(absent)
        verb = "is" if len(absent) == 1 else "are"
        install = f"pip install {' '.join(absent)}"
        return Missing(variant.label, f"{names} {verb} not installed", install)
    kind = device.partition(":")[0]
    if variant.key.startswith("openvino") and kind != "cpu":
        return Missing(variant.label, f"it has no support for {kind}", "use --device cpu")
    compilers = ("g++", "clang++", "c++", "cl")
    if variant.key == "compile" and kind == "cpu" and not any(map(shutil.which, compilers)):
        return Missing(variant.label, "there is no C++ compiler", "install g++ or clang++")
    if variant.key == "compile" and kind == "cuda" and util.find_spec("triton") is None:
        return Missing(variant.label, "triton is not installed", "pip install triton")
    return None


def choose(
    precisions: Sequence[str], compare: Sequence[str], device: str
) -> tuple[list[Variant], list[Missing]]:
    """What is timed, this project's own first; and what was asked for but cannot run."""
    wanted = [own(precision) for precision in precisions]
    for name in dict.fromkeys(compare):
        wanted += peers(name, device)
    missing = [why_missing(variant, device) for variant in wanted]
    chosen = [v for v, gap in zip(wanted, missing, strict=True) if gap is None]
    return chosen, [gap for gap in missing if gap is not None]
