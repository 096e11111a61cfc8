"""What `bootstrap.py test` runs: lint, types and tests; on request also GIMP, fuzzing and more.

Lies beside bootstrap.py in checkouts only. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
# Tests of the marker "long" take minutes each; "slow" ones are a few minutes together.
FAST, SLOW, ALL = "not slow and not long", "not long", "long or not long"

MEMORY_EACH = 2 << 30

Command = tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command `test`."""
    add = parser.add_argument
    add(
        "--gimp",
        nargs="?",
        const="3.0",
        choices=("3.0", "3.2"),
        help="also run the plug-in in a real GIMP 3, by default 3.0",
    )
    add(
        "--fuzz",
        nargs="?",
        const=30,
        type=int,
        metavar="SECONDS",
        help="also fuzz each target, by default for 30 s",
    )
    add("--audit", action="store_true", help="also look up known weaknesses")
    add("--slow", action="store_true", help="also the slow tests: a few minutes")
    add("--long", action="store_true", help="also the slow and the long tests: hours")
    add("--only-lint", action="store_true", help="lint and types only")
    add("pytest", nargs="*", help="arguments for pytest (after --)")


def run(options: argparse.Namespace, start: Callable[..., int], say: Callable[[str], None]) -> int:
    """Run every step, even when an earlier one failed; 1 when one did, else 0.

    start: runs a command of the environment and gives its exit status. say: tells the user.
    """
    failed = []
    for name, command in steps(options):
        say(f"{name}: {' '.join(command[2:])}")
        if start(*command) != 0:
            failed.append(name)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def steps(options: argparse.Namespace) -> list[tuple[str, Command]]:
    """Name and command of each step."""
    found: list[tuple[str, Command]] = [
        ("lint", ("python", "-m", "ruff", "check", ".")),
        ("format", ("python", "-m", "ruff", "format", "--check", ".")),
        ("types", ("python", "-m", "mypy")),
    ]
    if not options.only_lint:
        found.append(("tests", pytest_command(options)))
    if options.gimp:
        suite, dialog = (str(TESTS / "gimp" / f"run_{name}.py") for name in ("suite", "dialog"))
        found.append((f"GIMP {options.gimp}", ("python", suite, "--gimp", options.gimp)))
        name = f"GIMP {options.gimp} in a window"
        found.append((name, ("python", dialog, "--gimp", options.gimp)))
    if options.fuzz:
        fuzz, seconds = str(TESTS / "fuzz" / "run.py"), str(options.fuzz)
        # The same inputs every time: what CI says of a change is about that change.
        found.append(("fuzzing", ("python", fuzz, "all", "--seconds", seconds, "--seed", "1")))
    if options.audit:
        found.append(("known weaknesses", ("python", str(HERE / "audit.py"))))
    return found


def processes_at_once(cores: int, memory: int) -> int:
    """How many tests to run at once. memory: the machine's, in bytes.

    Many wait for processes rather than compute: one more than there are cores. Each process has
    torch loaded, and some work on large pictures.
    """
    return max(1, min(cores + 1, memory // MEMORY_EACH))


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 2


def memory() -> int:
    """The machine's memory in bytes; plenty where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def pytest_command(options: argparse.Namespace) -> Command:
    """The command of the tests that are asked for."""
    jobs = str(processes_at_once(cores(), memory()))
    chosen = ALL if options.long else SLOW if options.slow else FAST
    # Neighbours stay together: what a module's tests share is made once, not in every process.
    shared_out = ("-n", jobs, "--dist", "worksteal")
    return ("python", "-m", "pytest", *shared_out, "-m", chosen, *options.pytest)
