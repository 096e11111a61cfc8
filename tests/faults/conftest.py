"""Fault tests: what they found is printed as a table at the end of `pytest tests/faults`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> harness.Tell:
    """tell(fault, trials, what happened): one row of the table."""

    def row(fault: str, trials: int, happened: str) -> None:
        record_property("fault", [fault, trials, happened])

    return row


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[harness.FaultHome]:
    """A home of its own, also for this process; whatever runs there is ended afterwards."""
    made = harness.FaultHome(tmp_path)
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    yield made
    made.end_all()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the rows of all tests, those that ran in other processes, too."""
    rows = [
        value
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, [])
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "fault"
    ]
    if not rows:
        return
    terminalreporter.section("faults")
    width = max(len(fault) for fault, _, _ in rows)
    terminalreporter.write_line(f"{'fault':<{width}}  trials  what happened")
    for fault, trials, happened in rows:
        terminalreporter.write_line(f"{fault:<{width}}  {trials:>6}  {happened}")
