"""facexlib's RetinaFace network under any torchvision, and the student's and teacher's files.

facexlib imports torchvision, whose package may have been built for another torch: then the
operators ``torchvision::nms`` and ``torchvision::qnms`` are missing and the import fails although
nothing here calls them. Declaring their schemas is enough for the import.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

#: Subtracted from the B, G, R channels (0..255) before the network.
MEAN_BGR = (104.0, 117.0, 123.0)
_LIBRARIES: list[torch.library.Library] = []
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare_operators() -> None:
    """Declare torchvision's two operators where the installed torchvision brings none."""
    for schema in _SCHEMAS:
        name = schema.split("(", maxsplit=1)[0]
        if hasattr(torch.ops.torchvision, name):
            continue
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(schema)
        _LIBRARIES.append(library)  # a collected library takes its schema along


def new_network(device: str = "cpu") -> nn.Module:
    """RetinaFace('mobile0.25') with random weights, giving raw class logits (``phase='train'``)."""
    declare_operators()
    from facexlib.detection.retinaface import RetinaFace

    return RetinaFace("mobile0.25", phase="train", device=torch.device(device))


def load_network(path: Path, device: str = "cpu") -> nn.Module:
    """Load a ``.safetensors`` or ``.pth`` RetinaFace('mobile0.25') in evaluation mode.

    Raises FileNotFoundError if there is no such file and RuntimeError if its keys or shapes are not
    those of the network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give the path of a RetinaFace mobile0.25")
    state: dict[str, Any]
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    net = new_network(device)
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return channels_last(net).eval().requires_grad_(False)


def channels_last(net: nn.Module) -> nn.Module:
    """Lay out the convolutions' weights channels last, which is faster on CPUs; returns ``net``."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


def to_input(images: Any, device: str = "cpu") -> torch.Tensor:
    """uint8 BGR [N, H, W, 3] (0..255) -> float32 [N, 3, H, W], mean subtracted, channels last."""
    tensor = torch.as_tensor(images, device=device).permute(0, 3, 1, 2).float()
    mean = torch.tensor(MEAN_BGR, device=device).view(1, 3, 1, 1)
    return (tensor - mean).contiguous(memory_format=torch.channels_last)
