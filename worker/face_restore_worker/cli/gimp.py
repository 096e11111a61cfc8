"""``face-restore gimp``: bring the plug-in into GIMP, check it there, take it away."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.version import __version__

from face_restore_worker.cli.exits import Exit, exit_for
from face_restore_worker.cli.jobs import UsageError
from face_restore_worker.cli.settings import positive

if TYPE_CHECKING:
    from face_restore_worker.gimp.install import Plan, Target

_EXAMPLES = """\
examples:
  face-restore gimp install
  face-restore gimp check
  face-restore gimp install --gimp ~/Applications/GIMP-3.0.4-x86_64.AppImage
  face-restore gimp uninstall

Without options every GIMP 3 profile of yours is meant: of the distribution's GIMP, Flatpak's,
an AppImage's, and on Windows and macOS. The plug-in is in Filters > Enhance > Restore Faces,
after GIMP's next start.

Ends with status 0 when all is well, 1 when something is not right in some of the profiles,
3 when in all of them, or when there is no GIMP 3.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``gimp`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "gimp",
        help="install the plug-in into GIMP, check or remove it",
        description="The plug-in in your GIMP 3.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, words in (
        ("install", "install the plug-in or bring it up to date, then try it in GIMP"),
        ("check", "check the plug-in's files, the worker's command, and try it in GIMP"),
        ("uninstall", "remove the plug-in and its settings"),
    ):
        command = actions.add_parser(name, help=words, description=words + ".")
        command.add_argument(
            "--profile",
            action="append",
            default=[],
            metavar="DIR",
            help="a profile's folder, such as ~/.config/GIMP/3.0; instead of all (repeatable)",
        )
        command.add_argument(
            "--gimp", metavar="COMMAND", help="the command of the GIMP that is meant; only this one"
        )
        if name != "uninstall":
            command.add_argument("--no-test", action="store_true", help="do not start GIMP")
            command.add_argument(
                "--timeout",
                type=_seconds,
                default=180.0,
                metavar="SECONDS",
                help="how long GIMP may take for the test (180)",
            )
    return parser


def _seconds(value: str) -> float:
    seconds = positive(value)
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a time of more than 0 and less than 86400 seconds"
        )
    return seconds


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore gimp ...``; returns the exit status."""
    from face_restore_worker.gimp import install
    from face_restore_worker.gimp.surroundings import Surroundings

    surroundings = Surroundings.here()
    folders = [Path(text).expanduser().absolute() for text in args.profile]
    command = _words(args.gimp) if args.gimp else []
    if args.action == "uninstall" and not folders and not command:
        plan = install.plan_removal(surroundings)
        if not plan.targets:
            print("There is no profile of GIMP 3, so nothing to remove.")
    else:
        plan = install.plan(surroundings, folders=folders, command=command)
    work = {"install": _install, "check": _check, "uninstall": _uninstall}[args.action]
    states = [_one(work, target, args) for target in plan.targets]
    _finish(plan, args.action, states)
    if all(state == Exit.OK for state in states):
        return Exit.OK
    return Exit.SOME_FAILED if Exit.OK in states else Exit.CANNOT_WORK


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command, posix=os.name != "nt")
    except ValueError as error:
        raise UsageError(
            f"The command --gimp {command} cannot be read: {str(error).lower()}.",
            hint="Quote names with spaces in it as for a shell.",
        ) from error


def _one(
    work: Callable[[Target, argparse.Namespace], bool], target: Target, args: argparse.Namespace
) -> Exit:
    sandbox = f" ({target.profile.sandbox})" if target.profile.sandbox else ""
    print(f"{target.folder}{sandbox}", flush=True)
    try:
        return Exit.OK if work(target, args) else Exit.CANNOT_WORK
    except FaceRestoreError as error:
        _complain(error.message, error.hint)
        return exit_for(error)


def _install(target: Target, args: argparse.Namespace) -> bool:
    from face_restore_worker.gimp import check, install
    from face_restore_worker.gimp.surroundings import Surroundings

    before = check.installed_version(check.plugin_folder(target.folder))
    install.install(Surroundings.here(), target)
    problems = check.find_problems(target.folder)
    if problems:
        _complain("; ".join(problems), "face-restore doctor checks the set-up.")
        return False
    replaced = f", in place of {before}" if before and before != __version__ else ""
    print(f"  the plug-in {__version__} is installed{replaced}", flush=True)
    return _try_out(target, args)


def _check(target: Target, args: argparse.Namespace) -> bool:
    from face_restore_worker.gimp import check

    problems = check.find_problems(target.folder)
    for problem in problems:
        _complain(problem)
    if problems:
        print("  -> face-restore gimp install", file=sys.stderr)
        return False
    print(f"  the plug-in {__version__} and the worker's command are whole", flush=True)
    return _try_out(target, args)


def _uninstall(target: Target, _args: argparse.Namespace) -> bool:
    from face_restore_worker.gimp import install

    gone = install.uninstall(target.folder)
    for path in gone:
        print(f"  removed {path}")
    if not gone:
        print("  nothing of the plug-in is there")
    return True


def _try_out(target: Target, args: argparse.Namespace) -> bool:
    """The self-test in each GIMP that uses this profile; True when none failed."""
    from face_restore_worker.gimp import selftest

    if args.no_test:
        print("  not tried in GIMP (--no-test)")
        return True
    if not target.programs:
        series = target.profile.series or "3"
        print(f"  not tried: no GIMP {series} was found to start (--gimp COMMAND names one)")
        return True
    is_good = True
    for program in target.programs:
        print(f"  trying it in {program.name} …", flush=True)
        verdict = selftest.run(
            program, target.folder, seconds=args.timeout, name_profile=target.is_named
        )
        if verdict.is_working:
            print(f"  {verdict.text}", flush=True)
        else:
            _complain(verdict.text, verdict.hint)
            is_good = False
    return is_good


def _complain(text: str, hint: str = "") -> None:
    print(f"  {text}", file=sys.stderr)
    if hint:
        print(f"  -> {hint}", file=sys.stderr, flush=True)


def _finish(plan: Plan, action: str, states: list[Exit]) -> None:
    for note in plan.notes:
        print(note, file=sys.stderr)
    if action == "install" and Exit.OK in states:
        print("In GIMP: Filters > Enhance > Restore Faces. A GIMP that runs must be restarted.")
        if any(p.kind == "Flatpak" for target in plan.targets for p in target.programs):
            print(
                "A GIMP from Flatpak cannot start the worker itself: run `face-restore worker "
                "start` before, or install the systemd unit that starts it on demand."
            )
