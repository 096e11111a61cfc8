"""The worker's status as text: for the dialog's live line and for scripts."""

from __future__ import annotations

import contextlib
import threading

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import ModelInfo, StatusReply

from restore_faces import errors
from restore_faces.i18n import _
from restore_faces.job import Conversation
from restore_faces.starting import sandbox_name
from restore_faces.worker import REFUSAL_SECONDS, Worker


def query(worker: Worker) -> tuple[StatusReply, tuple[ModelInfo, ...]] | None:
    """The running worker's status and models; None when none runs. Starts nothing."""
    client = worker.connect(timeout=REFUSAL_SECONDS)
    if client is None:
        return None
    with contextlib.closing(client), Conversation(client) as talk:
        return talk.status(), talk.models()


def line(status: StatusReply | None, problem: FaceRestoreError | None = None) -> str:
    """One line for the dialog. problem: why none can be started where none runs."""
    if status is None:
        if problem is not None:
            return errors.sentence(problem)
        if sandbox_name():
            return _("The worker is not running. In a terminal: face-restore worker start")
        return _("The worker is not running yet; it starts with the first restoration.")
    if status.problem:
        return _("The worker cannot work: {why}").format(why=status.problem)
    device = status.device.name or status.device.kind or _("device not known yet")
    if status.state in ("starting", "loading"):
        return _("Worker on {device}: loading the model …").format(device=device)
    if status.state == "stopping":
        return _("The worker was just being stopped.")
    if status.state == "busy":
        return _("Worker on {device}: busy, {count} waiting").format(
            device=device, count=status.queue
        )
    if status.models_loaded:
        return _("Worker on {device}: ready; loaded: {models}").format(
            device=device, models=", ".join(status.models_loaded)
        )
    return _("Worker on {device}: ready, the model is loaded when needed").format(device=device)


def text(worker: Worker) -> str:
    """Several lines "name: value" for `plug-in-face-restore-status`; never raises for a worker
    that is missing or broken, which is what the text then says."""
    try:
        answer = query(worker)
    except FaceRestoreError as error:
        return f"state: error\ncode: {error.code}\nmessage: {errors.sentence(error, worker.log)}"
    if answer is None:
        return f"state: not running\nmessage: {line(None, worker.start_problem())}"
    status, models = answer
    installed = [m.id for m in models if m.installed and m.kind == "restorer"]
    values = {
        "state": status.state,
        "message": line(status),
        "version": status.version,
        "pid": status.pid,
        "device": status.device.name or status.device.kind,
        "models loaded": ", ".join(status.models_loaded),
        "models installed": ", ".join(installed),
        "queue": status.queue,
        "jobs done": status.jobs_done,
        "jobs failed": status.jobs_failed,
        "jobs cancelled": status.jobs_cancelled,
        "log": status.log,
    }
    return "\n".join(f"{name}: {value}" for name, value in values.items())


def model_choices(models: tuple[ModelInfo, ...]) -> list[tuple[str, str]]:
    """Ids and labels for the dialog: the installed restorers, the built-in ones marked."""
    choices = [("auto", _("Best installed model"))]
    for model in models:
        if model.kind == "restorer" and model.installed:
            mark = _("{name} (comes with the worker)") if model.builtin else "{name}"
            choices.append((model.id, mark.format(name=model.name)))
    return choices


class Poller:
    """Asks the worker every second in a thread of its own, so that the dialog never waits."""

    def __init__(self, worker: Worker, seconds: float = 1.0) -> None:
        self.line = _("Asking the worker …")
        self.models: tuple[ModelInfo, ...] = ()
        self._worker = worker
        self._seconds = seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking; a question under way is left to end by itself."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                answer = query(self._worker)
                self.line = line(answer[0] if answer else None, self._worker.start_problem())
                if answer:
                    self.models = answer[1]
            except FaceRestoreError as error:
                self.line = errors.sentence(error)
            except OSError as error:
                self.line = str(error)
            self._end.wait(self._seconds)
