"""The restoring network on its device: what runs it, and what happens when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.errors import DeviceError, ModelError
from face_restore_worker.pipeline.device import free_caches, is_out_of_memory

if TYPE_CHECKING:
    import torch

    from face_restore_worker.models.store import ResolvedModel
    from face_restore_worker.pipeline.gpu_face import PixelNetwork

log = logging.getLogger(__name__)

Float32 = NDArray[np.float32]

#: (N, 3, S, S) RGB in [-1, 1] to the same shape.
Network = Callable[["torch.Tensor"], "torch.Tensor"]
#: device, precision -> the network there.
Load = Callable[[str, str], Network]

LOCAL_SIZE = 512  # crop of the built-in restorer
_ROWS = 128
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class FaceNetwork:
    """A restoring network on a device, with ways out when that fails.

    Out of memory: the device's caches are freed and the face is tried once more; when that fails
    too, this face runs on the CPU. Values that are not finite (fp16 can overflow): this network
    runs in fp32 from then on. The user is told of both.

    Args:
        load: makes the network for a device and a precision; called again for the way out.
        device: such as "cpu" or "cuda:0".
        precision: "fp32", "bf16" or "fp16".
        size: S, or None to take the network's own ``size``.

    Raises:
        what ``load`` raises. A device without the memory for the model falls back to the CPU.
    """

    def __init__(
        self, load: Load, device: str, precision: str = "fp32", size: int | None = None
    ) -> None:
        self._load = load
        self.device = device
        self.precision = precision
        self.notes: list[str] = []
        self._on_cpu: Network | None = None
        try:
            self._network: Network = load(device, precision)
        except Exception as error:
            if not (is_out_of_memory(error) and device != "cpu"):
                raise
            log.warning("The model does not fit on %s: %s", device, error)
            free_caches(device)
            self.notes.append(
                "The GPU has too little free memory for the model: it runs on the CPU."
            )
            self.device, self.precision = "cpu", "fp32"
            self._network = load("cpu", "fp32")
        self.size = int(size if size is not None else getattr(self._network, "size", 0))
        if self.size < 1:
            raise ModelError(
                "The network does not say for which crops it is made.",
                hint="Give it an attribute `size`, the side of its input in pixels.",
            )

    @property
    def pixels(self) -> PixelNetwork | None:
        """The network from pixels to pixels on its device, where it is one; see `gpu_face`."""
        fast = getattr(self._network, "fast", None)
        return fast if hasattr(fast, "restore_pixels") else None

    def rest(self) -> None:
        """Let go of memory that is kept from face to face: half a gigabyte on the processor."""
        for network in (self._network, self._on_cpu):
            release = getattr(getattr(network, "fast", None), "release", None)
            if release is not None:
                release()

    def restore(self, crop: Float32) -> tuple[Float32, str | None]:
        """Restore one aligned face.

        Args:
            crop: (S, S, 3) float32 RGB in [0, 1].

        Returns:
            The restored crop, likewise, and a sentence for the user where something went
            differently.

        Raises:
            DeviceError: not even the CPU's memory suffices, or the result is not finite.
        """
        note = None
        try:
            result = self._run_twice(crop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            result = self._run_on_cpu(crop, error)
            note = "The GPU ran out of memory: this face was restored on the CPU."
        return (result, note) if result is not None else self._run_in_fp32(crop)

    def _run_twice(self, crop: Float32) -> Float32 | None:
        try:
            return run_network(self._network, crop, self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("Out of memory on %s, trying again: %s", self.device, error)
        # Outside the handler: the exception's traceback would keep the tensors alive.
        free_caches(self.device)
        return run_network(self._network, crop, self.device)

    def _run_on_cpu(self, crop: Float32, error: BaseException) -> Float32 | None:
        free_caches(self.device)
        if self.device == "cpu":
            raise DeviceError(
                "The computer has too little free memory to restore this face.",
                hint="Close other programs, or choose a smaller model (see `face-restore models "
                "list`).",
                code="out-of-memory",
            ) from error
        log.warning("Out of memory on %s again, using the CPU: %s", self.device, error)
        if self._on_cpu is None:
            self._on_cpu = self._load("cpu", "fp32")
        return run_network(self._on_cpu, crop, "cpu")

    def _run_in_fp32(self, crop: Float32) -> tuple[Float32, str | None]:
        failed = self.precision
        if failed != "fp32":
            self._network = self._load(self.device, "fp32")
            self.precision = "fp32"
            result = self._run_twice(crop)
            if result is not None:
                return result, f"The network overflowed in {failed}: it runs in fp32 now."
        raise DeviceError(
            "The network gave values that are not numbers for this face.",
            hint="Check the model with `face-restore models verify`.",
            code="not-finite",
        )


def run_network(network: Network, crop: Float32, device: str) -> Float32 | None:
    """(S, S, 3) float32 in [0, 1] through a network and back; the same bytes every time.

    None when the network's values are not all finite.
    """
    import torch

    with torch.inference_mode(), _deterministic():
        x = torch.from_numpy(np.ascontiguousarray(crop)).to(device)
        x = x.permute(2, 0, 1).contiguous().sub_(0.5).div_(0.5)[None]
        y = network(x)
        if tuple(y.shape) != tuple(x.shape):
            raise ModelError(
                f"The network turned {tuple(x.shape)} into {tuple(y.shape)}.",
                hint="A restoring network keeps the shape of its input.",
            )
        if not all(bool(torch.isfinite(edge)) for edge in torch.aminmax(y)):
            return None
        shown = torch.empty(crop.shape, device=y.device)
        # A few rows at a time, which stay in the cache.
        for rows, part in zip(shown.split(_ROWS), y[0].split(_ROWS, dim=1), strict=True):
            rows.copy_(part.permute(1, 2, 0)).mul_(0.5).add_(0.5).clamp_(0, 1)
        result: Float32 = shown.cpu().numpy()
    return result


def _deterministic() -> AbstractContextManager[Any]:
    """cuDNN without algorithms that add up in varying order, and without TF32."""
    import torch

    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def load_network(model: ResolvedModel, device: str, precision: str) -> FaceNetwork:
    """The network of a resolved restorer.

    Raises:
        CheckpointError: the file is not what it should be. ModelError, DeviceError.
    """
    if model.architecture == "local-restorer":
        return FaceNetwork(
            lambda d, p: _load_local(model, d, p), device, precision, model.size or LOCAL_SIZE
        )
    if model.architecture not in (None, "gpen"):
        raise ModelError(
            f"{model.name} is a {model.architecture}, not a restorer.",
            hint="`face-restore models list` shows the restorers.",
        )
    return FaceNetwork(lambda d, p: _load_gpen(model, d, p), device, precision)


def _load_gpen(model: ResolvedModel, device: str, precision: str) -> Network:
    from face_restore_worker.checkpoints.gpen import load_gpen
    from face_restore_worker.pipeline.gpu_cache import keep_kernels

    if device.startswith("cuda"):
        keep_kernels()
    network: Network = load_gpen(model.path, device=device, precision=precision)
    return network


def _load_local(model: ResolvedModel, device: str, precision: str) -> Network:
    import torch
    from safetensors.torch import load_file

    from face_restore_worker.network.local_restorer import LocalRestorer

    try:
        network = LocalRestorer.from_state_dict(load_file(model.path))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model.name} cannot be loaded from {model.path}: {error}",
            hint="The package is damaged: install it again.",
        ) from error
    dtype = getattr(torch, _DTYPES[precision])
    network = network.to(device=device, dtype=dtype)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = network(x.to(dtype))
        return y

    return run
