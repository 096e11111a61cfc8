"""What the set-up's command `test` runs: which tests, and that nothing hides a failure."""

from __future__ import annotations

import argparse
import subprocess
import sys

import checks
import pytest
from cli_process import ROOT

GIGABYTE = 1 << 30


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    checks.add_options(parser)
    return parser.parse_args(words)


def commands(*words: str) -> dict[str, tuple[str, ...]]:
    return dict(checks.steps(options(*words)))


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], "not slow and not long"),
        (["--slow"], "not long"),
        (["--long"], "long or not long"),
        (["--slow", "--long"], "long or not long"),
    ],
)
def test_marks(words: list[str], chosen: str) -> None:
    tests = commands(*words)["tests"]
    assert tests[tests.index("-m", 2) + 1] == chosen
    assert list(commands(*words)) == ["lint", "format", "types", "tests"]


def test_arguments_for_pytest_come_last() -> None:
    assert commands("--", "-k", "pasteback")["tests"][-2:] == ("-k", "pasteback")
    assert "tests" not in commands("--only-lint")


def test_everything_at_once() -> None:
    found = commands("--slow", "--gimp", "--fuzz", "--audit")
    assert list(found) == [
        *("lint", "format", "types", "tests", "GIMP 3.0", "GIMP 3.0 in a window"),
        *("fuzzing", "known weaknesses"),
    ]
    assert found["fuzzing"][2:] == ("all", "--seconds", "30", "--seed", "1")


def test_every_step_runs_and_each_failure_is_named() -> None:
    begun: list[str] = []
    said: list[str] = []

    def start(*command: str) -> int:
        begun.append(command[2])
        return 1 if command[2] in ("ruff", "pytest") else 0

    assert checks.run(options(), start, said.append) == 1
    assert begun == ["ruff", "ruff", "mypy", "pytest"]
    assert said[-1] == "failed: lint, format, tests"
    assert checks.run(options(), lambda *command: 0, said.append) == 0
    assert "failed" not in said[-1]


def test_no_more_processes_than_the_machine_has_room_for() -> None:
    assert checks.processes_at_once(2, 24 * GIGABYTE) == 3
    assert checks.processes_at_once(64, 16 * GIGABYTE) == 8
    assert checks.processes_at_once(4, GIGABYTE) == 1
    assert checks.processes_at_once(checks.cores(), checks.memory()) >= 1


def test_the_set_up_finds_its_parts_where_python_does_not_look() -> None:
    """As with PYTHONSAFEPATH: the script's folder is not searched for modules."""
    command = [sys.executable, "-P", str(ROOT / "installer" / "bootstrap.py"), "test", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--fuzz" in done.stdout, done.stderr
