"""Exit statuses of ``face-restore``, and which error leads to which."""

from __future__ import annotations

from enum import IntEnum

from face_restore_shared.errors import FaceRestoreError


class Exit(IntEnum):
    """What the command's exit status says."""

    OK = 0
    SOME_FAILED = 1
    USAGE = 2
    CANNOT_WORK = 3
    DECLINED = 4
    INTERRUPTED = 130


#: For ``--help`` and the manual.
MEANING = {
    Exit.OK: "everything was done",
    Exit.SOME_FAILED: "some inputs failed (each is named); the others were done",
    Exit.USAGE: "the command line is wrong",
    Exit.CANNOT_WORK: "nothing could be done: worker, model, device, disk or network",
    Exit.DECLINED: "cancelled, or a licence was not accepted",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}

_USAGE_CODES = frozenset({"usage", "bad-request", "model-unknown", "model-builtin"})
_DECLINED_CODES = frozenset({"cancelled", "licence-declined", "licence-needed"})


def exit_for(error: FaceRestoreError) -> Exit:
    """The exit status for an error that ended the command."""
    if error.code in _USAGE_CODES:
        return Exit.USAGE
    if error.code in _DECLINED_CODES:
        return Exit.DECLINED
    return Exit.CANNOT_WORK


def describe_exits() -> str:
    """All statuses, one on each line, for a help text."""
    return "\n".join(f"  {status.value:<4} {text}" for status, text in MEANING.items())
