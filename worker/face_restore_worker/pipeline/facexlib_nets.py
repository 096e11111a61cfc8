"""facexlib's networks, built without its downloads and loaded strictly from a file.

RetinaFace is the project's own module of the same function, so that a worker starts without
torchvision. Of facexlib only ParseNet's module is used, never its ``init_*`` functions, which fetch
weights by themselves and load them unchecked.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_worker.errors import CheckpointError, FaceRestoreError

if TYPE_CHECKING:
    import torch
    from torch import nn

State = Mapping[str, "torch.Tensor"]

RETINAFACE_VARIANTS = ("resnet50", "mobile0.25")
PARSE_CLASSES = 19
PARSE_SIZE = 512
_UNUSED_OPERATORS = ("nms", "qnms")
_libraries: list[Any] = []


def import_torchvision() -> None:
    """Import torchvision, also one whose compiled part does not fit the installed torch.

    PyPI's torchvision is built for CUDA; next to a CPU build of torch its compiled operators do not
    load, and the import stops where it describes two of them. Nothing here calls those: declaring
    their schemas lets the import pass. With a fitting build nothing is declared.
    Raises FaceRestoreError where torchvision cannot be imported for another reason.
    """
    if "torchvision" in sys.modules:
        return
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise _no_torchvision(error) from error
    except (ImportError, OSError, AttributeError) as error:
        raise _no_torchvision(error) from error
    else:
        return
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]  # half imported
    for name in _UNUSED_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _libraries.append(library)  # the schema goes when the library is collected
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        raise _no_torchvision(error) from error


def _no_torchvision(error: Exception) -> FaceRestoreError:
    return FaceRestoreError(
        f"torchvision, which facexlib's ParseNet needs, cannot be imported: {error}",
        hint="Install the torchvision that belongs to the installed torch.",
        code="torchvision",
    )


def build_retinaface(variant: str) -> nn.Module:
    """RetinaFace without weights, on the meta device, in evaluation mode.

    variant: "resnet50" or "mobile0.25". Input (N, 3, H, W) BGR 0 to 255 less (104, 117, 123);
    output offsets (N, A, 4), probabilities (N, A, 2), landmarks (N, A, 10).
    """
    if variant not in RETINAFACE_VARIANTS:
        raise ValueError(f"RetinaFace is {' or '.join(RETINAFACE_VARIANTS)}, not {variant!r}")
    import torch

    from face_restore_worker.network.retinaface import RetinaFace

    with torch.device("meta"):
        network: nn.Module = RetinaFace(variant)
    return network.eval().requires_grad_(False)


def build_parsenet() -> nn.Module:
    """facexlib's ParseNet (19 classes, 512 px) without weights, on the meta device.

    Input (N, 3, 512, 512) RGB in [-1, 1]; output class logits (N, 19, 512, 512) and a picture.
    """
    import torch

    import_torchvision()
    from facexlib.parsing.parsenet import ParseNet

    with torch.device("meta"):
        network: nn.Module = ParseNet(
            in_size=PARSE_SIZE, out_size=PARSE_SIZE, parsing_ch=PARSE_CLASSES
        )
    return network.eval().requires_grad_(False)


def load_retinaface(
    checkpoint: str | Path | State,
    *,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> nn.Module:
    """RetinaFace with the weights of a file or state dict, ready for inference.

    checkpoint: .safetensors, .pth or .pt, or the tensors themselves; "module." prefixes are taken
        off. variant: None finds it out from the tensors.
    precision: "fp32", "fp16" or "bf16".
    Raises CheckpointError where tensors are missing, left over or of another shape.
    """
    state, label = _state(checkpoint)
    if variant is None:
        variant = "resnet50" if "body.conv1.weight" in state else "mobile0.25"
    network = build_retinaface(variant)
    return _ready(network, state, label, f"RetinaFace ({variant})", device, precision)


def load_parsenet(
    checkpoint: str | Path | State,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> nn.Module:
    """ParseNet with the weights of a file or state dict; as :func:`load_retinaface`."""
    state, label = _state(checkpoint)
    return _ready(build_parsenet(), state, label, "ParseNet", device, precision)


def _state(checkpoint: str | Path | State) -> tuple[dict[str, torch.Tensor], str]:
    if isinstance(checkpoint, Mapping):
        return _stripped(checkpoint), "The weights given"
    path = Path(checkpoint)
    return _stripped(_read(path)), f"{path.name!r}"


def _stripped(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    import torch

    return {
        str(name).removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _read(path: Path) -> Mapping[str, Any]:
    """The tensors of a file; code in it is never run."""
    if not path.is_file():
        raise CheckpointError(
            f"There is no model file at {str(path)!r}.", hint="Check the path.", code="no-file"
        )
    from face_restore_worker.checkpoints.safetensors_file import read_safetensors
    from face_restore_worker.checkpoints.sniff import Kind, sniff
    from face_restore_worker.checkpoints.torch_file import read_torch

    kind = sniff(path)
    if kind is Kind.SAFETENSORS:
        return read_safetensors(path)
    if kind is Kind.ONNX:
        raise CheckpointError(
            f"{path.name!r} is an ONNX model; this network is loaded from .pth or .safetensors.",
            hint="Use the file published for this network.",
            code="wrong-network",
        )
    content = read_torch(path, kind)
    for key in ("state_dict", "params_ema", "params"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name!r} holds no tensors by name.", code="not-a-checkpoint")
    return content


def _ready(
    network: nn.Module,
    state: dict[str, torch.Tensor],
    label: str,
    kind: str,
    device: torch.device | str,
    precision: str,
) -> nn.Module:
    """Give a network built on the meta device its weights; strict."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    expected = network.state_dict()
    for name, tensor in expected.items():
        # A counter of training steps, of no use here; checkpoints of old PyTorch have none.
        if name.endswith("num_batches_tracked"):
            # Not zeros_like: of a meta tensor it imports sympy, half a second.
            state.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
    _check(expected, state, label, kind)
    network.load_state_dict(
        # Copies: overwriting a file that is mapped would change or end whoever uses it.
        {
            n: t.to(torch.float32, copy=True) if t.is_floating_point() else t
            for n, t in state.items()
        },
        strict=True,
        assign=True,
    )
    _fold_batch_norms(network)
    network = network.eval().requires_grad_(False)
    network = network.to(device=device, dtype=dtype)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check(expected: State, state: State, label: str, kind: str) -> None:
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    wrong = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in (
            (missing, "tensors are missing"),
            (wrong, "tensors are misshapen"),
            (extra, "tensors do not belong to it"),
        )
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{label} is not a {kind}: {'; '.join(parts)}.",
            hint="Use the file published for this network.",
            code="wrong-network",
        )


def _fold_batch_norms(network: nn.Module) -> None:
    """Put each batch normalisation into the convolution before it.

    Both are linear in evaluation mode. It is done where the convolution's output surely goes
    nowhere else: neighbours in a Sequential, and the pairs of ResNet's and ParseNet's blocks.
    """
    from torch import nn

    pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
    for module in list(network.modules()):
        children = dict(module.named_children())
        neighbours = pairs
        if isinstance(module, nn.Sequential):
            names = list(children)
            neighbours = list(pairwise(names))
        for first, second in neighbours:
            convolution, norm = children.get(first), children.get(second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(convolution, norm)
                setattr(module, second, nn.Identity())
        convolution, norm = children.get("conv2d"), children.get("norm")
        inner = getattr(norm, "norm", None)
        if norm and isinstance(convolution, nn.Conv2d) and isinstance(inner, nn.BatchNorm2d):
            _fold(convolution, inner)
            norm.add_module("norm", nn.Identity())


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Change the convolution's weights to do the norm as well."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    assert norm.running_mean is not None and norm.running_var is not None
    # Not fuse_conv_bn_eval: it copies the module, which takes longer than the arithmetic.
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
