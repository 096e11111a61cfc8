"""What GIMP's progress bar says."""

from __future__ import annotations

from restore_faces.i18n import _


def text(stage: str, face: int = 0, faces: int = 0, detail: str = "") -> str:
    """One line for a stage of the worker (PROTOCOL.md) or of the plug-in."""
    fixed = {
        "reading": _("Reading the layer"),
        "starting": _("Starting the worker"),
        "requested": _("Waiting for the worker (in a terminal: face-restore worker start)"),
        "restarting": _("The worker was lost: starting it again"),
        "sending-picture": _("Sending the picture to the worker"),
        "loading-model": _("Loading the model"),
        "detecting": _("Looking for faces"),
        "pasting": _("Receiving the faces"),
        "sending": _("Receiving the faces"),
        "writing": _("Writing the new layer"),
    }
    if stage in ("restoring", "aligning") and faces:
        return _("Restoring face {face} of {faces}").format(face=face, faces=faces)
    if stage == "queued":
        waiting = _("Waiting for other work of the worker")
        return f"{waiting} ({detail})" if detail else waiting
    return fixed.get(stage) or detail or _("Restoring faces")


def overall(fraction: float, item: int, items: int) -> float:
    """The whole run's fraction, `item` (from 0) of `items` layers being `fraction` done."""
    return min(1.0, max(0.0, (item + min(1.0, max(0.0, fraction))) / max(1, items)))
