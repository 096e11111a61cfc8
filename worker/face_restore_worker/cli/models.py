"""``face-restore models``: list, download, import, verify, remove, path."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.cli.exits import Exit, exit_for
from face_restore_worker.cli.report import say_error
from face_restore_worker.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from face_restore_worker.models.catalogue import Licence, ModelEntry
    from face_restore_worker.models.store import ModelStore

_EXAMPLES = """\
examples:
  face-restore models list
  face-restore models download gpen-bfr-2048
  face-restore models import ~/Downloads/GPEN-BFR-2048.pth
  face-restore models path
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``models`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "models",
        help="list, download, import, verify and remove models",
        description="The models on this machine and where to get others.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    command = actions.add_parser("list", help="show all models, their licences and which are here")
    command.add_argument("--format", choices=("text", "json"), default="text")

    command = actions.add_parser("download", help="fetch models and install them")
    command.add_argument("names", nargs="+", metavar="NAME", help="id or file name of a model")
    command.add_argument(
        "--accept-license",
        "--accept-licence",
        dest="accept_license",
        action="store_true",
        help="you have read the model's licence and accept it (for scripts)",
    )
    command.add_argument("--quiet", action="store_true", help="no progress")

    command = actions.add_parser("import", help="install a model from a file you have")
    command.add_argument("file", metavar="FILE", help=".pth, .pt, .safetensors or .onnx")
    command.add_argument("--as", dest="name", metavar="ID", help="the model it has to be")

    command = actions.add_parser("verify", help="check every byte of one or all installed models")
    command.add_argument("name", nargs="?", metavar="NAME")
    command.add_argument("--format", choices=("text", "json"), default="text")

    command = actions.add_parser("remove", help="delete an installed model")
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "--forget-pin",
        action="store_true",
        help="also forget the digest first seen, so that a changed file can be downloaded",
    )

    command = actions.add_parser("path", help="print the folder of the models, or a model's file")
    command.add_argument("name", nargs="?", metavar="NAME")
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore models ...``; returns the exit status, errors on standard error."""
    from face_restore_worker.models.store import ModelStore

    try:
        return _ACTIONS[args.action](ModelStore(), args)
    except FaceRestoreError as error:
        say_error(error)
        is_wrong_input = args.action == "import" and isinstance(error, CheckpointError)
        return Exit.SOME_FAILED if is_wrong_input else exit_for(error)
    except KeyboardInterrupt:
        print("face-restore: interrupted; what was downloaded is kept.", file=sys.stderr)
        return Exit.INTERRUPTED


def _list(store: ModelStore, args: argparse.Namespace) -> int:
    from face_restore_worker.models.files import show_bytes

    rows = store.describe()
    if args.format == "json":
        print(json.dumps({"folder": str(store.root), "models": rows}, indent=2))
        return Exit.OK
    print(f"Models in {store.root} (* = used unless you choose another)\n")
    for row in rows:
        state = "built in" if row["builtin"] else "installed" if row["installed"] else "-"
        size = show_bytes(row["size"]) if row["size"] else ""
        mark = "*" if row["default"] else " "
        print(f"{mark} {row['id']:<22} {row['kind']:<9} {state:<10} {size:>9}  {row['name']}")
        print(f"    {row['purpose']}")
        print(f"    Licence: {row['licence']}")
    print()
    licences = {entry.licence.id: entry.licence for entry in store.catalogue}
    for licence in licences.values():
        print(_paragraph(f"{licence.name}. {licence.text}"))
        print()
    return Exit.OK


def _download(store: ModelStore, args: argparse.Namespace) -> int:
    """Fetch all that can be; 1 when only some could, else as the errors say."""
    entries = {entry.id: entry for entry in map(store.catalogue.get, args.names)}
    failed: dict[str, Exit] = {}
    for entry in entries.values():
        try:
            print(_fetch(store, entry, args), flush=True)
        except FaceRestoreError as error:
            say_error(error)
            failed[entry.id] = exit_for(error)
    if failed and len(entries) > 1:
        names = ", ".join(failed)
        print(f"Not installed, {len(failed)} of {len(entries)}: {names}.", file=sys.stderr)
    if len(failed) < len(entries):
        return Exit.SOME_FAILED if failed else Exit.OK
    return failed.popitem()[1] if len(set(failed.values())) == 1 else Exit.CANNOT_WORK


def _fetch(store: ModelStore, entry: ModelEntry, args: argparse.Namespace) -> str:
    """Install a model unless it is there; returns what to tell. Raises FaceRestoreError."""
    from face_restore_worker.cli.progress import ProgressBar
    from face_restore_worker.models.download import Job, download

    known = store.find_installed(entry) if not entry.builtin else None
    if known is not None:
        return f"{entry.name} is installed already: {known.path}"
    with ProgressBar(description=entry.id, quiet=args.quiet) as bar:
        job = Job(
            ask=_asker(args.accept_license),
            progress=lambda progress: bar.set(progress.done, progress.total),
            notify=bar.write,
        )
        model = download(store, entry.id, job)
    return f"{entry.name} is installed: {model.path}"


def _asker(is_accepted: bool) -> Callable[[Licence], bool]:
    def ask(licence: Licence) -> bool:
        print(_paragraph(licence.name), file=sys.stderr)
        print(_paragraph(licence.text), file=sys.stderr)
        if licence.url:
            print(f"  {licence.url}", file=sys.stderr)
        if is_accepted:
            print("Accepted by --accept-license.", file=sys.stderr)
            return True
        if not sys.stdin.isatty():
            raise ModelError(
                "The licence has to be accepted, and there is no terminal to ask at.",
                hint="Run the command with --accept-license once you have read it.",
                code="licence-needed",
            )
        print("Do you accept this? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().casefold() in ("y", "yes")

    return ask


def _import(store: ModelStore, args: argparse.Namespace) -> int:
    from face_restore_worker.models.importer import import_file

    def notify(text: str) -> None:
        print(_paragraph(text), file=sys.stderr)

    model = import_file(store, args.file, name=args.name, notify=notify)
    print(f"{model.entry.name} is installed: {model.path}")
    return Exit.OK


def _verify(store: ModelStore, args: argparse.Namespace) -> int:
    ids = [args.name] if args.name else store.present_ids()
    found = {store.catalogue.get(name).id: store.verify(name) for name in ids}
    if args.format == "json":
        print(json.dumps(found, indent=2))
    for name, problems in found.items():
        if args.format == "text":
            print(f"{name}: {'; '.join(problems) if problems else 'good'}")
    is_bad = any(found.values())
    if is_bad:
        print(
            "Remove a damaged model (`face-restore models remove NAME`), then get it again.",
            file=sys.stderr,
        )
    return Exit.SOME_FAILED if is_bad else Exit.OK


def _remove(store: ModelStore, args: argparse.Namespace) -> int:
    entry = store.catalogue.get(args.name)
    if args.forget_pin:
        from face_restore_worker.models.ledger import Ledger

        if Ledger(store).forget_pin(entry.id):
            print(f"Forgot the digest {entry.id} was first seen with.")
            if not store.model_path(entry).is_file():
                return Exit.OK
    for path in store.remove(args.name):
        print(f"Removed {path}")
    return Exit.OK


def _path(store: ModelStore, args: argparse.Namespace) -> int:
    print(store.path(args.name) if args.name else store.root)
    return Exit.OK


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 98, initial_indent="  ", subsequent_indent="  ")


_ACTIONS: dict[str, Callable[[ModelStore, argparse.Namespace], int]] = {
    "list": _list,
    "download": _download,
    "import": _import,
    "verify": _verify,
    "remove": _remove,
    "path": _path,
}
