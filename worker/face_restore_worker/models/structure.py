"""Check the tensors of detectors and parsers against the networks they belong to.

``structures.json`` holds name -> shape of every tensor of facexlib 0.3.0's RetinaFace (ResNet-50
and MobileNet-0.25), ParseNet and BiSeNet, except batch normalisation's ``num_batches_tracked``
counters, which inference never reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from face_restore_worker.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

STRUCTURES_FILE = Path(__file__).with_name("structures.json")
#: Batch normalisation's count of training steps: the only tensors that are no weights.
COUNTER = ".num_batches_tracked"


def load_structure(architecture: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape for one network. Raises KeyError for an unknown one."""
    data = json.loads(STRUCTURES_FILE.read_text(encoding="utf-8"))[architecture]
    return {name: tuple(shape) for name, shape in data.items()}


def check_structure(
    tensors: Mapping[str, Tensor], architecture: str, path: Path
) -> dict[str, Tensor]:
    """Return the tensors under the network's own names, float32, counters as scalar int64.

    ``tensors`` are those of the file without ``module.`` prefixes (``checkpoints.state``); absent
    counters are set to 0. Raises ``CheckpointError`` naming what is missing, misshapen or foreign.
    """
    import torch

    wanted = _known(architecture, path)
    counters = {
        name.removesuffix(".running_mean") + COUNTER
        for name in wanted
        if name.endswith(".running_mean")
    }
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [
        f"{name} has the shape {_shape(tensors[name].shape)} instead of {_shape(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems += [
        f"{name} is not one number"
        for name in counters
        if name in tensors and tensors[name].numel() != 1
    ]
    problems += [f"{n} is unknown" for n in tensors if n not in wanted and n not in counters]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{path} looks like {architecture}, but {'; '.join(problems[:4])}{more}.",
            hint="The file is damaged or of another version of the network: get it again.",
        )
    out = {name: tensors[name].detach().to("cpu", torch.float32) for name in wanted}
    for name in sorted(counters):
        value = tensors.get(name)
        out[name] = torch.zeros((), dtype=torch.int64) if value is None else _counter(value)
    return out


def _known(architecture: str, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        return load_structure(architecture)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is a {architecture} network, which cannot be imported.",
            hint="Importable are GPEN restorers, RetinaFace detectors, ParseNet and BiSeNet.",
        ) from error


def _counter(value: Tensor) -> Tensor:
    import torch

    return value.detach().to("cpu", torch.int64).reshape(())


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
