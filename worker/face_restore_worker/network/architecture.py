"""What a GPEN checkpoint says about its network: inferred from tensor names and shapes alone.

Notation as in the StyleGAN2 and GPEN papers: C(r) is the number of channels at resolution r,
``channel_multiplier`` m scales C(64) and above, ``narrow`` n scales every level.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

Shape = tuple[int, ...]

#: The smallest and largest output sizes that are accepted (powers of two).
MIN_SIZE, MAX_SIZE = 8, 4096
#: Bounds that no real checkpoint comes near; they keep a hostile file from planning a huge network.
MAX_CHANNELS, MAX_STYLE, MAX_MAPPING = 4096, 8192, 32


class ArchitectureError(ValueError):
    """The names and shapes do not describe a GPEN network.

    Attributes:
        missing: names of absent tensors.
        misshapen: (name, shape found, shape expected).
        unexpected: names that no GPEN network has.
        recognised: False when not even the outline of a GPEN checkpoint was found.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        misshapen: Sequence[tuple[str, Shape, Shape]] = (),
        unexpected: Sequence[str] = (),
        recognised: bool = True,
    ) -> None:
        super().__init__(message)
        self.missing = list(missing)
        self.misshapen = list(misshapen)
        self.unexpected = list(unexpected)
        self.recognised = recognised


@dataclass(frozen=True)
class GpenArchitecture:
    """Everything that distinguishes one GPEN network from another.

    Attributes:
        size: side of the square input and output in pixels, a power of two.
        channels: C(4), C(8), ... C(size).
        style_dim: width of the style vector w.
        mapping_depth: number of dense layers of the mapping network.
    """

    size: int
    channels: tuple[int, ...]
    style_dim: int = 512
    mapping_depth: int = 8

    def __post_init__(self) -> None:
        if not (MIN_SIZE <= self.size <= MAX_SIZE) or self.size & (self.size - 1):
            raise ArchitectureError(
                f"size {self.size} is not a power of two from {MIN_SIZE} to {MAX_SIZE}"
            )
        if len(self.channels) != self.levels + 1:
            raise ArchitectureError(
                f"size {self.size} needs {self.levels + 1} channel counts, not {len(self.channels)}"
            )
        if not all(1 <= c <= MAX_CHANNELS for c in self.channels):
            raise ArchitectureError(f"channel counts {self.channels} are out of range")
        if not 1 <= self.style_dim <= MAX_STYLE:
            raise ArchitectureError(f"style width {self.style_dim} is out of range")
        if not 1 <= self.mapping_depth <= MAX_MAPPING:
            raise ArchitectureError(f"mapping depth {self.mapping_depth} is out of range")

    @classmethod
    def from_parameters(
        cls,
        size: int,
        channel_multiplier: float = 2,
        narrow: float = 1,
        style_dim: int = 512,
        mapping_depth: int = 8,
    ) -> GpenArchitecture:
        """Build from GPEN's own parameters: C(r) = int(512 n) up to 32, then int(256 m n) halving.

        Raises:
            ArchitectureError: the parameters give no usable network.
        """
        count = max(int(size).bit_length() - 2, 0)
        channels = tuple(
            int(_nominal(level, channel_multiplier) * narrow) for level in range(count)
        )
        return cls(size, channels, style_dim, mapping_depth)

    @property
    def levels(self) -> int:
        """How often the resolution doubles between 4 and ``size``."""
        return self.size.bit_length() - 3

    @property
    def narrow(self) -> float:
        """An n for which int(512 n) is C(4)."""
        return self.channels[0] / 512

    @property
    def channel_multiplier(self) -> float:
        """The simplest m that explains C(64) and above; 2 when the network ends below 64."""
        if len(self.channels) < 5:
            return 2.0
        n = Fraction(self.narrow)
        low, high = Fraction(0), Fraction(10**9)
        for level in range(4, len(self.channels)):
            unit = Fraction(4096, 2**level) * n  # 256 n at 64, halving
            low = max(low, self.channels[level] / unit)
            high = min(high, (self.channels[level] + 1) / unit)
        if low >= high:  # channels that follow no single m: describe the first level
            return float(self.channels[4] / (256 * n))
        return float(_simplest(low, high))

    def channels_at(self, resolution: int) -> int:
        """Return C(resolution) for a power of two from 4 to ``size``."""
        return self.channels[resolution.bit_length() - 3]

    def shapes(self) -> dict[str, Shape]:
        """Return {name: shape} of every learned tensor (not the FIR buffers)."""
        out: dict[str, Shape] = {}
        style, c4 = self.style_dim, self.channels[0]
        for k in range(1, self.mapping_depth + 1):
            out[f"generator.style.{k}.weight"] = (style, style)
            out[f"generator.style.{k}.bias"] = (style,)
        out["generator.input.input"] = (1, c4, 4, 4)
        out |= _styled("generator.conv1", c4, c4, style) | _to_rgb("generator.to_rgb1", c4, style)
        for level in range(1, self.levels + 1):
            c, below = self.channels[level], self.channels[level - 1]
            out |= _styled(f"generator.convs.{2 * level - 2}", c, 2 * below, style)
            out |= _styled(f"generator.convs.{2 * level - 1}", c, 2 * c, style)
        for level in range(1, self.levels + 1):
            out |= _to_rgb(f"generator.to_rgbs.{level - 1}", self.channels[level], style)
        out |= self._encoder_shapes()
        out["final_linear.0.weight"] = (style, c4 * 16)
        out["final_linear.0.bias"] = (style,)
        return out

    def kernel_shapes(self) -> dict[str, Shape]:
        """Return {name: shape} of the FIR buffers that PyTorch checkpoints carry as well."""
        names = [f"ecd{i}.0.0.kernel" for i in range(1, self.levels + 1)]
        names += [f"generator.convs.{2 * j}.conv.blur.kernel" for j in range(self.levels)]
        names += [f"generator.to_rgbs.{j}.upsample.kernel" for j in range(self.levels)]
        return dict.fromkeys(names, (4, 4))

    def parameters(self) -> int:
        """Return the number of learned values."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def _encoder_shapes(self) -> dict[str, Shape]:
        top = self.channels[-1]
        out: dict[str, Shape] = {"ecd0.0.0.weight": (top, 3, 1, 1), "ecd0.0.1.bias": (top,)}
        for i in range(1, self.levels + 1):
            below, above = self.channels[self.levels - i], self.channels[self.levels - i + 1]
            out[f"ecd{i}.0.1.weight"] = (below, above, 3, 3)
            out[f"ecd{i}.0.2.bias"] = (below,)
        return out

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Compare with what a file holds; FIR buffers may be there or not.

        Raises:
            ArchitectureError: naming what is missing, misshapen and unexpected.
        """
        wanted, optional = self.shapes(), self.kernel_shapes()
        missing = [name for name in wanted if name not in shapes]
        misshapen = [
            (name, tuple(shapes[name]), shape)
            for name, shape in (wanted | optional).items()
            if name in shapes and tuple(shapes[name]) != shape
        ]
        unexpected = [name for name in shapes if name not in wanted and name not in optional]
        if missing or misshapen or unexpected:
            parts = [
                *_part("missing", missing),
                *_part(
                    "misshapen",
                    [f"{n} {_x(got)} instead of {_x(want)}" for n, got, want in misshapen],
                ),
                *_part("unexpected", unexpected),
            ]
            raise ArchitectureError(
                f"for a GPEN of size {self.size}: " + "; ".join(parts),
                missing=missing,
                misshapen=misshapen,
                unexpected=unexpected,
            )


def infer_architecture(shapes: Mapping[str, Shape]) -> GpenArchitecture:
    """Infer the network from {tensor name: shape}; every tensor that tells a number has a vote.

    Voting lets one misshapen tensor be named as such instead of bending the whole network.

    Raises:
        ArchitectureError: not a GPEN checkpoint (``recognised`` False), or one with tensors
            missing, misshapen or unexpected.
    """
    levels = max(
        _highest(shapes, r"ecd(\d+)\.0\."),
        _highest(shapes, r"generator\.to_rgbs\.(\d+)\.") + 1,
        (_highest(shapes, r"generator\.convs\.(\d+)\.") + 1) // 2,
    )
    depth = _highest(shapes, r"generator\.style\.(\d+)\.")
    if levels < 1 or depth < 1:
        raise ArchitectureError(
            "no encoder (ecd*), mapping network (generator.style.*) and synthesis layers "
            "(generator.convs.*) under GPEN's names",
            recognised=False,
        )
    size = 2 ** (levels + 2)
    if size > MAX_SIZE:
        raise ArchitectureError(f"a network of {levels} levels (size {size}) is beyond {MAX_SIZE}")
    channels = tuple(_vote(_channel_votes(shapes, levels, level)) for level in range(levels + 1))
    style = _vote(_style_votes(shapes, depth))
    if 0 in channels or not style:
        empty = [f"{4 << level}" for level, c in enumerate(channels) if not c]
        what = f"resolution {', '.join(empty)}" if empty else "the mapping network"
        raise ArchitectureError(f"no tensor tells the width of {what}")
    architecture = GpenArchitecture(size, channels, style, depth)
    architecture.check(shapes)
    return architecture


def _styled(name: str, out: int, inp: int, style: int) -> dict[str, Shape]:
    return {
        f"{name}.conv.weight": (1, out, inp, 3, 3),
        f"{name}.conv.modulation.weight": (inp, style),
        f"{name}.conv.modulation.bias": (inp,),
        f"{name}.noise.weight": (1,),
        f"{name}.activate.bias": (2 * out,),
    }


def _to_rgb(name: str, channels: int, style: int) -> dict[str, Shape]:
    return {
        f"{name}.bias": (1, 3, 1, 1),
        f"{name}.conv.weight": (1, 3, 2 * channels, 1, 1),
        f"{name}.conv.modulation.weight": (2 * channels, style),
        f"{name}.conv.modulation.bias": (2 * channels,),
    }


def _nominal(level: int, multiplier: float) -> float:
    return 512.0 if level < 4 else 4096.0 / 2**level * multiplier


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of smallest denominator in [low, high) (continued fractions)."""
    whole = math.ceil(low)
    if whole < high:
        return Fraction(whole)
    floor = math.floor(low)
    # 1/x turns the interval around: its closed end is the upper one now.
    return floor + 1 / _simplest_upper(1 / (high - floor), 1 / (low - floor))


def _simplest_upper(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of smallest denominator in (low, high]."""
    whole = math.floor(low) + 1
    if whole <= high:
        return Fraction(whole)
    floor = math.floor(low)
    if low == floor:  # (floor, high] with high < floor + 1: the largest unit fraction that fits
        return floor + Fraction(1, math.ceil(1 / (high - floor)))
    return floor + 1 / _simplest(1 / (high - floor), 1 / (low - floor))


def _highest(names: Iterable[str], pattern: str) -> int:
    found = (re.match(pattern, name) for name in names)
    # Three digits are more than any network has; longer numbers are not layer indices.
    return max((int(m[1]) for m in found if m and len(m[1]) <= 3), default=-1)


def _vote(votes: Iterable[int]) -> int:
    counted = Counter(v for v in votes if v > 0)
    return counted.most_common(1)[0][0] if counted else 0


def _dim(shapes: Mapping[str, Shape], name: str, rank: int, axis: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == rank else 0


def _channel_votes(shapes: Mapping[str, Shape], levels: int, level: int) -> list[int]:
    i = levels - level
    votes = [
        _dim(shapes, f"ecd{i}.0.{1 if i else 0}.weight", 4, 0),
        _dim(shapes, f"ecd{i}.0.{2 if i else 1}.bias", 1, 0),
        _dim(shapes, f"ecd{i + 1}.0.1.weight", 4, 1),
    ]
    convs = [f"generator.convs.{2 * level + k}" for k in (-2, -1)] if level else ["generator.conv1"]
    rgb = f"generator.to_rgbs.{level - 1}" if level else "generator.to_rgb1"
    for conv in convs:
        votes.append(_dim(shapes, f"{conv}.conv.weight", 5, 1))
        votes.append(_dim(shapes, f"{conv}.activate.bias", 1, 0) // 2)
    votes.append(_dim(shapes, f"{rgb}.conv.weight", 5, 2) // 2)
    votes.append(_dim(shapes, f"{rgb}.conv.modulation.bias", 1, 0) // 2)
    return votes


def _style_votes(shapes: Mapping[str, Shape], depth: int) -> list[int]:
    votes = [_dim(shapes, f"generator.style.{k}.bias", 1, 0) for k in range(1, depth + 1)]
    votes += [_dim(shapes, f"generator.style.{k}.weight", 2, 1) for k in range(1, depth + 1)]
    return [*votes, _dim(shapes, "final_linear.0.bias", 1, 0)]


def _part(label: str, items: Sequence[str], shown: int = 4) -> list[str]:
    """Return ``label`` with the first few items and how many there are; nothing when empty."""
    if not items:
        return []
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return [f"{len(items)} {label} ({', '.join(items[:shown])}{more})"]


def _x(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
