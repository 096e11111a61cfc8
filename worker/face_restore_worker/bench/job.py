"""The whole job: a photograph from file to file through a real worker, stage by stage."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.bench.weights import Weights

if TYPE_CHECKING:
    from face_restore_shared.schema import FaceTarget

    from face_restore_worker.client.client import WorkerClient
    from face_restore_worker.pipeline.types import RestoreOutcome

#: In the order of the work; "transport" is what the client waits beyond the worker's stages.
STAGES = (
    *("reading", "transport", "detecting", "aligning", "restoring", "masking", "pasting"),
    *("compositing", "writing"),
)
_JPEG_QUALITY = 95
_NETWORK = ("detecting", "restoring")


@dataclass
class Job:
    """Seconds of one photograph of so many megapixels and faces.

    stages: median by stage. total, rest: medians of the whole and of all but network, detection
    and files. found: faces that the detector finds by itself; where it is another number than
    `faces`, their places were given instead. totals: each round's.
    """

    megapixels: float
    faces: int
    found: int
    stages: dict[str, float]
    total: float
    rest: float
    totals: list[float]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


@dataclass
class Start:
    """Of a worker's start: seconds until it answers, and until its model is loaded."""

    answers: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "answers": statistics.median(self.answers),
            "loaded": statistics.median(self.loaded),
            "rounds": len(self.loaded),
        }


@contextmanager
def own_home(folder: Path) -> Iterator[None]:
    """A worker of the benchmark's own beside the user's, with the user's models."""
    from face_restore_shared import paths

    values = {"FACE_RESTORE_HOME": str(folder), "FACE_RESTORE_MODELS": str(paths.models_dir())}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        from face_restore_worker.client import launch

        launch.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def start_worker(options: Sequence[str], times: Start) -> None:
    """Start the worker, wait for its model, and note both times. Raises FaceRestoreError."""
    from face_restore_worker.client import launch
    from face_restore_worker.client.client import WorkerClient

    launch.stop()
    begin = time.perf_counter()
    found = launch.ensure_worker(True, options=options)
    with WorkerClient.connect(found) as client:
        times.answers.append(time.perf_counter() - begin)
        while (status := client.status()).state in ("starting", "loading"):
            time.sleep(0.005)
        times.loaded.append(time.perf_counter() - begin)
    if status.problem:
        raise FaceRestoreError(f"The worker cannot work: {status.problem}", code="worker-start")


def worker_options(weights: Weights, device: str, threads: int) -> list[str]:
    """The options of a worker for these, which ends with this process, however that ends."""
    owner = f"--for-process={os.getpid()}"
    work = [f"--model={weights.path}", f"--device={device}", f"--threads={threads}", "--keep"]
    return [*work, owner]


def measure(
    client: WorkerClient,
    megapixels: float,
    faces: int,
    rounds: int,
    folder: Path,
    tell: Callable[[str], None],
) -> Job:
    """One kind of photograph, `rounds` times after one to warm up."""
    from PIL import Image

    from face_restore_worker.bench.scenes import scene

    picture, targets = scene(megapixels, faces)
    source = folder / "photograph.jpg"
    Image.fromarray(picture).save(source, quality=_JPEG_QUALITY)
    found = len(client.detect(picture).faces)
    given = None if found == faces else targets
    kept: list[dict[str, float]] = []
    for number in range(rounds + 1):
        tell(f"{megapixels:g} MP, {faces} face{'s' * (faces > 1)}: {number} of {rounds}")
        kept.append(_once(client, source, folder / "restored.jpg", given))
    kept = kept[1:]
    stages = {name: statistics.median(one.get(name, 0.0) for one in kept) for name in STAGES}
    totals = [one["total"] for one in kept]
    rest = statistics.median(
        one["job"] - sum(one.get(stage, 0.0) for stage in _NETWORK) + one["compositing"]
        for one in kept
    )
    return Job(megapixels, faces, found, stages, statistics.median(totals), rest, totals)


def _once(
    client: WorkerClient, source: Path, target: Path, given: tuple[FaceTarget, ...] | None
) -> dict[str, float]:
    """Seconds by stage of one photograph; "job" is the client's wait, "total" everything."""
    from face_restore_worker.images.read import read_image
    from face_restore_worker.images.write import write_image

    marks = [time.perf_counter()]

    def mark() -> float:
        marks.append(time.perf_counter())
        return marks[-1] - marks[-2]

    opened = read_image(source)
    image = opened.working()
    seconds = {"reading": mark()}
    outcome: RestoreOutcome = client.restore(image, faces=given)
    seconds["job"] = mark()
    flat = opened.composite(outcome.patches)
    seconds["compositing"] = mark()
    write_image(opened, flat, target, quality=None, overwrite=True)
    seconds["writing"] = mark()
    seconds["total"] = marks[-1] - marks[0]
    seconds |= outcome.timings
    # Stages that overlap add up to more than the wait.
    seconds["transport"] = max(0.0, seconds["job"] - sum(outcome.timings.values()))
    return seconds
