"""Who does the work: the worker, or this process with --no-worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from face_restore_shared.errors import FaceRestoreError, SchemaError

if TYPE_CHECKING:
    import numpy as np
    from face_restore_shared.schema import DetectOptions, DeviceInfo, Progress, RestoreOptions

    from face_restore_worker.client.arrays import DetectOutcome
    from face_restore_worker.client.session import WorkerSession
    from face_restore_worker.pipeline.types import Face, RestoreOutcome

# stage, face counted from 1, number of faces, fraction of the picture 0 to 1
Listener = Callable[[str, int, int, float], None]


class Backend(Protocol):
    """Finds and restores faces in (H, W, 3) sRGB pixels."""

    def detect(
        self, image: np.ndarray, options: DetectOptions, selection: np.ndarray | None
    ) -> DetectOutcome:
        """The faces, the detector's name, and notes for the user."""
        ...

    def restore(
        self,
        image: np.ndarray,
        *,
        detect: DetectOptions,
        restore: RestoreOptions,
        faces: Sequence[Face] | None,
        selection: np.ndarray | None,
        listener: Listener,
    ) -> RestoreOutcome:
        """Restore the faces given, or all that are found."""
        ...

    def close(self) -> None:
        """Let go of connection or models."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class WorkerBackend:
    """Through the worker, which is started when none runs and restarted once when it dies.

    tell: called with one sentence when a worker is started or was lost.
    device: what --device says; a running worker on another kind of device is refused.
    threads: what --threads says; a running worker keeps its own, which is said.
    """

    def __init__(
        self, device: str, tell: Callable[[str], None], threads: int | None = None
    ) -> None:
        from face_restore_worker.client.session import WorkerSession

        options = [] if device == "auto" else ["--device", device]
        options += [] if threads is None else [f"--threads={threads}"]
        self._session: WorkerSession = WorkerSession(options=options, on_event=self._heard)
        self._device = device
        self._threads = threads
        self._started = False
        self._tell = tell
        self._checked = False

    def __enter__(self) -> WorkerBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def _heard(self, text: str) -> None:
        self._started = True  # every event is about a worker that is being started
        self._tell(text)

    def _check_worker(self) -> None:
        """Whether a worker that ran already is what the user means: its device, its models."""
        if self._checked:
            return
        from face_restore_shared import paths

        status = self._session.client().status()
        models = paths.shown(paths.models_dir())
        if self._device != "auto":
            self._check_device()
        if status.models_dir and status.models_dir != models:
            self._tell(
                f"note: The running worker takes its models from {status.models_dir}, not from "
                f"{models}. To change that: face-restore worker restart"
            )
        if self._threads is not None and not self._started:
            self._tell(
                "note: The worker runs already and keeps its number of threads. "
                f"To change that: face-restore worker restart --threads {self._threads}"
            )
        self._checked = True

    def _check_device(self) -> None:
        """Whether the worker uses the device asked for; one started here that cannot is ended.

        It would be of no use to the next command, which may want another device.
        """
        status = self._session.client().wait_until_loaded()
        device = status.device
        if self._started and status.problem and not device.kind:
            from face_restore_worker.client import launch

            self.close()
            launch.stop()
            raise FaceRestoreError(status.problem, code="device")
        if device.kind and not same_device(self._device, device):
            raise FaceRestoreError(
                f"The running worker uses {device.id or device.kind}, not {self._device}.",
                hint=f"Run: face-restore worker restart --device {self._device} "
                "(or add --no-worker).",
                code="usage",
            )

    def detect(
        self, image: np.ndarray, options: DetectOptions, selection: np.ndarray | None
    ) -> DetectOutcome:
        self._check_worker()
        with _own_size(image):
            return self._session.detect(image, options=options, selection=selection)

    def restore(
        self,
        image: np.ndarray,
        *,
        detect: DetectOptions,
        restore: RestoreOptions,
        faces: Sequence[Face] | None,
        selection: np.ndarray | None,
        listener: Listener,
    ) -> RestoreOutcome:
        self._check_worker()

        def on_progress(progress: Progress) -> None:
            listener(progress.stage, progress.face, progress.faces, progress.fraction)

        with _own_size(image):
            return self._session.restore(
                image,
                detect=detect,
                restore=restore,
                faces=faces,
                selection=selection,
                on_progress=on_progress,
            )


@contextlib.contextmanager
def _own_size(image: np.ndarray) -> Iterator[None]:
    """A picture with too long a side to be sent is not too large for this process."""
    from face_restore_shared.schema import MAX_PIXELS

    try:
        yield
    except SchemaError as error:
        if error.code == "too-large" and image.shape[0] * image.shape[1] <= MAX_PIXELS:
            error.hint += " Or add --no-worker."
        raise


class LocalBackend:
    """In this process."""

    def __init__(self, args: Any) -> None:
        from face_restore_worker.cli.settings import model_name
        from face_restore_worker.cores import choose_threads, limit_threads
        from face_restore_worker.pipeline.restore import Restorer

        limit_threads(choose_threads(args.threads))
        self._restorer = Restorer(
            model=model_name(getattr(args, "model", "auto")),
            device=args.device,
            precision=getattr(args, "precision", "auto"),
            detector=model_name(args.detector),
        )

    def __enter__(self) -> LocalBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._restorer.unload()

    def detect(
        self, image: np.ndarray, options: DetectOptions, selection: np.ndarray | None
    ) -> DetectOutcome:
        from face_restore_worker.client.arrays import DetectOutcome

        faces = self._restorer.detect(image, options, selection=selection)
        notes = self._restorer.search_notes(image, options, selection)
        return DetectOutcome(faces, self._restorer.detector_name, notes=notes)

    def restore(
        self,
        image: np.ndarray,
        *,
        detect: DetectOptions,
        restore: RestoreOptions,
        faces: Sequence[Face] | None,
        selection: np.ndarray | None,
        listener: Listener,
    ) -> RestoreOutcome:
        return self._restorer.restore(
            image,
            None if faces is None else list(faces),
            options=restore,
            detect=detect,
            selection=selection,
            progress=listener,
        )


def same_device(wish: str, device: DeviceInfo) -> bool:
    """Whether ``wish`` (cpu, cuda, cuda:N, mps) names the device; "cuda" is its first GPU."""
    if not device.id:  # an older worker does not say which
        return wish.partition(":")[0] == device.kind
    first = {"cuda": "cuda:0"}
    return first.get(wish, wish) == first.get(device.id, device.id)


def open_backend(args: Any, tell: Callable[[str], None]) -> Backend:
    """The backend that the arguments ask for."""
    if args.no_worker:
        return LocalBackend(args)
    return WorkerBackend(args.device, tell, args.threads)
