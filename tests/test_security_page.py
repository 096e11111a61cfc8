"""SECURITY.md: every promise names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import run

TESTS = Path(__file__).resolve().parent
TEXT = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(test_\w+(?:\.py)?)`", TEXT)
    files = [name for name in named if name.endswith(".py")]
    there = {name for file in files for name in functions(TESTS / file)}
    wanted = [name for name in named if not name.endswith(".py")]
    assert len(files) >= 8 and len(wanted) >= 20
    assert [name for name in wanted if name not in there] == []


def test_every_fuzzing_target_is_named() -> None:
    assert all(f"`{name}`" in TEXT for name in run.TARGETS)


def test_no_address_of_a_host() -> None:
    assert "://" not in TEXT
