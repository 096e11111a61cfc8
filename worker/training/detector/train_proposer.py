"""Train the proposer (network/proposer.py), which decides where small faces are searched at all.

    python train_proposer.py --data DIR --out FILE [--minutes 40 | --steps N] [--seed 0]

Faces are pasted at known places, so nothing has to be labelled; the teacher only says where the
face of each portrait is. The loss asks for one confident cell at each face and for none elsewhere.
Weights are averaged over the last fifth of the training.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from face_restore_worker.network.proposer import BORDER, GRAY, RANGES, STRIDE, FaceProposer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from degrade import Image, Rng
from network import load_network
from portraits import list_images, load
from proposer_scenes import NATURAL, SmallFaces, Truths, natural_pictures
from train import TEACHER

SIDE = 192
BATCH = 14
FRESH = 4
KEPT = 6000
"""Composing a scene takes longer than learning from it: most are shown some four times."""
UNSURE = 1.25
"""Faces outside of an output's range by up to this factor, and all others, are neither."""
NEAR = 0.3
"""Cells within this share of a face's side of its centre may answer for it."""
AROUND = 0.85
"""Cells within this share are left alone."""


def to_input(scenes: list[Image]) -> Tensor:
    """uint8 BGR [H, W, 3] scenes as float RGB [N, 3, H + 2, W + 2], 0 to 255, channels last."""
    border = (BORDER,) * 4
    framed = [
        cv2.copyMakeBorder(s, *border, cv2.BORDER_CONSTANT, value=(GRAY,) * 3)[..., ::-1]
        for s in scenes
    ]
    return torch.from_numpy(np.stack(framed)).permute(0, 3, 1, 2).float()


def loss(logits: Tensor, truths: list[Truths]) -> tuple[Tensor, Tensor]:
    """Of the faces (mean) and of everything else (focal, per face); logits [N, 2, h, w]."""
    rows, columns = logits.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    middle_x, middle_y = (x + 0.5) * STRIDE, (y + 0.5) * STRIDE
    missed, background = [], torch.zeros(())
    for maps, faces in zip(logits, truths, strict=True):
        away = torch.ones(rows, columns, dtype=torch.bool)
        for cx, cy, side, whole in faces.tolist():
            distance = torch.hypot(middle_x - cx, middle_y - cy)
            away &= distance > AROUND * side + STRIDE / 2
            if not whole or not (0 < cx < columns * STRIDE and 0 < cy < rows * STRIDE):
                continue
            near = distance <= max(NEAR * side, 0.75 * STRIDE)
            for output, (low, high) in zip(maps, RANGES, strict=True):
                if low <= side <= high and bool(near.any()):
                    cells = output[near]
                    missed.append(F.softplus(-cells.max()) + 0.25 * F.softplus(-cells).mean())
        others = maps[:, away]
        background = background + (torch.sigmoid(others) ** 1.5 * F.softplus(others)).sum()
    found = torch.stack(missed) if missed else torch.zeros(1)
    # The hardest faces count twice: what matters is that hardly any is missed.
    hard = found.topk(max(len(found) // 8, 1)).values
    return found.mean() + hard.mean(), background / max(len(missed), 1)


class Scenes:
    """Batches of scenes, FRESH of them new and the others shown before, mirrored by chance."""

    def __init__(self, maker: SmallFaces, rng: Rng) -> None:
        self.maker, self.rng = maker, rng
        self.shown: list[tuple[Image, Truths]] = []

    def batch(self) -> tuple[list[Image], list[Truths]]:
        """BATCH scenes and their truths."""
        new = FRESH if len(self.shown) >= BATCH else BATCH
        fresh = [self.maker.labelled(SIDE, self.rng) for _ in range(new)]
        old = [
            self.shown[int(i)] for i in self.rng.integers(0, max(len(self.shown), 1), BATCH - new)
        ]
        if len(self.shown) < KEPT:
            self.shown += fresh
        else:
            for scene in fresh:
                self.shown[int(self.rng.integers(0, KEPT))] = scene
        scenes, truths = [], []
        for image, faces in fresh + old:
            if self.rng.random() < 0.5:
                image, faces = np.ascontiguousarray(image[:, ::-1]), faces.copy()
                faces[:, 0] = SIDE - faces[:, 0]
            scenes.append(image)
            truths.append(faces)
        return scenes, truths


def learning_rate(share: float, peak: float) -> float:
    """A short warm-up, then half a cosine to a hundredth."""
    return peak * min(1.0, share / 0.03) * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def drawn_scenes(args: argparse.Namespace, rng: np.random.Generator) -> Scenes:
    """Scenes of the data's training pictures, with the teacher's answers."""
    teacher = load_network(args.data / TEACHER)
    folders = [f for f in ("portraits", "faces") if (args.data / f).is_dir()]
    paths = list_images(args.data, held_out=False, folders=folders)
    paths = [paths[i] for i in rng.permutation(len(paths))[: args.portraits]]
    maker = SmallFaces(load(paths, teacher), natural_pictures(NATURAL), rng, pool=args.pool)
    return Scenes(maker, rng)


@torch.no_grad()
def take_in(average: FaceProposer, net: FaceProposer, count: int) -> None:
    """Make `average`, the mean of count - 1 networks, that of them and this one."""
    for a, b in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        a.copy_(a + (b - a) / count if a.is_floating_point() else b)


def train(args: argparse.Namespace) -> None:
    """Train until the minutes or steps are over; save the averaged weights."""
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    scenes = drawn_scenes(args, rng)
    net = FaceProposer()
    if args.init:
        net.load_state_dict(load_file(args.init))
    net = net.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=1e-4)
    average, averaged = copy.deepcopy(net), 0
    composer = ThreadPoolExecutor(1)  # composes the next batch meanwhile
    ahead = composer.submit(scenes.batch)
    start, step, share, recent = time.monotonic(), 0, 0.0, np.zeros(2)
    while share < 1:
        spent = (time.monotonic() - start) / 60
        share = step / args.steps if args.steps else spent / args.minutes
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(min(share, 1.0), args.lr)
        images, truths = ahead.result()
        ahead = composer.submit(scenes.batch)
        parts = loss(net(to_input(images)), truths)
        optimiser.zero_grad()
        (parts[0] + args.background * parts[1]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        step += 1
        recent += [float(p.detach()) for p in parts]
        if share > 0.8:
            averaged += 1
            take_in(average, net, averaged)
        if step % 100 == 0:
            faces, background = recent / 100
            print(f"{spent:6.1f} min {step:6} faces {faces:.3f} background {background:.3f}",
                  flush=True)  # fmt: skip
            recent[:] = 0
        if step % 500 == 0 and averaged == 0:
            save_file({k: v.contiguous() for k, v in net.state_dict().items()}, args.out)
    chosen = average if averaged else net
    save_file({k: v.contiguous() for k, v in chosen.state_dict().items()}, args.out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors to write")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes")
    parser.add_argument("--init", type=Path, help="weights to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--background", type=float, default=0.5, help="weight of false alarms")
    parser.add_argument("--portraits", type=int, default=2000, help="how many to draw from")
    parser.add_argument("--pool", type=int, default=160, help="made-up backgrounds kept ready")
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
