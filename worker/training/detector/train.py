"""Train the built-in face detector from random weights as a student of a larger-data teacher.

    python train.py --data DIR --out DIR [--minutes M | --steps N] [--seed S] [--device cpu|cuda]

In phase one every block alone imitates its teacher block, in phase two (batch norm frozen) the
whole network imitates outputs and features.

DIR holds ``portraits/``, ``faces/`` (JPEGs named by a person's number) and the teacher,
``retinaface_mobilenet0.25.pth``. Writes ``student.safetensors`` (the averaged weights) every
five minutes and at the end. With ``--steps`` a run repeats exactly on one machine; with
``--minutes`` the schedule follows the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from blockwise import Blocks
from degrade import Image, Rng
from distill import Mimicry, Taps, output_losses
from network import channels_last, load_network, new_network, to_input
from portraits import list_images, load
from scenes import SceneMaker

if TYPE_CHECKING:
    from torch import Tensor, nn

TEACHER = "retinaface_mobilenet0.25.pth"
#: (scene side in px, scenes a step, share of the steps). Small batches: with dense targets the
#: gradient is steady, and steps count; they double for the second half of each phase.
SHAPES = ((256, 4, 0.76), (384, 2, 0.14), (640, 1, 0.10))
WEIGHTS = {"mimic": 1.0, "score": 1.0, "logit": 0.03, "box": 1.0, "points": 2.0}


class HardScenes:
    """The scenes with the largest class loss, drawn again in proportion to it."""

    def __init__(self, capacity: int = 384) -> None:
        self.capacity = capacity
        self.scenes: list[Image] = []
        self.losses = np.zeros(0)

    def draw(self, count: int, rng: Rng) -> list[int]:
        """Indices of ``count`` scenes to show again; none until the store is full."""
        if len(self.scenes) < self.capacity:
            return []
        share = self.losses + 1e-6
        return [int(i) for i in rng.choice(self.capacity, count, p=share / share.sum())]

    def update(self, index: list[int], scenes: list[Image], losses: np.ndarray) -> None:
        """Note the losses: first of the scenes drawn at ``index``, then of the new ones."""
        for k, loss in zip(index, losses, strict=False):
            self.losses[k] = loss
        for scene, loss in zip(scenes[len(index) :], losses[len(index) :], strict=True):
            if len(self.scenes) < self.capacity:
                self.scenes.append(scene)
                self.losses = np.append(self.losses, loss)
            elif loss > self.losses.min():
                worst = int(self.losses.argmin())
                self.scenes[worst], self.losses[worst] = scene, loss


class Batches:
    """Draws batches of scenes in the shares of SHAPES, hard ones among the smallest."""

    def __init__(self, maker: SceneMaker, rng: Rng) -> None:
        self.maker, self.rng, self.hard = maker, rng, HardScenes()
        self.last: tuple[list[int], list[Image]] | None = None

    def draw(self, times: int) -> np.ndarray:
        """uint8 BGR [N, size, size, 3], N ``times`` the count in SHAPES."""
        shape = int(self.rng.choice(len(SHAPES), p=[s[2] for s in SHAPES]))
        size, count = SHAPES[shape][0], SHAPES[shape][1] * times
        index = self.hard.draw(count // 4, self.rng) if shape == 0 else []
        scenes = [self.hard.scenes[i] for i in index]
        scenes += [self.maker.scene(size, self.rng) for _ in range(count - len(index))]
        self.last = (index, scenes) if shape == 0 else None
        return np.stack(scenes)

    def report(self, losses: Tensor) -> None:
        """Tell the class loss of each scene of the batch just drawn."""
        if self.last is not None:
            self.hard.update(*self.last, losses.cpu().numpy())


class Average:
    """An exponential moving average of all weights and statistics."""

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module, decay: float) -> None:
        """Move towards ``net``; the first updates move faster."""
        self.updates += 1
        rate = 1 - min(decay, (1 + self.updates) / (10 + self.updates))
        for mine, other in zip(
            self.net.state_dict().values(), net.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.lerp_(other, rate)
            else:
                mine.copy_(other)


def save(net: nn.Module, path: Path) -> None:
    """Write the state under facexlib's keys as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    part = path.with_suffix(".part")
    save_file(state, part)
    part.replace(path)


def set_statistics(net: nn.Module, blocks: bool, share: float) -> None:
    """Batch norm: own statistics in phase one, slow ones for its last fifth, then frozen."""
    net.train(blocks)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1 if share < 0.8 else 0.01


def phase_of(progress: float, blockwise: float) -> tuple[bool, float]:
    """Whether the run is in phase one (blockwise) and the share of that phase done, 0..1."""
    if progress < blockwise:
        return True, progress / blockwise
    return False, (progress - blockwise) / (1 - blockwise)


def learning_rate(share: float, peak: float, steps: int) -> float:
    """Linear warm-up over 200 steps of the phase, then half a cosine down to a hundredth."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return peak * cosine * min(1.0, (steps + 1) / 200)


def new_optimiser(net: nn.Module, decay: float, norm_rate: float) -> torch.optim.AdamW:
    """AdamW; weights decay, offsets and batch norm do not.

    Batch norm's gains and offsets learn ``norm_rate`` times as fast as the rest: the teacher's
    activations are far from unit scale.
    """
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    norm = [p for m in norms for p in m.parameters()]
    known = {id(p) for p in norm}
    rest = [p for p in net.parameters() if id(p) not in known]
    return torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "rate": 1.0, "weight_decay": decay},
            {"params": [p for p in rest if p.ndim == 1], "rate": 1.0, "weight_decay": 0.0},
            {"params": norm, "rate": norm_rate, "weight_decay": 0.0},
        ]
    )


class Progress:
    """The run's clock, running means of the losses, the log and the stored weights."""

    def __init__(self, args: argparse.Namespace, average: Average) -> None:
        self.args, self.average = args, average
        self.start = self.saved = time.monotonic()
        self.step, self.done = 0, 0.0
        self.means: dict[str, float] = {}

    def advance(self, losses: dict[str, Tensor]) -> None:
        """Count a step; print every hundredth, store the weights every five minutes and at last."""
        self.step += 1
        for key in WEIGHTS:
            self.means[key] = self.means.get(key, 0.0) * 0.99 + float(losses[key].detach()) * 0.01
        now = time.monotonic()
        timed = (now - self.start) / (self.args.minutes * 60)
        self.done = self.step / self.args.steps if self.args.steps else timed
        if self.step % 100 == 0:
            bias = 1 - 0.99**self.step
            shown = {k: round(v / bias, 4) for k, v in self.means.items()}
            line = {"step": self.step, "s": round(now - self.start), **shown}
            print(json.dumps(line), flush=True)
        if now - self.saved > 300 or self.done >= 1:
            save(self.average.net, self.args.out / "student.safetensors")
            self.saved = now
            print(f"saved at step {self.step}, {(now - self.start) / 60:.1f} min", flush=True)


def train(args: argparse.Namespace) -> None:
    """Run the training; see the module's text."""
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    teacher = load_network(args.data / TEACHER, args.device)
    print("loading portraits ...", flush=True)
    paths = list_images(args.data, held_out=False, folders=("portraits", "faces"))
    batches = Batches(SceneMaker(load(paths, teacher), rng), rng)
    student = channels_last(new_network(args.device))
    if args.init is not None:
        student.load_state_dict(load_network(args.init, args.device).state_dict())
    optimiser = new_optimiser(student, args.decay, args.norm_rate)
    average, mimicry = Average(student), Mimicry()
    blocks, taps_s, taps_t = Blocks(teacher), Taps(student), Taps(teacher)
    progress = Progress(args, average)
    began, was_blocks = 0, True
    while progress.done < 1:
        in_blocks, share = phase_of(progress.done, args.blockwise)
        if was_blocks and not in_blocks:  # the old gradients' moments mean nothing in phase two
            optimiser, began = new_optimiser(student, args.decay, args.norm_rate), progress.step
        was_blocks = in_blocks
        set_statistics(student, in_blocks, share)
        for group in optimiser.param_groups:
            peak = args.lr_blocks if in_blocks else args.lr
            group["lr"] = group["rate"] * learning_rate(share, peak, progress.step - began)
        inputs = to_input(batches.draw(1 if share < 0.5 else 2), args.device)
        with torch.no_grad():
            target = teacher(inputs)
        if in_blocks:
            losses = blocks.losses(student, target)
        else:
            losses = output_losses(student(inputs), target)
            losses["mimic"] = mimicry(taps_s, taps_t)
            batches.report(losses["per_image"])
        loss = sum((WEIGHTS[k] * losses[k] for k in WEIGHTS), torch.zeros((), device=args.device))
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss became {loss.item()}: lower --lr or --lr-blocks")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimiser.step()
        average.update(student, args.ema)
        progress.advance(losses)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--minutes", type=float, default=90, help="length of the run")
    parser.add_argument("--steps", type=int, default=0, help="length in steps, instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--init", type=Path, help="continue from these weights of an earlier run")
    parser.add_argument("--blockwise", type=float, default=0.35, help="end of phase one, 0..1")
    parser.add_argument("--lr-blocks", type=float, default=3e-3, help="peak rate of phase one")
    parser.add_argument("--lr", type=float, default=3e-4, help="peak rate of phase two")
    parser.add_argument("--norm-rate", type=float, default=5.0, help="batch norm's rate over these")
    parser.add_argument("--decay", type=float, default=1e-4, help="weight decay")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the weights' average")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
