#!/usr/bin/env python3
"""Look the pinned packages up in the public list of known weaknesses, with pip-audit.

    python3 installer/audit.py

Exit status 1 when a pinned version has one. Where the list cannot be reached this is said, and is
no failure. pip-audit gets an environment of its own, .venv-audit/, from locks/audit.txt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bootstrap
import pinned

GROUPS = ("runtime", "demo", "dev", "audit")
SECONDS = 300


def ensure_audit() -> Path:
    """The environment with pip-audit in it; raises pinned.SetupError when it cannot be made."""
    env = bootstrap.ROOT / ".venv-audit"
    stamp, lock = env / bootstrap.STAMP, pinned.LOCKS / "audit.txt"
    wanted = lock.read_text(encoding="utf-8")
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted):
        bootstrap.create_venv(env)
        pinned.install_locked(env, ["audit"])
        stamp.write_text(wanted, encoding="utf-8")
    return env


def look_up(env: Path) -> list[dict[str, Any]] | None:
    """What pip-audit says of each pin; None when it could not ask."""
    texts = [(pinned.LOCKS / f"{group}.txt").read_text(encoding="utf-8") for group in GROUPS]
    # A version that several locks pin must be named once.
    pins = dict.fromkeys("".join(map(pinned.plain_pins, texts)).splitlines())
    with tempfile.TemporaryDirectory(prefix="face-restore-") as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join([*pins, pinned.TORCH]) + "\n", encoding="utf-8")
        command = [str(pinned.env_bin(env, "pip-audit")), "--format", "json", "--no-deps"]
        command += ["--disable-pip", "--progress-spinner", "off", "-r", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            return list(json.loads(done.stdout)["dependencies"])
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return None


def judge(found: list[dict[str, Any]] | None) -> tuple[int, str]:
    """Exit status and words for what pip-audit said."""
    looked_up = [entry for entry in found or [] if "skip_reason" not in entry]
    if not looked_up:
        return 0, "known weaknesses: the list could not be reached, NOTHING WAS LOOKED UP"
    weak = [
        f"{entry['name']} {entry['version']}: {weakness['id']}"
        + (f", mended in {', '.join(weakness['fix_versions'])}" if weakness["fix_versions"] else "")
        for entry in looked_up
        for weakness in entry["vulns"]
    ]
    if weak:
        return 1, "known weaknesses:\n  " + "\n  ".join(weak)
    unknown = len(found or []) - len(looked_up)
    more = f"; {unknown} are not in the list" if unknown else ""
    return 0, f"known weaknesses: none in {len(looked_up)} packages{more}"


def main() -> int:
    try:
        env = ensure_audit()
    except pinned.SetupError as error:
        pinned.say(f"known weaknesses: NOTHING WAS LOOKED UP, pip-audit is missing. {error}")
        return 0
    status, text = judge(look_up(env))
    pinned.say(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
