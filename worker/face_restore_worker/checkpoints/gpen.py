"""Load GPEN: a checkpoint of any kind in, a ready network out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from face_restore_worker.checkpoints.safetensors_file import read_safetensors
from face_restore_worker.checkpoints.sniff import Kind, fail, sniff
from face_restore_worker.checkpoints.state import (
    flat_state,
    looks_like,
    require_finite,
    require_plain,
    to_fp32,
)
from face_restore_worker.checkpoints.torch_file import read_torch
from face_restore_worker.errors import CheckpointError, DeviceError
from face_restore_worker.network.architecture import (
    ArchitectureError,
    GpenArchitecture,
    infer_architecture,
)
from face_restore_worker.network.gpen import Gpen, build_gpen
from face_restore_worker.network.gpen_cpu import GpenCpu
from face_restore_worker.network.gpen_cuda import GpenCuda

PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_STATE_DICT = "the given state dict"


class GpenRestorer:
    """A loaded GPEN. Call it with faces; the same input gives the same bytes.

    On the CPU, fp32 and bf16 are computed by :class:`GpenCpu`, on CUDA and ROCm devices all but
    fp64 by :class:`GpenCuda`: the same function in less time and memory. Everything else is
    computed by the reference network itself.

    Attributes:
        network: the :class:`Gpen` module, in evaluation mode: the readable reference; on the CPU
            where another implementation computes.
        fast: the other implementation, None where there is none.
        size: side S of the faces, pixels.
        architecture: what the checkpoint says about the network.
        device: the torch device it computes on.
        precision: "fp32", "bf16", "fp16" or "fp64": the type of convolutions and activations.
    """

    def __init__(self, network: Gpen, device: torch.device, precision: str) -> None:
        self.network = network
        self.architecture = network.architecture
        self.size = network.architecture.size
        self.device = device
        self.precision = precision
        self.fast = self._prepare()

    def _prepare(self) -> GpenCpu | GpenCuda | None:
        dtype = PRECISIONS[self.precision]
        if self.device.type == "cpu" and self.precision in ("fp32", "bf16"):
            return GpenCpu(self.network.cpu(), dtype)
        if self.device.type == "cuda" and self.precision != "fp64":
            return GpenCuda(self.network.cpu(), dtype, self.device)
        self.network.to(self.device)
        return None

    def __call__(self, faces: Tensor) -> Tensor:
        """Restore aligned faces.

        Args:
            faces: (N, 3, S, S) of any floating type, RGB in [-1, 1], finite.

        Returns:
            The same shape on the device of ``faces``, RGB around [-1, 1], not clamped; float32
            (float64 at precision "fp64").

        Raises:
            TypeError: not a floating tensor.
            ValueError: another shape, or NaN or infinity in it.
        """
        self._check(faces)
        if self.fast is not None:
            return self.fast(faces.detach().to(self.device, torch.float32)).to(faces.device)
        x = faces.detach().to(self.device, PRECISIONS[self.precision])
        with torch.inference_mode(), _deterministic(self.device):
            return self.network(x).to(faces.device)

    def to(self, device: str | torch.device) -> GpenRestorer:
        """Move the weights to another device, for instance off a GPU that others need.

        Raises:
            DeviceError: the device is not there or cannot compute in this precision.
        """
        self.device = _device(device, self.precision)
        self.fast = None  # its memory is free before the next one takes some
        self.fast = self._prepare()
        return self

    def _check(self, faces: Tensor) -> None:
        if not isinstance(faces, Tensor):
            raise TypeError(f"faces must be a torch tensor, not {type(faces).__name__}")
        if not faces.is_floating_point():
            raise TypeError(f"faces must be floating, RGB in [-1, 1], not {faces.dtype}")
        wanted = (3, self.size, self.size)
        if faces.ndim != 4 or faces.shape[0] < 1 or tuple(faces.shape[1:]) != wanted:
            raise ValueError(
                f"faces must have the shape (N, 3, {self.size}, {self.size}), "
                f"not {tuple(faces.shape)}"
            )
        low, high = torch.aminmax(faces)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ValueError("faces hold NaN or infinity")


def load_gpen(
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> GpenRestorer:
    """Load GPEN-BFR-256, 512, 1024, 2048 or any other GPEN from a file or a state dict.

    Args:
        checkpoint: path of a .pth, .pt, .safetensors or .onnx file (told apart by content), or a
            state dict, also a nested one. A state dict's fp32 tensors are used, not copied: do not
            overwrite them while in use. A file may be overwritten.
        device: a torch device that is there, such as "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16" for convolutions and activations (weights, mapping,
            modulation and the RGB sum stay fp32), or "fp64" throughout.

    Raises:
        CheckpointError: not a GPEN checkpoint, damaged, or with tensors missing or misshapen.
        DeviceError: the device is not there or cannot compute in this precision.
    """
    if precision not in PRECISIONS:
        raise DeviceError(
            f"The precision {precision!r} is not known.",
            hint=f"Choose one of {', '.join(PRECISIONS)}.",
            code="precision-unknown",
        )
    target = _device(device, precision)
    if isinstance(checkpoint, Mapping):
        state, architecture = gpen_state(checkpoint, _STATE_DICT)
    else:
        state, architecture = read_gpen_state(checkpoint)
        if target.type in ("cpu", "cuda"):
            # The reference network stays in the computer's memory, and one whose weights are mapped
            # from a file dies with the file (SIGBUS).
            state = {name: value.clone() for name, value in state.items()}
    if precision == "fp64":
        state = {name: value.double() for name, value in state.items()}
    network = build_gpen(architecture, state)
    return GpenRestorer(network, target, precision)


def read_gpen_state(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], GpenArchitecture]:
    """Read a checkpoint file of any kind and check every tensor.

    Returns:
        The learned tensors by the published names (``architecture.shapes()``, without the constant
        FIR ``kernel`` buffers), contiguous fp32 on the CPU, all finite, possibly mapped from the
        file; and the architecture.

    Raises:
        CheckpointError: what is wrong with the file.
    """
    path = Path(path)
    kind = sniff(path)
    if kind is Kind.ONNX:
        from face_restore_worker.checkpoints.gpen_onnx import read_gpen_onnx

        content: Any = read_gpen_onnx(path)
    elif kind is Kind.SAFETENSORS:
        content = read_safetensors(path)
    else:
        content = read_torch(path, kind)
    return gpen_state(content, str(path), None if kind is Kind.ONNX else path.stat().st_size)


def gpen_state(
    content: Any, name: str, file_bytes: int | None = None
) -> tuple[dict[str, Tensor], GpenArchitecture]:
    """Check what a file held; see :func:`read_gpen_state`.

    Args:
        content: a state dict, possibly nested.
        name: what to call it in messages.
        file_bytes: size of the file it was read from.

    Raises:
        CheckpointError: what is wrong with it.
    """
    state = flat_state(content, name)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        architecture = infer_architecture(shapes)
    except ArchitectureError as error:
        raise _not_this_network(error, name, shapes) from error
    require_plain(state, name, file_bytes)
    _check_kernels(state, architecture, name)
    learned = {key: state[key] for key in architecture.shapes()}
    require_finite(learned, name)
    learned = to_fp32(learned)
    require_finite(learned, name)  # an fp64 value may be out of fp32's range
    return learned, architecture


def write_gpen_safetensors(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write {name: tensor} as safetensors, whole or not at all: a temporary file, then a rename.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save

    path = Path(path)
    content = save({key: value.detach().cpu().contiguous() for key, value in state.items()})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _not_this_network(
    error: ArchitectureError, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> CheckpointError:
    if error.recognised:
        what = f"is a GPEN checkpoint that cannot be used, {error}"
        if not (error.missing or error.misshapen or error.unexpected):
            what = f"is a GPEN checkpoint that cannot be used: {error}"
        hint = "The file is damaged or of another version of the network: get it from its origin."
        return fail(name, what, hint, "tensors")
    other = looks_like(shapes)
    if other:
        what = f"is not a GPEN checkpoint: by its tensors' names it is {other}"
    else:
        first = ", ".join(list(shapes)[:3])[:200]
        what = f"is not a GPEN checkpoint: {error} (it has {len(shapes)} tensors: {first}, ...)"
    return fail(name, what, "Choose a GPEN-BFR file: face-restore models list.", "not-gpen")


def _check_kernels(state: Mapping[str, Tensor], architecture: GpenArchitecture, name: str) -> None:
    """Refuse FIR buffers other than the ones the network computes with."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    fir = torch.outer(taps, taps) / 64
    for key in architecture.kernel_shapes():
        if key not in state:
            continue
        wanted = fir if key.startswith("ecd") else 4 * fir
        if not torch.allclose(state[key].double().cpu(), wanted, rtol=1e-3, atol=0):
            what = f"has another FIR filter than GPEN in {key}"
            raise fail(name, what, "It belongs to another network.", "tensors")


def _device(device: str | torch.device, precision: str) -> torch.device:
    """Return the device after trying it.

    Raises:
        DeviceError: it is not there, or does not compute in this precision.
    """
    dtype = PRECISIONS[precision]
    try:
        target = torch.device(device)
        torch.zeros(1, dtype=dtype, device=target).add_(1).cpu()
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0][:200].rstrip(".")
        raise DeviceError(
            f"The device {device} cannot be used at precision {precision}: {reason}.",
            hint="Choose another device or precision, or let the program choose.",
            code="device-unavailable",
        ) from error
    return target


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Make cuDNN choose the same algorithm every time, and compute fp32 as fp32 (no TF32)."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield
