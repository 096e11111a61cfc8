"""Errors as sentences for a retoucher: what happened, what to do next, where the log is."""

from __future__ import annotations

from collections.abc import Sequence

from face_restore_shared.errors import FaceRestoreError

from restore_faces.i18n import _
from restore_faces.options import Settings


class PluginError(FaceRestoreError):
    """Something the plug-in itself found; message and hint are translated already."""

    default_code = "plug-in"


class NothingToDo(FaceRestoreError):
    """No face, or an empty selection: told as a message, the image stays as it is."""

    default_code = "nothing-to-do"


# How the worker's notes begin that the new layer's name, or `no_face`, says already.
_SAID = ("The built-in restorer is not GPEN", "No face was found")


def news(notes: Sequence[str]) -> list[str]:
    """The worker's notes about a picture that the user does not know yet, each once."""
    return [note for note in dict.fromkeys(notes) if not note.startswith(_SAID)]


def no_face(layer: str, settings: Settings, in_selection: bool) -> NothingToDo:
    """That no face was found on the layer of this name, and what limited the search."""
    message = _('No face was found in "{layer}".')
    limits = []
    if in_selection:
        message = _('No face was found in the selection on "{layer}".')
        limits.append(
            _(
                "Only the selection and a little around it is searched: select whole faces. A face "
                "counts when its centre is selected."
            )
        )
    if settings.min_face > Settings.min_face:
        limits.append(
            _("Faces less than {pixels} pixels high were left alone (smallest face).").format(
                pixels=settings.min_face
            )
        )
    if settings.threshold > 0:
        limits.append(
            _("Those the detector is less than {percent} % sure of were left alone.").format(
                percent=f"{settings.threshold:g}"
            )
        )
    usual = _("Lower the detection threshold or the smallest face, or select another layer.")
    return NothingToDo(message.format(layer=layer), hint=" ".join(limits) or usual)


def known(code: str) -> tuple[str, str] | None:
    """Message and hint in the user's language for what commonly happens, None for the rest."""
    texts = {
        "worker-lost": (
            _("The worker that restores the faces stopped in the middle."),
            _("Run the filter again; a smaller selection needs less memory."),
        ),
        "wrong-token": (
            _("The worker refused the connection."),
            _("Restart it in a terminal: face-restore worker restart"),
        ),
        "out-of-memory": (
            _("The worker ran out of memory."),
            _("Close other programs that use the graphics card, or choose a smaller model."),
        ),
        "model-missing": (
            _("The chosen model is not installed."),
            _('Choose another one, or see "face-restore models list" in a terminal.'),
        ),
        "busy": (
            _("The worker has too much to do."),
            _("Wait until its other jobs are done and run the filter again."),
        ),
        "stopping": (
            _("The worker was just being stopped."),
            _("Run the filter again."),
        ),
        "too-large": (
            _("The picture is larger than the worker takes."),
            _("Select the part with the faces and run the filter again."),
        ),
        "internal": (
            _("The worker met a defect of its own."),
            _("Run the filter again; if that does not help, report it with the log."),
        ),
        "connection-file": (
            _("The file that says where the worker is cannot be used."),
            _("Restart it in a terminal: face-restore worker restart"),
        ),
        "protocol-mismatch": (
            _("The plug-in and the worker are of versions that do not fit together."),
            _("Update the older one; details:"),
        ),
    }
    return texts.get(code)


def sentence(error: FaceRestoreError, log: str = "") -> str:
    """The text GIMP shows. log: the path of the worker's log, "" when there is none.

    The worker's own words (in English) follow a translated sentence where they say more.
    """
    parts = [error.message, error.hint]
    texts = known(error.code)
    if texts is not None and not isinstance(error, PluginError):
        detail = str(error) if error.code == "protocol-mismatch" else f"({error.message})"
        parts = [*texts, detail]
    text = " ".join(part for part in parts if part)
    quiet = isinstance(error, NothingToDo) or error.code in ("bad-request", "plug-in")
    if log and not quiet:
        text += "\n" + _("The worker's log: {path}").format(path=log)
    return text
