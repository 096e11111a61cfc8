"""``face-restore restore``: restore the faces in pictures, folders and patterns."""

from __future__ import annotations

import argparse
from typing import Any

from face_restore_worker.cli import settings
from face_restore_worker.cli.jobs import ORA, UsageError, plan

_EXAMPLES = """\
examples:
  face-restore restore portrait.jpg -o restored.jpg
  face-restore restore scan.tif -o scan.ora            layers for GIMP or Krita
  face-restore restore holiday/ -o holiday-restored/   a folder; run again to go on
  face-restore restore 'album/**/*.jpg' -o out/        a pattern (quoted)
  face-restore restore group.png -o out.png --faces 1,3 --strength 0.7
  face-restore restore face.png -o out.png --aligned   a crop that is aligned already

A folder run skips outputs newer than their inputs, goes on after a bad picture, lists
the bad ones at the end and then ends with status 1. No input is ever overwritten.
Outputs keep bit depth, transparency, ICC profile, EXIF (turned upright) and resolution;
the extension chooses the format: .png .jpg .tif .webp .avif .ora.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``restore`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "restore",
        help="restore the faces in pictures",
        description="Restore the faces in pictures, folders of pictures, and patterns.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("inputs", nargs="+", metavar="IN", help="picture, folder or pattern")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file for one picture, else a folder"
    )
    _add_restoring_options(parser)
    settings.add_detection_options(parser)
    _add_output_options(parser)
    settings.add_general_options(parser)
    return parser


def _add_restoring_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how they are restored")
    group.add_argument("--model", default="auto", help="a model's id, or a checkpoint file")
    group.add_argument(
        "--strength",
        type=settings.fraction,
        default=1.0,
        help="0 (nothing changes) to 1 (default); an .ora layer's opacity",
    )
    group.add_argument(
        "--template",
        choices=("ffhq", "gpen"),
        default="ffhq",
        help="how faces are aligned: FFHQ's template (default), or the one of GPEN's authors",
    )
    group.add_argument(
        "--aligned", action="store_true", help="the picture is an aligned face already"
    )
    group.add_argument(
        "--mask",
        choices=("auto", "parse", "oval"),
        default="auto",
        help="where the face shows: parsed (needs ParseNet), a soft oval, or what is there",
    )
    group.add_argument(
        "--mask-softness",
        type=settings.positive,
        default=1.0,
        metavar="FACTOR",
        help="width of the mask's soft edge, 0 to 4 (default 1)",
    )
    group.add_argument(
        "--no-keep-colour",
        "--no-keep-color",
        dest="keep_colour",
        action="store_false",
        help="take the model's colours instead of keeping the original's tint",
    )
    # What compat.py found as --size, only to compare it with the checkpoint's own.
    group.add_argument("--expected-size", type=int, help=argparse.SUPPRESS)
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--ext",
        metavar=".EXT",
        help="format of the outputs in a folder, such as .png (default: as each input)",
    )
    group.add_argument(
        "--quality",
        type=settings.percent,
        metavar="1-100",
        help="of JPEG, WebP and AVIF (default: a JPEG input's own, else 95)",
    )
    group.add_argument(
        "--save-faces", metavar="FOLDER", help="also write each aligned face, before and after"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace outputs that exist; do all again"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore restore ...``; returns the exit status."""
    _check(args)
    todo = plan(
        args.inputs,
        args.output,
        recursive=args.recursive,
        extension=_extension(args.ext),
        apart=[] if args.save_faces is None else [args.save_faces],
    )
    todo.notes += _without_effect(args)
    from face_restore_worker.cli.runner import Run

    return Run(args, todo).execute()


def _extension(text: str | None) -> str | None:
    if text is None:
        return None
    from face_restore_worker.images.formats import WRITABLE

    extension = "." + text.lower().lstrip(".")
    if extension not in (*WRITABLE, ORA):
        raise UsageError(
            f"--ext {text} is no format that can be written.",
            hint=f"Use one of {', '.join((*WRITABLE, ORA))}.",
        )
    return extension


def _without_effect(args: argparse.Namespace) -> list[str]:
    """One remark on the options that --aligned makes needless: no face is searched or cut out."""
    if not args.aligned:
        return []
    given = {
        "--faces largest": args.faces.largest,
        "--largest": args.largest,
        "--min-face": args.min_face != settings.DEFAULT_MIN_FACE,
        "--max-faces": args.max_faces != 0,
        "--threshold": args.threshold is not None,
        "--rotations": args.rotations,
        "--detector": args.detector != "auto",
        "--mask": args.mask != "auto",
        "--mask-softness": args.mask_softness != 1.0,
    }
    names = [name for name, is_given in given.items() if is_given]
    if not names:
        return []
    verb = "has" if len(names) == 1 else "have"
    why = "--aligned takes the whole picture as one face"
    return [f"{' and '.join(names)} {verb} no effect: {why}"]


def _check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if args.mask_softness > 4:
        raise UsageError("--mask-softness goes from 0 to 4.")
    if args.aligned and (args.faces.numbers or args.selection):
        raise UsageError(
            "--aligned takes the whole picture as one face.",
            hint="Leave out --faces and --selection.",
        )
    if args.faces.numbers and args.largest:
        raise UsageError("--largest and --faces NUMBERS contradict each other.")
    if args.selection is not None and len(args.inputs) != 1:
        raise UsageError("--selection belongs to one picture.", hint="Restore them one by one.")
