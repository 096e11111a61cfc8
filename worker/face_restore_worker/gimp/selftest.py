"""Does the installed plug-in work in the real GIMP? Asked without a window, in bounded time."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from face_restore_worker.gimp.programs import Finished, Program, gimp_environment, run_bounded
from face_restore_worker.gimp.surroundings import GimpError

RESULT = "face-restore-self-test.json"
TEST_SECONDS = 180.0
# No window, fonts, or brushes; the user's other plug-ins are looked at, as GIMP always does.
_FLAGS = ("-n", "-i", "-d", "-f", "--quit")
_PYTHON = "--batch-interpreter=python-fu-eval"


@dataclass(frozen=True)
class Verdict:
    """is_working, and a sentence for the user; hint: what to do about it."""

    is_working: bool
    text: str
    hint: str = ""


def run(
    program: Program, profile: Path, *, seconds: float = TEST_SECONDS, name_profile: bool = False
) -> Verdict:
    """Start GIMP, look the plug-in up and call its status procedure.

    profile: the folder the plug-in was installed into. name_profile: tell GIMP to use it
    (GIMP3_DIRECTORY); not for a profile GIMP finds itself, since that is part of the test.
    """
    nonce = secrets.token_hex(8)
    result = profile / RESULT
    _forget(result)
    # What the user's GIMP3_DIRECTORY says is in the environment already.
    env = gimp_environment(os.environ, profile if name_profile else None)
    try:
        done = run_bounded([*program.command, *_FLAGS, _PYTHON, "-b", _code(nonce)], seconds, env)
        found = _read(result, nonce)
    except GimpError as error:
        return Verdict(False, f"{program.name} could not be tested: {error.message}", error.hint)
    finally:
        _forget(result)
    return _judge(program, profile, done, found, seconds)


def make_profile(program: Program, profile: Path, seconds: float = TEST_SECONDS) -> bool:
    """Let a GIMP that was never started make its profile, with the settings of older ones.

    If we made the folder, GIMP would take it for its own and leave the older settings behind.
    """
    try:
        run_bounded([*program.command, *_FLAGS], seconds, gimp_environment(os.environ, None))
    except GimpError:
        return False
    return profile.is_dir()


def _code(nonce: str) -> str:
    """One line of Python for GIMP, without a character that some shell or system would change."""
    source = Path(__file__).with_name("in_gimp.py").read_bytes()
    packed = base64.b64encode(source).decode("ascii")
    names = f"{{'NONCE': '{nonce}', '__name__': 'face_restore_self_test'}}"
    return f"import base64; exec(base64.b64decode('{packed}').decode('utf-8'), {names})"


def _forget(result: Path) -> None:
    for path in (result, result.with_name(result.name + ".tmp")):
        path.unlink(missing_ok=True)


def _read(result: Path, nonce: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("nonce") == nonce else None


def _judge(
    program: Program,
    profile: Path,
    done: Finished,
    found: Mapping[str, Any] | None,
    seconds: float,
) -> Verdict:
    if found is None:
        return _no_answer(program, profile, done, seconds)
    if "error" in found:
        return Verdict(False, f"In {program.name} the self-test failed: {found['error']}.")
    if found["missing"]:
        return Verdict(
            False,
            f"{program.name} does not know {' and '.join(found['missing'])}: it could not load "
            f"the plug-in.{_quote(done)}",
            "Its Python must have the module gi; on Debian and Ubuntu: "
            "apt install python3-gi gir1.2-gimp-3.0",
        )
    if not found.get("success"):
        return Verdict(
            False, f"In {program.name} the plug-in is known but ended with an error.{_quote(done)}"
        )
    lines = str(found.get("text", "")).splitlines()
    values = dict(line.partition(": ")[::2] for line in lines)
    if "state" not in values:
        return Verdict(False, f"In {program.name} the plug-in gave no status.{_quote(done)}")
    if values["state"] == "error":
        return Verdict(
            False,
            f"The plug-in runs in {program.name}, but not with the worker: "
            f"{values.get('message', '')}",
            "face-restore worker restart",
        )
    kind = f" ({program.kind})" if program.kind else ""
    return Verdict(True, f"installed and working in GIMP {found['version']}{kind}")


def _no_answer(program: Program, profile: Path, done: Finished, seconds: float) -> Verdict:
    if done.status is None:
        return Verdict(
            False,
            f"{program.name} did not end within {seconds:g} s and was stopped; whether the "
            f"plug-in works is not known.{_quote(done)}",
            "Look for Filters > Enhance > Restore Faces in GIMP, or run "
            "`face-restore gimp check --timeout 600`.",
        )
    if "python-fu-eval" in done.output:
        return Verdict(
            False,
            f"{program.name} has no Python, which the plug-in needs.{_quote(done)}",
            "Install GIMP's Python: on Debian and Ubuntu `apt install python3-gi "
            "gir1.2-gimp-3.0`, on Fedora `dnf install gimp python3-gobject`.",
        )
    return Verdict(
        False,
        f"{program.name} gave no answer from the profile {profile} (status {done.status})."
        f"{_quote(done)}",
        "Does it use another profile? Name it: face-restore gimp install --profile DIR",
    )


def _quote(done: Finished) -> str:
    words = done.last_words()
    return " It said:\n    " + words.replace("\n", "\n    ") if words else ""
