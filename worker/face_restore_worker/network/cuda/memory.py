"""How much memory and work a network takes on a GPU, calculated by going through its own code.

The network runs on the meta device, where tensors have shapes but no values, and every storage is
counted from its creation to its end. What the calculation cannot know: the workspaces of cuDNN's
algorithms, the CUDA context (a few hundred MB, the driver's) and rounding by the allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.cuda.layers import Feature, Rgb, Styled, empty_nhwc, nhwc
from face_restore_worker.network.cuda.operations import Operations
from face_restore_worker.network.gpen import build_gpen
from face_restore_worker.network.gpen_cuda import Layers

META = torch.device("meta")


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: weights kept, and the most that one face takes besides."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.activations


@dataclass(frozen=True)
class Work:
    """What one run does: arithmetic in FLOP, bytes read and written by its operations, and the most
    bytes alive at once."""

    flop: int
    moved: int
    peak: int


class Meter(TorchDispatchMode):
    """Counts the bytes of the storages that are created inside and alive, and those moved.

    peak: the most there were at once. moved: by operations that are no views, each reading its
    inputs and writing its outputs once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.moved = self._alive = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it created."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.add(value.untyped_storage())  # made outside, if not known already
        result = func(*args, **(kwargs or {}))
        if not _is_view(func):
            self.moved += sum(map(_size, tree_leaves((args, kwargs, result))))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._alive -= size


def _is_view(func: Callable[..., Any]) -> bool:
    """Whether an operation only looks at its input in another way."""
    returned: Any = getattr(func, "_schema").returns  # noqa: B009
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returned)


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def work_of(run: Callable[[], Any]) -> Work:
    """The work of what uses tensors on the meta device, each of PyTorch's operations by itself."""
    with torch.inference_mode(), FlopCounterMode(display=False) as flop, Meter() as meter:
        run()
    return Work(flop.get_total_flops(), meter.moved, meter.peak)


def calculated(architecture: GpenArchitecture, dtype: torch.dtype) -> Memory:
    """Memory of one face with fused kernels: weights, picture, activations and result."""
    state = {name: torch.empty(shape, device=META) for name, shape in architecture.shapes().items()}
    with torch.inference_mode():
        layers = Layers(build_gpen(architecture, state), dtype, META)
        with Meter() as meter:
            side = architecture.size
            picture = nhwc(torch.empty((1, 3, side, side), dtype=dtype, device=META))
            layers.run(picture, _SHAPES)
    weights = sum(value.numel() * value.element_size() for value in layers.tensors())
    return Memory(weights, meter.peak)


def _blur_feature(feature: Feature, dtype: torch.dtype) -> Tensor:
    height, width = feature.size
    like = feature.raw.new_empty(0, dtype=dtype)
    return empty_nhwc(like, feature.channels, height + 1, width + 1)


def _finish_up(t: Tensor, feature: Feature, styled: Styled) -> Tensor:
    return empty_nhwc(t, 2 * t.shape[1], t.shape[2] - 1, t.shape[3] - 1)


def _finish_conv(
    u: Tensor, feature: Feature, styled: Styled, rgb: Rgb
) -> tuple[Tensor | None, Tensor]:
    _, channels, height, width = u.shape
    out = None if styled.style is None else empty_nhwc(u, 2 * channels, height, width)
    return out, torch.empty((1, 3, height, width), dtype=torch.float32, device=u.device)


#: What the fused kernels allocate, and nothing else.
_SHAPES = Operations(blur_feature=_blur_feature, finish_up=_finish_up, finish_conv=_finish_conv)
