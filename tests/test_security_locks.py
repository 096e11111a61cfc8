"""The locks: every file that is installed is known by its hash before it is."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import audit
import fake_wheels
import pinned
import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "installer" / "locks"
GROUPS = ("runtime", "demo", "dev")


def entries(name: str) -> list[str]:
    return pinned.lock_entries((LOCKS / name).read_text(encoding="utf-8"))


def pin(entry: str) -> tuple[str, str]:
    """Name as indexes normalise it, and version."""
    name, version = re.split(r"==", entry.split(";")[0].split("--hash")[0].strip())
    return re.sub(r"[-_.]+", "-", name).lower(), version.strip()


@pytest.mark.parametrize("group", [*GROUPS, "audit"])
def test_every_pin_has_hashes(group: str) -> None:
    found = entries(f"{group}.txt")
    for entry in found:
        assert re.fullmatch(r"\S+==[^\s;]+( ;.*?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry
    wanted = {pin(entry) for entry in entries(f"{group}.in")}
    locked = {pin(entry) for entry in found}
    assert wanted == locked if group != "audit" else wanted < locked


def test_the_locks_name_no_address() -> None:
    for path in LOCKS.iterdir():
        assert "://" not in path.read_text(encoding="utf-8"), path


def test_binary_packages_cover_the_platforms() -> None:
    """Compiled packages have files for several platforms: more hashes than one machine needs."""
    for name in ("numpy", "pillow", "pyzmq", "opencv-python-headless", "onnx"):
        (entry,) = (e for e in entries("runtime.txt") if pin(e)[0] == name)
        assert entry.count("--hash=") >= 6, name


def test_plain_pins_lose_nothing_but_hashes() -> None:
    hashes = " \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"
    text = f'# words\na==1{hashes}b==2 ; x == "y"{hashes}'
    assert pinned.plain_pins(text) == 'a==1\nb==2 ; x == "y"\n'
    assert pinned.plain_pins("a==1\n") == "a==1\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, the only source of pip, which installs into tmp_path/site."""
    wheel = fake_wheels.make_wheel(tmp_path / "source", "parts", "1.0", {"parts.py": ""})
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheel.parent.as_uri())
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    monkeypatch.setattr(pinned, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(pinned, "env_bin", lambda env, name: Path(sys.executable))
    return wheel


def test_a_package_with_another_hash_is_not_installed(tmp_path: Path, source: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    lock = tmp_path / "locks" / "runtime.txt"
    lock.write_text(f"parts==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(pinned.SetupError, match="not the one that was locked"):
        pinned.install_locked(tmp_path, ["runtime"])
    assert not (tmp_path / "site" / "parts.py").exists()
    lock.write_text(f"parts==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n")
    pinned.install_locked(tmp_path, ["runtime"])
    assert (tmp_path / "site" / "parts.py").exists()


def test_a_pin_without_a_hash_beside_others_is_refused(tmp_path: Path, source: Path) -> None:
    text = f"parts==1.0\nother==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    (tmp_path / "locks" / "runtime.txt").write_text(text)
    with pytest.raises(pinned.SetupError):
        pinned.install_locked(tmp_path, ["runtime"])
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        (None, 0, "NOTHING WAS LOOKED UP"),
        ([{"name": "a", "version": "1", "skip_reason": "not found"}], 0, "NOTHING WAS LOOKED UP"),
        ([{"name": "a", "version": "1", "vulns": []}], 0, "none in 1 packages"),
        (
            [
                {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]},
                {"name": "b", "version": "1", "skip_reason": "not found"},
            ],
            1,
            "a 1: X-1, mended in 2",
        ),
    ],
)
def test_a_known_weakness_fails_the_audit(
    found: list[dict[str, object]] | None, status: int, words: str
) -> None:
    assert audit.judge(found)[0] == status
    assert words in audit.judge(found)[1]
