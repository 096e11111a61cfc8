"""The compiled kernels (`native/`), if they compute what torch computes."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
import torch.nn.functional as F

from face_restore_worker.network.cpu_levels import FineLevel, LevelPlanes
from face_restore_worker.network.cpu_memory import Planes
from face_restore_worker.network.cpu_native import NativeLevel
from face_restore_worker.network.cpu_native_encoder import Finest, NativeDown, NativeFirst
from face_restore_worker.network.cpu_ops import channels_last
from face_restore_worker.network.cpu_strips import StripPool
from face_restore_worker.network.gpen import StyledConv, ToRgb
from face_restore_worker.network.native import library
from face_restore_worker.network.native.library import Library
from face_restore_worker.network.primitives import SLOPE, fir_kernel

log = logging.getLogger(__name__)


def kernels(dtype: torch.dtype) -> Library | None:
    """The compiled kernels; None where they are turned off or do not work here for `dtype`."""
    found = library.installed() if library.wanted() else None
    usable = found is not None and found.supports(dtype) and agrees(found, dtype)
    return found if usable else None


@lru_cache(maxsize=2)
def agrees(found: Library, dtype: torch.dtype) -> bool:
    """Whether small levels come out as torch has them; otherwise a line is logged."""
    bound = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    # Panels of 16 outputs and of 32; the level in bands, as the finest are, and as a whole.
    error = _difference(found, 16, dtype, shared=True) + _difference(found, 32, dtype, whole=32)
    error += _encoder_difference(found, 32, dtype)
    if error < bound:
        return True
    log.warning(
        "compiled kernels: not used, torch computes: in %s they differ by %.1e", dtype, error
    )
    return False


@torch.inference_mode()
def _difference(
    found: Library, channels: int, dtype: torch.dtype, whole: int = 0, shared: bool = False,
    size: int = 32,
) -> float:  # fmt: skip
    """Relative difference of a level's RGB to the same level by torch, random weights."""
    generator = torch.Generator().manual_seed(channels)
    up = StyledConv(2 * channels, channels, 8, upsample=True)
    layers = up, StyledConv(2 * channels, channels, 8), ToRgb(2 * channels, 8)
    for layer in layers:
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    style = torch.randn((1, 8), generator=generator)
    source = torch.randn((1, 2 * channels, size // 2, size // 2), generator=generator)
    feature = channels_last(torch.randn((1, channels, size, size), generator=generator), dtype)
    below = F.pad(torch.randn(1, 3, size // 2, size // 2), (1, 1, 1, 1))
    results = []
    for native in (False, True):
        rgb = torch.zeros(1, 3, size, size)
        planes = LevelPlanes(
            source=channels_last(source, dtype),
            feature=lambda rows: feature[:, :, rows.slice],
            rgb=below,
            out=torch.zeros_like(torch.cat((feature, feature), 1)),
            out_rgb=rgb,
            memory=Planes(),
        )
        assert planes.out is not None
        with StripPool() as pool:
            if native:
                level = NativeLevel(found, layers, dtype, size, shared)
                level.styled(style).run(pool, planes, whole=whole)
            else:
                FineLevel(layers, dtype, size).styled(style).run(pool, planes)
        results.append(torch.cat((rgb, planes.out.float()), 1))
    return float((results[1] - results[0]).norm() / results[0].norm())


@torch.inference_mode()
def _encoder_difference(found: Library, channels: int, dtype: torch.dtype, size: int = 16) -> float:
    """Relative difference of an encoder level to the same level by torch, random weights."""
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn((channels, 16, 3, 3), generator=generator)
    bias = torch.randn(channels, generator=generator)
    picture = torch.randn((1, 3, 2 * size, 2 * size), generator=generator)
    colours = torch.randn((16, 3, 1, 1), generator=generator)
    first_bias = torch.randn(16, generator=generator)
    above = Finest(NativeFirst(found, colours, first_bias, dtype), picture)
    out = channels_last(torch.zeros(1, channels, size, size), dtype)
    with StripPool() as pool:
        level = NativeDown(found, weight, bias, dtype)
        level.run(pool, above, out, Planes())
    feature = F.leaky_relu(F.conv2d(picture, colours, first_bias), SLOPE)
    blurred = F.conv2d(feature, fir_kernel(16, 1.0, weight), padding=2, groups=16)
    wanted = F.leaky_relu(F.conv2d(blurred, weight, bias, stride=2), SLOPE)
    return float((out.float() - wanted).norm() / wanted.norm())
