"""The command lines that blog posts and GPEN's own scripts show, in terms of ``restore``.

Without a command in front, ``--input A --output B --model_path W --size 2048 --face_align`` and
``--indir A --outdir B --task FaceEnhancement --model GPEN-BFR-512 ...`` are understood.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from face_restore_worker.cli.jobs import UsageError

_MARKS = ("--input", "--indir", "--output", "--outdir", "--model_path", "--face_align", "--in_size")

# What those scripts take and this program decides by itself, with the reason said once.
_NEEDLESS = {
    "use_gpu": "the GPU is used when there is one",
    "use_cuda": "the GPU is used when there is one",
    "face_align": "faces are always aligned",
    "channel_multiplier": "the network's size is read from the checkpoint",
    "narrow": "the network's size is read from the checkpoint",
    "key": "the checkpoint's form is recognised",
    "tile_size": "pictures are not cut into tiles",
    "task": "faces are restored",
}
_NOT_HERE = {
    "use_sr": "enlarging the background is not offered; the picture keeps its size",
    "sr_model": "enlarging the background is not offered; the picture keeps its size",
    "sr_scale": "enlarging the background is not offered; the picture keeps its size",
}
_TASKS = ("faceenhancement", "face_enhancement")
_SIZES = (256, 512, 1024, 2048)


def is_legacy(argv: Sequence[str]) -> bool:
    """Whether the arguments are of one of those forms: options only, one of theirs among them."""
    first = argv[0] if argv else ""
    names = {text.partition("=")[0] for text in argv}
    return first.startswith("--") and any(mark in names for mark in _MARKS)


def translate(argv: Sequence[str]) -> list[str]:
    """The arguments of ``restore`` that mean the same; says on standard error what it left out.

    Raises:
        UsageError: input or output are missing, or the task is another than restoring faces.
    """
    known, rest = _parser().parse_known_args(list(argv))
    source, target = known.input or known.indir, known.output or known.outdir
    if source is None or target is None:
        raise UsageError(
            "Both --input and --output (or --indir and --outdir) are needed.",
            hint="Or use: face-restore restore IN -o OUT (see face-restore --help).",
        )
    if known.task is not None and known.task.lower() not in _TASKS:
        raise UsageError(f"The task {known.task} is not offered.", hint="It restores faces only.")
    _explain(known)
    result = ["restore", source, "-o", target]
    if known.indir is not None or (Path(source).is_dir()):
        result[3:4] = [target if target.endswith("/") else target + "/"]
    model = choose_model(known.model_path, known.model, known.size or known.in_size)
    if model is not None:
        result += ["--model", model]
    if known.model_path is not None and known.size is not None:
        result += ["--expected-size", str(known.size)]
    if known.alpha is not None:
        result += ["--strength", known.alpha]
    if known.ext is not None:
        result += ["--ext", known.ext]
    if known.save_face:
        result += ["--save-faces", str(Path(target).parent if Path(target).suffix else target)]
    return [*result, "--template", "gpen", *rest] if known.outdir else result + rest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="face-restore", add_help=False, allow_abbrev=False)
    for name in ("input", "output", "indir", "outdir", "model_path", "model", "task", "key"):
        parser.add_argument(f"--{name}")
    for name in ("alpha", "ext", "sr_model", "sr_scale", "tile_size", "channel_multiplier"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--narrow")
    parser.add_argument("--size", type=int)
    parser.add_argument("--in_size", type=int)
    for name in ("face_align", "use_gpu", "use_cuda", "use_sr", "save_face"):
        parser.add_argument(f"--{name}", nargs="?", const="yes")
    return parser


def _explain(known: argparse.Namespace) -> None:
    said = set()
    for name, why in (_NEEDLESS | _NOT_HERE).items():
        if getattr(known, name, None) is not None and why not in said:
            said.add(why)
            print(f"note: --{name} has no effect: {why}.", file=sys.stderr)


def choose_model(path: str | None, name: str | None, size: int | None) -> str | None:
    """What --model_path, --model and --size mean: a file, a model's id, or None for the default.

    Raises:
        UsageError: the file is missing and no installed model is meant by it, or the size is none
            of GPEN's.
    """
    if size is not None and size not in _SIZES:
        raise UsageError(
            f"There is no GPEN of size {size}.", hint=f"Sizes: {', '.join(map(str, _SIZES))}."
        )
    if path is None:
        return name or (None if size is None else f"gpen-bfr-{size}")
    if Path(path).expanduser().exists():
        return path
    installed = _installed(Path(path).name)
    if installed is not None:
        print(f"note: {path} does not exist; the installed {installed} is used.", file=sys.stderr)
        return installed
    wanted = _known(Path(path).name) or f"gpen-bfr-{size or 2048}"
    raise UsageError(
        f"The checkpoint {path} does not exist.",
        hint=f"Get it with `face-restore models download {wanted}`, or if you have the file "
        "elsewhere `face-restore models import FILE`; without --model_path and --size the best "
        "installed model is used.",
        code="model-missing",
    )


def _known(name: str) -> str | None:
    """The catalogue's id for a file name such as GPEN-BFR-2048.pth, or None."""
    from face_restore_worker.errors import ModelError
    from face_restore_worker.models.store import ModelStore

    catalogue = ModelStore().catalogue
    for text in (name, Path(name).stem, Path(name).stem.lower()):
        try:
            return catalogue.get(text).id
        except ModelError:
            continue
    return None


def _installed(name: str) -> str | None:
    from face_restore_worker.models.store import ModelStore

    wanted = _known(name)
    present = {model.id for model in ModelStore().installed()}
    return wanted if wanted in present else None
