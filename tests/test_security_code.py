"""No pickle, eval or shell: what the code that is installed may never call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("worker/face_restore_worker", "shared", "plugin_gimp", "installer", "worker/training")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Modules whose reading runs code, or that hand text to a shell.
_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "jsonpickle",
}
_MODULES |= {"jsonpickle", "joblib", "yaml", "commands", "code", "codeop", "runpy", "imp", "pandas"}
_NAMES = {"eval", "exec", "compile", "__import__", "execfile", "input"}
_CALLS = {"os.system", "os.popen", "os.execl", "os.execlp", "os.spawnl", "os.spawnlp"}
_CALLS |= {"subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn", "mmap.exec"}
_CALLS |= {"tempfile.mktemp", "torch.hub.load", "torch.jit.load", "numpy.fromregex"}
_LOADS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def complaints(tree: ast.AST) -> Iterator[str]:
    """What a source does that none of this project's may."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names if isinstance(node, ast.Import)]
            for name in names:
                if name.split(".")[0] in _MODULES:
                    yield f"line {node.lineno}: imports {name}"
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    keywords = {k.arg: k.value for k in node.keywords}
    if (isinstance(node.func, ast.Name) and name in _NAMES) or name in _CALLS:
        yield f"line {node.lineno}: calls {name}"
    if "shell" in keywords:
        yield f"line {node.lineno}: {name} with shell="
    if name in _LOADS:
        keyword, wanted = _LOADS[name]
        given = keywords.get(keyword)
        if not (isinstance(given, ast.Constant) and given.value is wanted):
            yield f"line {node.lineno}: {name} without {keyword}={wanted}"
    starts = name.startswith("subprocess.") and name.split(".")[1] in (
        "run",
        "Popen",
        "call",
        "check_call",
        "check_output",
    )
    if starts and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp):
        yield f"line {node.lineno}: {name} with a text instead of a list of arguments"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_is_run(path: Path) -> None:
    assert list(complaints(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import a, marshal",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run('ls')",
        "subprocess.Popen(f'ls {x}')",
        "subprocess.run(['ls'], shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_finds_each(text: str) -> None:
    assert len(list(complaints(ast.parse(text)))) == 1


def test_all_sources_are_searched() -> None:
    names = {path.name for path in SOURCES}
    assert {"torch_file.py", "bootstrap.py", "wire.py", "procedures.py", "process.py"} <= names
