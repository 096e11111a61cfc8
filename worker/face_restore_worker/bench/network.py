"""The network alone: every variant in a process of its own, taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.bench.children import Child, ChildFailed
from face_restore_worker.bench.machine import Others
from face_restore_worker.bench.variants import Variant
from face_restore_worker.bench.weights import Weights

#: On a GPU a call takes milliseconds: this many make one measurement.
GPU_CALLS = 20
_OWN = ("fp32", "bf16", "fp16")
# What libgomp does where nothing is set: this project lets waiting threads sleep, others are timed
# as their users run them.
_PEERS = {"GOMP_SPINCOUNT": "300000"}
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # nothing compiled before counts, nothing is left behind
_MEMORY_SHARE = 0.9  # of what is free, for processes that live at the same time
_PROCESS = 0.3  # GB of any process with torch in it, whatever the network's size


@dataclass
class Row:
    """What was measured of one variant; seconds are of one face.

    load: of building it, without importing packages. since_start: of its process until it was
    loaded. first: of the process's first face. batches: seconds at steady speed of each batch of
    variants that took turns. peak_first, peak: GB resident after one face and at the end.
    gpu: GB taken on the GPU. error: relative to the slowest, plainest variant timed.
    why: why it failed, "" when it did not.
    """

    variant: Variant
    version: str = ""
    load: float = 0.0
    since_start: float = 0.0
    first: float = 0.0
    batches: dict[int, list[float]] = field(default_factory=dict)
    peak_first: float = 0.0
    peak: float = 0.0
    gpu: float | None = None
    error: float | None = None
    why: str = ""

    @property
    def seconds(self) -> list[float]:
        """All steady times."""
        return [value for values in self.batches.values() for value in values]

    def ratio_to(self, other: Row) -> float | None:
        """How many times as long as `other` it takes, from batches both were in."""
        shared = [batch for batch in self.batches if batch in other.batches]
        if not shared:
            return None
        mine, its = (
            statistics.median(v for batch in shared for v in row.batches[batch])
            for row in (self, other)
        )
        return mine / its

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = {"key": self.variant.key, "label": self.variant.label}
        if self.why:
            return values | {"failed": self.why}
        return values | {
            "version": self.version,
            "median": statistics.median(self.seconds),
            "fastest": min(self.seconds),
            "slowest": max(self.seconds),
            "seconds": self.seconds,
            "first": self.first,
            "load": self.load,
            "since_start": self.since_start,
            "peak_gb_one_face": self.peak_first,
            "peak_gb": self.peak,
            "gpu_gb": self.gpu,
            "relative_error": self.error,
        }


def plan(
    variants: Sequence[Variant], free_gigabytes: float, size: int
) -> tuple[list[Variant], list[list[Variant]]]:
    """This project's own variants, and batches of the others that fit into memory beside them."""
    own = [v for v in variants if v.key in _OWN]
    batches: list[list[Variant]] = [[]]
    for variant in (v for v in variants if v.key not in _OWN):
        together = [*own, *batches[-1], variant]
        if batches[-1] and needed(together, size) > free_gigabytes * _MEMORY_SHARE:
            batches.append([])
        batches[-1].append(variant)
    return own, batches


def needed(variants: Sequence[Variant], size: int) -> float:
    """GB that variants take which live at the same time and work one after the other."""
    scale = (size / 2048) ** 2
    kept = sum(_PROCESS + v.kept * scale for v in variants)
    return kept + max((v.peak - v.kept) * scale for v in variants)


class NetworkBench:
    """Times variants of the network.

    folder: for logs, the exported network and outputs. rounds: steady calls of each variant.
    tell: called with what is being done.
    """

    def __init__(
        self,
        weights: Weights,
        device: str,
        threads: int,
        rounds: int,
        folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._weights = weights
        self._device = device
        self._threads = threads
        self._rounds = rounds
        self._folder = folder
        self._tell = tell
        self._calls = GPU_CALLS if device.partition(":")[0] == "cuda" else 1
        self._others = Others()

    def run(self, variants: Sequence[Variant]) -> tuple[list[Row], float]:
        """Rows in the order of `variants`, and the processor's share that others took meanwhile."""
        import psutil

        rows = {variant.key: Row(variant) for variant in variants}
        onnx = {form: self._export(form) for form in {v.onnx for v in variants} if form}
        free = psutil.virtual_memory().available / 1e9
        own, batches = plan(variants, free, self._weights.size)
        self._others = Others()
        with ExitStack() as stack:
            kept = self._open(own, rows, onnx, stack)
            for number, batch in enumerate(batches):
                with ExitStack() as inner:
                    guests = self._open(batch, rows, onnx, inner)
                    self._take_turns(kept | guests, rows, number)
                    self._look(kept | guests, rows)
                    self._count(guests.values())
            self._count(kept.values())
        self._compare([rows[variant.key] for variant in variants])
        return list(rows.values()), self._others.share()

    def _export(self, form: str) -> Path | None:
        """The network as ONNX; None when that fails, which each variant that needs it will say."""
        self._tell(f"Exporting the network to ONNX ({form})")
        onnx = self._folder / f"network-{form}.onnx"
        job = {"export": str(onnx), "weights": str(self._weights.path), "form": form}
        try:
            with Child(job, self._folder / f"export-{form}.log") as child:
                child.ready()
        except ChildFailed as error:
            self._tell(f"The export failed: {error.message}")
            return None
        return onnx

    def _open(
        self,
        variants: Sequence[Variant],
        rows: dict[str, Row],
        onnx: Mapping[str, Path | None],
        stack: ExitStack,
    ) -> dict[str, Child]:
        """Start each variant, let it reach its steady speed, keep its first output."""
        children = {}
        for variant in variants:
            row = rows[variant.key]
            try:
                children[variant.key] = self._start(variant, row, onnx.get(variant.onnx), stack)
            except FaceRestoreError as error:
                row.why = error.message
                self._tell(f"{variant.label}: {error.message}")
        return children

    def _start(self, variant: Variant, row: Row, onnx: Path | None, stack: ExitStack) -> Child:
        if variant.onnx and onnx is None:
            raise ChildFailed("the network could not be exported to ONNX")
        self._tell(f"{variant.label}: loading, first face, {variant.warm_up} more to warm up")
        job = {
            "key": variant.key,
            "weights": str(self._weights.path),
            "onnx": str(onnx or ""),
            "device": self._device,
            "threads": self._threads,
            "size": self._weights.size,
        }
        log = self._folder / f"{variant.key}.log"
        more = {} if variant.key in _OWN else _PEERS | {_COMPILED: str(self._folder / "compiled")}
        child = stack.enter_context(Child(job, log, more))
        ready = child.ready()
        row.load, row.since_start = ready["load_seconds"], ready["since_start"]
        row.version = ready["version"]
        row.first = self._seconds(child, 1)[0]
        row.peak_first = child.ask("memory")["peak_gb"]
        child.ask("save", path=str(self._output(row)))
        if variant.warm_up:
            self._seconds(child, variant.warm_up)
        return child

    @staticmethod
    def _seconds(child: Child, calls: int) -> list[float]:
        return list(child.ask("run", calls=calls)["seconds"])

    def _take_turns(self, children: dict[str, Child], rows: dict[str, Row], batch: int) -> None:
        for number in range(1, self._rounds + 1):
            for key, child in children.items():
                row = rows[key]
                if row.why:
                    continue
                self._tell(f"Round {number} of {self._rounds}: {row.variant.label}")
                try:
                    seconds = statistics.median(self._seconds(child, self._calls))
                except ChildFailed as error:
                    row.why = error.message
                    self._tell(f"{row.variant.label}: {error.message}")
                else:
                    row.batches.setdefault(batch, []).append(seconds)

    @staticmethod
    def _look(children: dict[str, Child], rows: dict[str, Row]) -> None:
        """Ask for the memory used so far."""
        for key, child in children.items():
            if not rows[key].why:
                used = child.ask("memory")
                rows[key].peak, rows[key].gpu = used["peak_gb"], used["gpu_gb"]

    def _count(self, children: Iterable[Child]) -> None:
        """What the variants used of the processor was not others' doing."""
        for child in children:
            self._others.own(child.busy)

    def _output(self, row: Row) -> Path:
        return self._folder / f"{row.variant.key}.npy"

    def _compare(self, rows: Sequence[Row]) -> None:
        """Relative errors against the authors' way where it ran, else the reference, else fp32.

        On a GPU against fp32: there the others compute in 16 bits as well.
        """
        import numpy as np

        done = {row.variant.key: row for row in rows if not row.why}
        plain = ("fp32",) if self._calls > 1 else ("eager", "reference", "fp32")
        key = next((k for k in plain if k in done), None)
        if key is None or len(done) < 2:
            return
        wanted = np.load(self._output(done[key]), allow_pickle=False).astype(np.float64)
        for row in done.values():
            if row.variant.key != key:
                found = np.load(self._output(row), allow_pickle=False)
                row.error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
