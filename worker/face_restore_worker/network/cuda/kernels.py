# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"
"""The fused operations as Triton kernels; ``plain`` says what each computes.

A program works on BX pixels of one row and BC channels. Activations lie in channels_last order:
value (c, y, x) of a plane with C channels and W columns is at (y * W + x) * C + c, computed in
64 bits. Everything is computed in fp32 and rounded once, when it is stored. H and W are not
specialised on, which would only compile the same code again for other levels.
"""

from __future__ import annotations

import triton
import triton.language as tl

SQRT2 = tl.constexpr(1.4142135623730951)
SLOPE = tl.constexpr(0.2)


@triton.jit
def _leaky(x):
    """sqrt(2) * leaky ReLU."""
    return tl.where(x > 0, x, x * SLOPE) * SQRT2


@triton.jit
def _feature(raw, weight, bias, pixel, inside, c, C, FROM_PICTURE: tl.constexpr):
    """The activated encoder feature at pixels (BX,) and channels (BC,), fp32; see Feature."""
    some = c < C
    b = tl.load(bias + c, mask=some, other=0.0)
    if FROM_PICTURE:
        red = tl.load(raw + pixel * 3, mask=inside, other=0.0).to(tl.float32)
        green = tl.load(raw + pixel * 3 + 1, mask=inside, other=0.0).to(tl.float32)
        blue = tl.load(raw + pixel * 3 + 2, mask=inside, other=0.0).to(tl.float32)
        w_red = tl.load(weight + c * 3, mask=some, other=0.0)
        w_green = tl.load(weight + c * 3 + 1, mask=some, other=0.0)
        w_blue = tl.load(weight + c * 3 + 2, mask=some, other=0.0)
        value = (
            red[:, None] * w_red[None, :]
            + green[:, None] * w_green[None, :]
            + blue[:, None] * w_blue[None, :]
        )
    else:
        here = inside[:, None] & some[None, :]
        value = tl.load(raw + pixel[:, None] * C + c[None, :], mask=here, other=0.0)
        value = value.to(tl.float32)
    return _leaky(value + b[None, :])


@triton.jit
def normalise_kernel(pixels, out, scale, count, BLOCK: tl.constexpr):
    """out = scale * pixels - 1, one after the other (both orders are (y, x, channel))."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    some = i < count
    value = tl.load(pixels + i, mask=some, other=0).to(tl.float32)
    tl.store(out + i, value * scale - 1.0, mask=some)


@triton.jit
def to_pixels_kernel(rgb, out, plane, full, ROUND: tl.constexpr, BLOCK: tl.constexpr):
    """Three planes of ``plane`` values to interleaved ones: full * clamp(y / 2 + 1 / 2)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    some = i < plane
    for channel in tl.static_range(3):
        value = tl.load(rgb + channel * tl.cast(plane, tl.int64) + i, mask=some, other=0.0)
        value = tl.minimum(tl.maximum(value * 0.5 + 0.5, 0.0), 1.0) * full
        if ROUND:
            # Through int32: a float's conversion to uint8 is not defined everywhere.
            tl.store(out + i * 3 + channel, (value + 0.5).to(tl.int32).to(tl.uint8), mask=some)
        else:
            tl.store(out + i * 3 + channel, value, mask=some)


@triton.jit(do_not_specialize=["H", "W"])
def blur_feature_kernel(
    raw, weight, bias, out, H, W, C,
    FROM_PICTURE: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """(C, H, W) to (C, H + 1, W + 1): value (y, x) takes rows y-2 .. y+1 and columns alike."""
    x = tl.program_id(0) * BX + tl.arange(0, BX)
    y = tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    total = tl.zeros((BX, BC), dtype=tl.float32)
    for i in tl.static_range(4):
        row = y + i - 2
        for j in tl.static_range(4):
            column = x + j - 2
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            pixel = row.to(tl.int64) * W + column
            value = _feature(raw, weight, bias, pixel, inside, c, C, FROM_PICTURE)
            tap = (3.0 if i == 1 or i == 2 else 1.0) * (3.0 if j == 1 or j == 2 else 1.0) / 64.0
            # What lies outside is zero after the activation, not before it.
            total += tl.where(inside[:, None], value, 0.0) * tap
    pixel = y.to(tl.int64) * (W + 1) + x
    tl.store(
        out + pixel[:, None] * C + c[None, :], total, mask=(x <= W)[:, None] & (c < C)[None, :]
    )


@triton.jit(do_not_specialize=["H", "W"])
def finish_up_kernel(
    t, raw, weight, feature_bias, demodulation, bias, gain, style, out, H, W, C,
    FROM_PICTURE: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """(C, H + 1, W + 1) and a feature (C, H, W) to (2 C, H, W)."""
    x = tl.program_id(0) * BX + tl.arange(0, BX)
    y = tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    some = c < C
    inside = x < W
    here = inside[:, None] & some[None, :]
    total = tl.zeros((BX, BC), dtype=tl.float32)
    for i in tl.static_range(4):
        row = y + i - 1
        for j in tl.static_range(4):
            column = x + j - 1
            known = (row >= 0) & (row <= H) & (column >= 0) & (column <= W)
            place = row.to(tl.int64) * (W + 1) + column
            value = tl.load(
                t + place[:, None] * C + c[None, :],
                mask=known[:, None] & some[None, :],
                other=0.0,
            )
            tap = (3.0 if i == 1 or i == 2 else 1.0) * (3.0 if j == 1 or j == 2 else 1.0) / 16.0
            total += value.to(tl.float32) * tap
    scale = tl.load(demodulation + c, mask=some, other=0.0)
    image = _leaky(total * scale[None, :] + tl.load(bias + c, mask=some, other=0.0)[None, :])
    pixel = y.to(tl.int64) * W + x
    part = _feature(raw, weight, feature_bias, pixel, inside, c, C, FROM_PICTURE)
    part_bias = tl.load(bias + C + c, mask=some, other=0.0)
    part = _leaky(part * tl.load(gain) + part_bias[None, :])
    to = out + pixel[:, None] * (2 * C) + c[None, :]
    tl.store(to, image * tl.load(style + c, mask=some, other=0.0)[None, :], mask=here)
    tl.store(to + C, part * tl.load(style + C + c, mask=some, other=0.0)[None, :], mask=here)


@triton.jit
def _below(plane, y, x, inside, H, W):
    """Twice the resolution of a plane (H // 2, W // 2) surrounded by zeros, at row y, columns x."""
    near_y, near_x = y // 2, x // 2
    far_y = near_y + (y % 2) * 2 - 1
    far_x = near_x + (x % 2) * 2 - 1
    height, width = H // 2, W // 2
    total = tl.zeros_like(x).to(tl.float32)
    for i in tl.static_range(2):
        row = near_y if i == 0 else far_y
        for j in tl.static_range(2):
            column = near_x if j == 0 else far_x
            known = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            value = tl.load(plane + row.to(tl.int64) * width + column, mask=known, other=0.0)
            total += value * ((0.75 if i == 0 else 0.25) * (0.75 if j == 0 else 0.25))
    return total


@triton.jit(do_not_specialize=["H", "W"])
def finish_conv_kernel(
    u, raw, weight, feature_bias, demodulation, bias, gain, style, rgb_weight, rgb_bias, below,
    out, rgb, H, W, C,
    FROM_PICTURE: tl.constexpr, KEEP: tl.constexpr, BELOW: tl.constexpr,
    BX: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """(C, H, W) and a feature to (2 C, H, W), where it is kept, and to three fp32 planes."""
    x = tl.program_id(0) * BX + tl.arange(0, BX)
    y = tl.program_id(1)
    inside = x < W
    pixel = y.to(tl.int64) * W + x
    factor = tl.load(gain)
    red = tl.zeros((BX,), dtype=tl.float32)
    green = tl.zeros((BX,), dtype=tl.float32)
    blue = tl.zeros((BX,), dtype=tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        some = c < C
        here = inside[:, None] & some[None, :]
        value = tl.load(u + pixel[:, None] * C + c[None, :], mask=here, other=0.0).to(tl.float32)
        scale = tl.load(demodulation + c, mask=some, other=0.0)
        image = _leaky(value * scale[None, :] + tl.load(bias + c, mask=some, other=0.0)[None, :])
        part = _feature(raw, weight, feature_bias, pixel, inside, c, C, FROM_PICTURE)
        part_bias = tl.load(bias + C + c, mask=some, other=0.0)
        part = _leaky(part * factor + part_bias[None, :])
        w = rgb_weight + c
        red += tl.sum(image * tl.load(w, mask=some, other=0.0)[None, :], axis=1)
        red += tl.sum(part * tl.load(w + C, mask=some, other=0.0)[None, :], axis=1)
        green += tl.sum(image * tl.load(w + 2 * C, mask=some, other=0.0)[None, :], axis=1)
        green += tl.sum(part * tl.load(w + 3 * C, mask=some, other=0.0)[None, :], axis=1)
        blue += tl.sum(image * tl.load(w + 4 * C, mask=some, other=0.0)[None, :], axis=1)
        blue += tl.sum(part * tl.load(w + 5 * C, mask=some, other=0.0)[None, :], axis=1)
        if KEEP:
            to = out + pixel[:, None] * (2 * C) + c[None, :]
            left = tl.load(style + c, mask=some, other=0.0)
            right = tl.load(style + C + c, mask=some, other=0.0)
            tl.store(to, image * left[None, :], mask=here)
            tl.store(to + C, part * right[None, :], mask=here)
    red += tl.load(rgb_bias)
    green += tl.load(rgb_bias + 1)
    blue += tl.load(rgb_bias + 2)
    plane = tl.cast(H, tl.int64) * W
    if BELOW:
        quarter = tl.cast(H // 2, tl.int64) * (W // 2)
        red += _below(below, y, x, inside, H, W)
        green += _below(below + quarter, y, x, inside, H, W)
        blue += _below(below + 2 * quarter, y, x, inside, H, W)
    tl.store(rgb + pixel, red, mask=inside)
    tl.store(rgb + plane + pixel, green, mask=inside)
    tl.store(rgb + 2 * plane + pixel, blue, mask=inside)
