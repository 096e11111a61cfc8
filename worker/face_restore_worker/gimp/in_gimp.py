"""Runs inside GIMP's Python, sent there by selftest.py: asks for the plug-in and calls it.

It leaves what it found as JSON in the profile's folder, where the waiting command reads it: the
place is right only if this GIMP uses the profile the plug-in was installed into. `NONCE` is set
by the sender.
"""

import json
import os

from gi.repository import Gimp

RESULT = "face-restore-self-test.json"
RESTORE = "plug-in-face-restore"
STATUS = "plug-in-face-restore-status"
PDB_SUCCESS = 3


def examine(nonce: str) -> dict[str, object]:
    """version, missing (procedures), and what the status procedure answered."""
    found: dict[str, object] = {"nonce": nonce, "version": str(Gimp.version())}
    pdb = Gimp.get_pdb()
    procedures = {name: pdb.lookup_procedure(name) for name in (RESTORE, STATUS)}
    found["missing"] = [name for name, procedure in procedures.items() if procedure is None]
    if procedures[STATUS] is not None:
        answer = procedures[STATUS].run(procedures[STATUS].create_config())
        found["success"] = int(answer.index(0)) == PDB_SUCCESS
        found["text"] = str(answer.index(1)) if answer.length() > 1 else ""
    return found


def leave(found: dict[str, object]) -> None:
    """Write the result in one step."""
    path = os.path.join(Gimp.directory(), RESULT)  # noqa: PTH118 - as plain as can be
    with open(path + ".tmp", "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(found, file)
    os.replace(path + ".tmp", path)  # noqa: PTH105


def main(nonce: str) -> None:
    """Examine and leave the result, or what went wrong."""
    try:
        found = examine(nonce)
    except Exception as error:
        found = {"nonce": nonce, "error": f"{type(error).__name__}: {error}"}
    leave(found)


if "NONCE" in globals():
    main(globals()["NONCE"])
