"""The options that ``restore`` and ``detect`` share, and what they mean to the pipeline."""

from __future__ import annotations

import argparse
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from face_restore_shared.schema import DetectOptions, RestoreOptions

DEFAULT_MAX_PIXELS = 100_000_000
DEFAULT_MIN_FACE = 12.0


@dataclass(frozen=True)
class FaceChoice:
    """Which faces: all, the largest, or those with these numbers (from 1, left to right)."""

    largest: bool = False
    numbers: tuple[int, ...] = ()


def fraction(text: str) -> float:
    """A number from 0 to 1, also written as a percentage."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1 (or 0% to 100%)")
    return value


def positive(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def seconds(text: str) -> float:
    """A time that the worker takes."""
    value = positive(text)
    if value >= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than 1e9 seconds; --keep is for ever")
    return value


def face_height(text: str) -> float:
    """A height in pixels that a picture may have."""
    from face_restore_shared.options import MAX_SIDE

    value = positive(text)
    if value > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MAX_SIDE} pixels")
    return value


def face_count(text: str) -> int:
    """How many faces may be taken; 0 is no limit."""
    from face_restore_shared.options import MAX_FACES

    value = whole(text)
    if value > MAX_FACES:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MAX_FACES} faces; 0 is no limit")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0; 100M and 1e8 are understood."""
    scale = {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e15 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(value)


def pixel_limit(text: str) -> int:
    """How many pixels a picture may have."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} would refuse every picture")
    return value


def thread_count(text: str) -> int:
    """A number of threads; 0 is every core, -N leaves N cores free."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of threads nor -1, which leaves one core free"
        ) from None


def percent(text: str) -> int:
    """A JPEG quality."""
    value = whole(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a quality from 1 to 100")
    return value


def device_name(text: str) -> str:
    """A device as torch names it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N and mps")
    return text


def face_choice(text: str) -> FaceChoice:
    """ "all", "largest", or numbers such as 1,3 or 2-4."""
    word = text.strip().lower()
    if word == "all":
        return FaceChoice()
    if word == "largest":
        return FaceChoice(largest=True)
    numbers: list[int] = []
    for part in word.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither all, largest nor numbers such as 1,3 or 2-4"
            )
        begin, end = int(first), int(last) if dash else int(first)
        if not 1 <= begin <= end <= 1000:
            raise argparse.ArgumentTypeError(f"{part.strip()!r}: faces are counted from 1")
        numbers += range(begin, end + 1)
    return FaceChoice(numbers=tuple(dict.fromkeys(numbers)))


def add_detection_options(parser: argparse.ArgumentParser) -> None:
    """Options on which faces are looked for."""
    group = parser.add_argument_group("which faces")
    group.add_argument(
        "--faces",
        type=face_choice,
        default=FaceChoice(),
        metavar="WHICH",
        help="all (default), largest, or numbers from left to right such as 1,3 or 2-4; "
        "`face-restore detect` shows the numbers",
    )
    group.add_argument("--largest", action="store_true", help="the same as --faces largest")
    group.add_argument(
        "--min-face",
        type=face_height,
        default=DEFAULT_MIN_FACE,
        metavar="PIXELS",
        help="leave out faces lower than this (default 12)",
    )
    group.add_argument(
        "--max-faces", type=face_count, default=0, metavar="N", help="take at most the N best faces"
    )
    group.add_argument(
        "--threshold",
        type=fraction,
        metavar="SCORE",
        help="how sure the detector must be, 0 to 1 (default: the detector's own)",
    )
    group.add_argument(
        "--rotations", action="store_true", help="also look for faces lying or upside down"
    )
    group.add_argument(
        "--selection",
        metavar="FILE",
        help="a picture of the same size: only faces whose centre is white in it",
    )
    group.add_argument("--detector", default="auto", metavar="MODEL", help="model that finds faces")


def add_general_options(parser: argparse.ArgumentParser) -> None:
    """Options on where and how the work is done."""
    group = parser.add_argument_group("how it is done")
    group.add_argument(
        "--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:1 or mps"
    )
    add_threads_option(group)
    group.add_argument(
        "--no-worker",
        action="store_true",
        help="do the work in this process instead of the worker (slower to start)",
    )
    group.add_argument(
        "--max-pixels",
        type=pixel_limit,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help="refuse larger pictures (default 100M)",
    )
    group.add_argument(
        "--recursive", "-r", action="store_true", help="look into sub-folders as well"
    )
    group.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="what is printed on standard output",
    )
    group.add_argument("--quiet", "-q", action="store_true", help="print errors only")


def add_threads_option(group: argparse._ActionsContainer) -> None:
    """--threads, the same wherever work is done."""
    group.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="processor threads, at most one for each core; -1 leaves one core to other programs "
        "(default: all cores)",
    )


def detect_options(args: argparse.Namespace) -> DetectOptions:
    """What the arguments mean to the detector."""
    from face_restore_shared.schema import DetectOptions

    return DetectOptions(
        detector=model_name(args.detector),
        threshold=args.threshold,
        min_face=args.min_face,
        max_faces=args.max_faces,
        rotations=args.rotations,
        only_largest=args.largest or args.faces.largest,
    )


def search_limits(args: argparse.Namespace) -> list[str]:
    """For a picture without a face: one sentence on the options that may have kept one away."""
    limits = []
    if args.min_face > DEFAULT_MIN_FACE:
        limits.append(f"--min-face {args.min_face:g}")
    if args.threshold is not None:
        limits.append(f"--threshold {args.threshold:g}")
    if args.selection is not None:
        limits.append(f"--selection {args.selection}")
    if not limits:
        return []
    less = "it" if len(limits) == 1 else "them"
    return [f"The search was limited by {' and '.join(limits)}: without {less} it may find a face."]


def restore_options(args: argparse.Namespace) -> RestoreOptions:
    """What the arguments mean to the restorer."""
    from face_restore_shared.schema import RestoreOptions

    return RestoreOptions(
        model=model_name(args.model),
        strength=args.strength,
        template=args.template,
        keep_colour=args.keep_colour,
        mask=args.mask,
        mask_softness=args.mask_softness,
        aligned=args.aligned,
        precision=args.precision,
        return_aligned=args.save_faces is not None,
    )


def model_name(text: str) -> str:
    """A model's id as given; a file's path made absolute, since the worker runs elsewhere.

    UsageError: its name is no text, so that no message can hold it.
    """
    path = Path(text).expanduser()
    is_path = os.sep in text or (os.altsep or os.sep) in text or path.suffix.lower() in _MODEL_FILES
    name = os.path.abspath(path) if is_path else text  # noqa: PTH100 - links stay as named
    if any("\ud800" <= c <= "\udfff" for c in name):
        from face_restore_worker.cli.jobs import UsageError
        from face_restore_worker.images.names import printable

        raise UsageError(
            f"The name of the model file {printable(name)} is not valid UTF-8.",
            hint="Rename the file, or the folder it lies in.",
        )
    return name


_MODEL_FILES = frozenset({".pth", ".pt", ".safetensors", ".onnx", ".ckpt"})
