"""``face-restore``: the command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.version import __version__

from face_restore_worker.cli import (
    bench,
    bundle,
    compat,
    detect,
    doctor,
    gimp,
    models,
    restore,
    worker,
)
from face_restore_worker.cli.exits import Exit, describe_exits, exit_for
from face_restore_worker.cli.jobs import UsageError
from face_restore_worker.threads import share_processor

_EPILOG = """\
examples:
  face-restore restore portrait.jpg -o restored.jpg
  face-restore restore holiday/ -o holiday-restored/
  face-restore models download gpen-bfr-2048
  face-restore doctor

GPEN's own command lines work as well, without a command in front:
  face-restore --input a.jpg --output b.jpg --model_path weights/gpen-bfr-2048.pth --size 2048
  face-restore --indir photos --outdir restored

exit statuses:
{exits}

environment:
  FACE_RESTORE_HOME      folder for everything this program keeps
  FACE_RESTORE_MODELS    folder for the models
  FACE_RESTORE_THREADS   as --threads, for workers that GIMP or `restore` starts
  FACE_RESTORE_NATIVE=0  compute without the compiled kernels (slower)
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run`` to what carries it out."""
    parser = argparse.ArgumentParser(
        prog="face-restore",
        description="Restore faces in photographs with GPEN-BFR-2048, locally and offline.",
        epilog=_EPILOG.format(exits=describe_exits()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"face-restore {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    restore.add_parser(commands)
    detect.add_parser(commands)
    models.add_parser(commands)
    worker.add_parser(commands)
    worker.add_status_parser(commands)
    gimp.add_parser(commands)
    bundle.add_parser(commands)
    bench.add_parser(commands)
    doctor.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (see ``exits.Exit``)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    _end_in_order()
    share_processor()
    try:
        if compat.is_legacy(arguments):
            arguments = compat.translate(arguments)
        args = build_parser().parse_args(arguments)
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except UsageError as error:
        _say(error)
        return Exit.USAGE
    except FaceRestoreError as error:
        _say(error)
        return exit_for(error)
    except KeyboardInterrupt:
        print("face-restore: interrupted.", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does. Nothing more can be printed.
        _drop_output()
        return Exit.SOME_FAILED
    except OSError as error:
        # What reads and writes pictures and models has sentences of its own; this is the rest, such
        # as a full disk behind standard output.
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        print(f"face-restore: {name}{error.strerror or error}.", file=sys.stderr)
        _drop_output()
        return Exit.CANNOT_WORK


def _drop_output() -> None:
    """Nothing more can be printed: let what still waits in the buffer go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: no descriptor behind it, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(error: FaceRestoreError) -> None:
    from face_restore_worker.cli.report import say_error

    say_error(error)


def _prepare_streams() -> None:
    """Neither file names of any bytes nor closed streams may end the program when it prints."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - for good
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _end_in_order() -> None:
    """SIGTERM, and the end of the terminal, end as Ctrl-C does.

    The job is cancelled, no half-written file is left, nor a worker that a benchmark started.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) is signal.SIG_IGN:  # Windows; nohup
            continue
        # Not in another thread, where Python sets no handlers.
        with contextlib.suppress(ValueError):
            signal.signal(number, handle)
