#!/usr/bin/env python3
"""Write installer/locks/*.txt from the pins in *.in: each version with the hashes of its files.

    python3 installer/relock.py           after a pin was changed, added or taken away
    python3 installer/relock.py --check   only say whether the locks are what this would write

Needs uv (`pip install uv`), which asks pip's package index for the hashes of each version's files
for all platforms. Pins are not resolved: what an *.in file does not name is not installed
(pinned.py says why); only audit.in, which has an environment of its own, brings its needs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).resolve().parent / "locks"
OLDEST_PYTHON = "3.11"
HEADER = "# Written by installer/relock.py from {name}.in; change that one.\n"


def compiled(uv: str, source: Path) -> str:
    """The lock's text for the pins in `source`."""
    options = ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    options += ["--no-annotate", "--no-header", "--no-emit-index-url", "--quiet", "--no-config"]
    if source.stem != "audit":
        options.append("--no-deps")
    done = subprocess.run(
        [uv, "pip", "compile", *options, str(source)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"uv could not lock {source.name}; its words are above.")
    return HEADER.format(name=source.stem) + done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1 when they differ")
    args = parser.parse_args()
    uv = shutil.which("uv")
    if uv is None:
        print("uv is not installed: pip install uv", file=sys.stderr)
        return 2
    status = 0
    for source in sorted(LOCKS.glob("*.in")):
        text, lock = compiled(uv, source), source.with_suffix(".txt")
        if lock.exists() and lock.read_text(encoding="utf-8") == text:
            continue
        print(f"{lock.name} {'differs' if args.check else 'written'}")
        if args.check:
            status = 1
        else:
            lock.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
