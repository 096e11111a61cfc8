"""``face-restore detect``: show the faces of pictures and their numbers; nothing is written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.cli import settings
from face_restore_worker.cli.exits import Exit, exit_for

_EXAMPLES = """\
examples:
  face-restore detect group.jpg
  face-restore detect 'album/*.jpg' --format json

The numbers, from left to right, are those that `face-restore restore --faces` takes with
the same options.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``detect`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "detect",
        help="show the faces in pictures and their numbers",
        description="Show the faces in pictures; nothing is restored or written.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("inputs", nargs="+", metavar="IN", help="picture, folder or pattern")
    settings.add_detection_options(parser)
    settings.add_general_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore detect ...``; returns the exit status."""
    from face_restore_worker.cli import report as out
    from face_restore_worker.cli.backend import open_backend
    from face_restore_worker.cli.jobs import sources
    from face_restore_worker.cli.runner import is_fatal

    paths = sources(args.inputs, recursive=args.recursive)
    reports: list[out.FileReport] = []
    fatal: FaceRestoreError | None = None

    def tell(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    try:
        with open_backend(args, tell) as backend:
            for path in paths:
                report = _one(path, args, backend)
                reports.append(report)
                if args.format == "text":
                    _show(report, args.quiet)
                if report.error is not None and is_fatal(report.error):
                    fatal = report.error
                    break
    except FaceRestoreError as error:
        fatal = error
        out.say_error(error)
    if args.format == "json":
        out.print_json(reports, len(paths) - len(reports))
    if fatal is not None:
        return exit_for(fatal)
    return Exit.SOME_FAILED if any(report.error for report in reports) else Exit.OK


def _one(path: Path, args: argparse.Namespace, backend: Any) -> Any:
    from face_restore_worker.cli.choice import choose
    from face_restore_worker.cli.outputs import read_selection
    from face_restore_worker.cli.report import FileReport, face_report, unforeseen
    from face_restore_worker.images.names import printable
    from face_restore_worker.images.read import read_image

    report = FileReport(printable(path))
    try:
        picture = read_image(path, max_pixels=args.max_pixels)
        selection = None
        if args.selection is not None:
            selection = read_selection(
                Path(args.selection), picture.width, picture.height, args.max_pixels
            )
        options = settings.detect_options(args)
        found = backend.detect(picture.working(), options, selection)
        report.detector = found.detector
        report.notes = picture.notes + found.notes
        report.notes += [] if found.faces else settings.search_limits(args)
        chosen = choose(found, args, report.name)
        report.faces = [face_report(number, face) for number, face in chosen.faces.items()]
        report.status = "detected"
    except FaceRestoreError as error:
        if error.code == "cancelled":
            raise KeyboardInterrupt from error
        report.error = error
    except Exception as error:
        report.error = unforeseen(error, report.name)
    return report


def _show(report: Any, quiet: bool) -> None:
    from face_restore_worker.cli.report import printable_text, say_error

    if report.error is not None:
        say_error(report.error)
        return
    count = len(report.faces)
    faces = {0: "no face", 1: "1 face"}.get(count, f"{count} faces")
    print(f"{report.name}: {faces} ({report.detector})")
    for note in [] if quiet else report.notes:
        print(f"note: {report.name}: {printable_text(note)}", file=sys.stderr)
    for face in report.faces:
        x0, y0, x1, y1 = face["box"]
        print(
            f"  {face['number']:>3}  at {x0:.0f}, {y0:.0f}, {x1 - x0:.0f} x {y1 - y0:.0f} pixels, "
            f"score {face['score']:.2f}"
        )
    sys.stdout.flush()
