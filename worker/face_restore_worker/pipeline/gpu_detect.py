"""The detector on a GPU: what `detect` does, with the photograph, its levels and the looks there.

The photograph crosses the bus once, in its own type. Levels, proposer, sheets, network and the
crops of the second look follow on the device; whether cells of the proposer pass and what passes of
the network come back. Suppression and everything else on single faces is the processor's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_shared.options import DetectOptions
from numpy.typing import NDArray

from face_restore_worker.pipeline import gpu_pyramid, search
from face_restore_worker.pipeline.detect import FaceDetector, Task, seen_well
from face_restore_worker.pipeline.device import free_caches, is_out_of_memory
from face_restore_worker.pipeline.gpu_bus import Bus
from face_restore_worker.pipeline.gpu_propose import BATCHES, SIDE, DeviceProposer
from face_restore_worker.pipeline.gpu_refine import DeviceCrops
from face_restore_worker.pipeline.gpu_search import DeviceNetwork, NotFinite
from face_restore_worker.pipeline.propose import load_network
from face_restore_worker.pipeline.refine import CROP_SIDE, Looker
from face_restore_worker.pipeline.types import Face
from face_restore_worker.pipeline.views import Candidates

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_CROPS = (4, 16)
ON_CPU = "The GPU ran out of memory: faces were searched on the processor."
IN_FP32 = "The detector overflowed in {}: it runs in fp32 now."


class DeviceDetector(FaceDetector):
    """A FaceDetector on a device, with ways out when that fails.

    Out of memory: the device's caches are freed and the photograph is searched once more; when that
    fails too, it is searched on the processor. Values that are not finite: the network runs in fp32
    from then on. `notes` tells the user of both.

    Args:
        network: as for FaceDetector, norms folded, fp32 on the CPU; copied to the device.
        device: a torch device.
        batches: how many squares of ``search.TILE`` the network is called on, one or another.
        precision: of the first look: "fp16", "bf16" or "fp32"; the second is in fp32.
        proposer: its weights and its threshold; None searches everything.
        usual: makes the detector that works on the processor.
        settings: others of FaceDetector.

    Raises:
        torch.OutOfMemoryError: nothing is kept then.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str,
        *,
        precision: str,
        batches: Sequence[int],
        proposer: tuple[Path, float] | None,
        usual: Callable[[], FaceDetector],
        **settings: Any,
    ) -> None:
        import torch

        super().__init__(network, **settings)
        self.device = torch.device(device)
        self.precision = precision
        self._usual = usual
        self._on_cpu: FaceDetector | None = None
        self._bus = Bus(self.device)
        self._shapes = [(n, search.TILE) for n in batches]
        self.sheets: DeviceNetwork | None = self._prepared(precision, self._shapes)
        self.crops = self._prepared("fp32", [(n, CROP_SIDE) for n in _CROPS])
        if proposer is not None:
            self.proposer = self._proposer(*proposer)

    def _proposer(self, path: Path, threshold: float) -> DeviceProposer:
        import torch

        from face_restore_worker.network.proposer_cuda import ProposerCuda

        dtype = getattr(torch, _DTYPES[self.precision])
        network = ProposerCuda(load_network(path), dtype, self.device, SIDE, BATCHES)
        return DeviceProposer(network, threshold)

    def _prepared(self, precision: str, shapes: list[tuple[int, int]]) -> DeviceNetwork:
        import torch

        from face_restore_worker.network.retinaface_cuda import RetinaFaceCuda

        dtype = getattr(torch, _DTYPES[precision])
        network = RetinaFaceCuda(self.network.module, dtype, self.device, shapes)
        return DeviceNetwork(network, strict=precision != "fp32")

    def detect(
        self,
        image: NDArray[Any],
        options: DetectOptions | None = None,
        selection: NDArray[Any] | None = None,
    ) -> list[Face]:
        """See FaceDetector."""
        self.notes = []
        for _ in range(2):
            try:
                return self._on_device(image, options, selection)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("Out of memory on %s while searching faces: %s", self.device, error)
            # Outside the handler: the exception's traceback would keep the tensors alive.
            free_caches(self.device)
        self.notes.append(ON_CPU)
        if self._on_cpu is None:
            self._on_cpu = self._usual()
        self._on_cpu.watch = self.watch
        return self._on_cpu.detect(image, options, selection)

    def _on_device(
        self, image: NDArray[Any], options: DetectOptions | None, selection: NDArray[Any] | None
    ) -> list[Face]:
        import torch

        from face_restore_worker.network.cuda.context import exact

        with torch.inference_mode(), exact(self.device):
            with contextlib.suppress(NotFinite):
                return super().detect(image, options, selection)
            note = IN_FP32.format(self.precision)
            log.warning("%s", note)
            self.notes.append(note)
            self.precision, self.sheets = "fp32", None
            return super().detect(image, options, selection)

    def _first_look(self, task: Task) -> tuple[Candidates, Looker]:
        if self.sheets is None:  # let go of before the next one, as two might not fit
            self.sheets = self._prepared(self.precision, self._shapes)
        self.sheets.watch = self.crops.watch = self.watch
        photo = gpu_pyramid.upload(task.picture, self._bus)
        levels = gpu_pyramid.build_levels(photo, task.shrink)
        magnified = [gpu_pyramid.magnified(photo, times) for times in task.magnifications]
        guide = None
        if self.proposer is not None and task.guided:
            guide = search.guide(self.proposer, levels, magnified, task.wanted, task.quarters)
        pieces = []
        for level in [*magnified, *levels]:
            places = None if guide is None else guide.of(level)
            if places is None:
                places = search.tiles_of(level, task.wanted, entire=level is levels[-1])
            pieces += search.pieces_of(level, places, task.quarters, self.sheets.side)
        found = [
            seen_well(faces, piece.level, finest=piece.level is levels[0])
            for piece, faces in self.sheets.search(pieces, task.threshold)
        ]
        return Candidates.join(found), DeviceCrops(self.crops, levels)
