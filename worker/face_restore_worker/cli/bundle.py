"""``face-restore bundle``: an archive that installs everything without a network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from face_restore_worker.cli.exits import Exit

_EPILOG = """\
The bundle fits machines like this one: same system, processor and Python version. Unpacked
there, `python3 install.py` checks every file against the manifest and installs environment,
command, models and GIMP plug-in; nothing is fetched.

examples:
  face-restore bundle face-restore-offline.tar.gz
  face-restore bundle out.zip --models gpen-bfr-2048,retinaface-resnet50
  face-restore bundle small.tar.gz --no-models      with the built-in models only
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``bundle`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bundle",
        help="make an archive for machines without a network",
        description="Pack wheels, models and plug-in into one archive.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUT", help="the archive: .tar.gz or .zip")
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--models", metavar="ID,ID", help="these installed models (default: all)")
    models.add_argument("--no-models", action="store_true", help="no models but the built-in ones")
    parser.add_argument(
        "--torch",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="which build of torch (auto: CUDA where an NVIDIA GPU answers)",
    )
    parser.add_argument("--torch-index", metavar="URL", help="a further package source for torch")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore bundle``; returns the exit status."""
    from face_restore_worker.bundle import build
    from face_restore_worker.bundle.sources import chosen_models
    from face_restore_worker.models.files import show_bytes
    from face_restore_worker.models.store import ModelStore

    path = Path(args.output).expanduser().absolute()
    build.check_output(path, args.overwrite)
    names = args.models.split(",") if args.models else None
    models = [] if args.no_models else chosen_models(ModelStore(), names)
    for model in models:
        print(f"with {model.entry.name}; its licence: {model.entry.licence.name}", file=sys.stderr)
    if models:
        print("Whoever gets the bundle gets the models under these licences.", file=sys.stderr)
    recipe = build.Recipe(models, args.torch, args.torch_index)
    made = build.make(path, recipe, lambda text: print(text, file=sys.stderr, flush=True))
    print(f"{made.path}: {show_bytes(made.size)}, {made.files} files")
    print(f"On the other machine: unpack it and run python3 {build.bundle_name()}/install.py")
    return Exit.OK
