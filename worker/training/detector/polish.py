"""Train each block of the backbone on, alone, on kept teacher features: cheap steps, many of them.

Phase one trains all blocks at once on whole scenes; the early ones, whose maps are large, are not
done when the late ones are. Here each gets its own run on crops of stored maps, with its own
schedule. A block that does not get better stays as it was.

    python polish.py --data DIR --weights FILE --out FILE [--blocks body.stage1.1 ...] [--seed S]
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from blockwise import BACKBONE, Blocks
from network import load_network, to_input
from portraits import list_images, load
from scenes import SceneMaker
from train import TEACHER, save

if TYPE_CHECKING:
    from torch import Tensor, nn


class Pairs:
    """Inputs and outputs of one teacher block on all scenes, and random crops of them."""

    def __init__(self, given: Tensor, wanted: Tensor, side: int, count: int) -> None:
        self.given, self.wanted = given, wanted
        self.stride = given.shape[-1] // wanted.shape[-1]
        self.side, self.count = min(side, wanted.shape[-1]), count
        variance = wanted.var(dim=(0, 2, 3))
        self.weight = (1 / (variance + 0.05 * variance.mean() + 1e-6)).view(1, -1, 1, 1)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Crops of the inputs and what is wanted there."""
        given, wanted = [], []
        most, s, n = self.wanted.shape[-1] - self.side, self.stride, self.side
        for _ in range(self.count):
            i = int(rng.integers(0, len(self.given)))
            y, x = (int(v) for v in rng.integers(0, most + 1, 2))
            wanted.append(self.wanted[i, :, y : y + n, x : x + n])
            given.append(self.given[i, :, y * s : (y + n) * s, x * s : (x + n) * s])
        layout: Any = torch.channels_last
        return (
            torch.stack(given).contiguous(memory_format=layout),
            torch.stack(wanted).contiguous(memory_format=layout),
        )

    def error(self, block: nn.Module, given: Tensor, wanted: Tensor) -> Tensor:
        """Squared error over the teacher's variance; the outermost pixels do not count.

        A crop's border is padded with zeros where the whole map has neighbours.
        """
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        difference = (block(given) - wanted)[inner].square()
        return (difference.mean(dim=(0, 2, 3), keepdim=True) * self.weight).mean()


def fit(block: nn.Module, pairs: Pairs, steps: int, rate: float, rng: np.random.Generator) -> float:
    """Train one block in place, half a cosine from ``rate``; its mean error on all scenes after."""
    norms = [m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    of_norm = [p for m in norms for p in m.parameters()]
    rest = [p for p in block.parameters() if p.ndim > 1]
    optimiser = torch.optim.Adam([{"params": rest, "k": 1.0}, {"params": of_norm, "k": 5.0}])
    block.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * group["k"] * 0.5 * (1.02 + math.cos(math.pi * step / steps))
        loss = pairs.error(block, *pairs.draw(rng))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return measure(block, norms, pairs)


@torch.no_grad()
def measure(block: nn.Module, norms: list[Any], pairs: Pairs) -> float:
    """Set batch norm's statistics to the mean over all scenes; the error with them."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over what follows
    block.train()
    for part in pairs.given.split(8):
        block(part)
    for norm in norms:
        norm.momentum = 0.1
    block.eval()
    errors = [
        pairs.error(block, g, w)
        for g, w in zip(pairs.given.split(8), pairs.wanted.split(8), strict=True)
    ]
    return float(torch.stack(errors).mean())


def polish(
    block: nn.Module, pairs: Pairs, steps: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Train ``block`` on in place unless that makes it worse; errors before and after."""
    norms = [m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = measure(block, norms, pairs)
    state = copy.deepcopy(block.state_dict())
    after = fit(block, pairs, steps, 1e-2, rng)
    if after >= before:
        block.load_state_dict(state)
    return before, min(after, before)


def main() -> None:
    """Read the command line, improve the blocks, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--blocks", nargs="+", default=BACKBONE)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--portraits", type=int, default=600)
    parser.add_argument("--steps", type=int, default=500, help="steps of each block")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(args.seed)
    teacher, student = load_network(args.data / TEACHER), load_network(args.weights)
    paths = list_images(args.data, held_out=False, folders=("portraits", "faces"))
    chosen = sorted(rng.choice(len(paths), min(args.portraits, len(paths)), replace=False))
    maker = SceneMaker(load([paths[i] for i in chosen], teacher), rng, pool=60)
    blocks = Blocks(teacher)
    given: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in args.blocks}
    with torch.no_grad():
        for _ in range(args.scenes // 8):
            teacher(to_input(np.stack([maker.scene(256, rng) for _ in range(8)])))
            for name in args.blocks:
                given[name].append(blocks.pairs[name])
    student.requires_grad_(True)
    for name in args.blocks:
        both = [torch.cat(part) for part in zip(*given.pop(name), strict=True)]
        size = both[1].shape[-1]
        pairs = Pairs(both[0], both[1], side=48 if size > 64 else 32, count=16)
        before, after = polish(student.get_submodule(name), pairs, args.steps, rng)
        print(f"{name}: {before:.4f} -> {after:.4f}", flush=True)
        save(student, args.out)


if __name__ == "__main__":
    main()
