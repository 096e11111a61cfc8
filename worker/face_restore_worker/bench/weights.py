"""The weights a benchmark runs with: an installed model's, a file's, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from face_restore_shared.errors import FaceRestoreError

if TYPE_CHECKING:
    from torch import Tensor

    from face_restore_worker.network.architecture import GpenArchitecture

SIZES = (256, 512, 1024, 2048)


@dataclass(frozen=True)
class Weights:
    """A GPEN checkpoint to time. name: what it is, for people. size: side of a face in pixels."""

    path: Path
    name: str
    size: int


def random_state(architecture: GpenArchitecture, seed: int = 0) -> dict[str, Tensor]:
    """{published name: fp32 tensor}, the same on every machine, every layer of influence.

    Styles move around 1 and features are neither lost nor all there is, so that errors of a
    layer show in the output. Values do not change the time.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in architecture.shapes().items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("noise.weight"):
            value = 0.5 + 0.1 * value
        elif name.endswith("modulation.bias"):
            value = 1 + 0.1 * value
        elif name.startswith("generator.style."):
            value *= 100  # the mapping's learning rate is 0.01
        elif name.endswith("bias"):
            value *= 0.1
        state[name] = value
    return state


def prepare(model: str | None, size: int | None, folder: Path) -> Weights:
    """The weights asked for; random ones are written into `folder` as safetensors.

    model: an installed model's id or a file's path; None for GPEN-BFR-2048 where it is
        installed, else random weights of its architecture. size: random weights of this size.
    Raises CheckpointError, ModelError; FaceRestoreError (code "usage") for a model that is no GPEN.
    """
    from face_restore_worker.models.store import ModelStore

    if model is None and size is None:
        found = ModelStore().resolve_restorer("auto")
        if found.architecture == "gpen":
            return _of_file(found.path, found.name)
    elif model is not None:
        found = ModelStore().resolve_restorer(model)
        if found.architecture not in ("gpen", None):  # None: the file's content decides
            raise FaceRestoreError(
                f"{found.name} is no GPEN, whose network this measures.",
                hint="Leave out --model (random weights do as well), or choose --size.",
                code="usage",
            )
        return _of_file(found.path, found.name)
    return _random(size or SIZES[-1], folder)


def _of_file(path: Path, name: str) -> Weights:
    from face_restore_worker.checkpoints.gpen import read_gpen_state

    _, architecture = read_gpen_state(path)
    return Weights(path, name, architecture.size)


def _random(size: int, folder: Path) -> Weights:
    from face_restore_worker.checkpoints.gpen import write_gpen_safetensors
    from face_restore_worker.network.architecture import GpenArchitecture

    multiplier, narrow = (1, 0.5) if size == 256 else (2, 1)  # as published
    architecture = GpenArchitecture.from_parameters(size, multiplier, narrow)
    path = folder / f"gpen-bfr-{size}.safetensors"
    write_gpen_safetensors(random_state(architecture), path)
    return Weights(path, f"GPEN-BFR-{size}, random weights", size)
