"""Train the built-in local restorer.

    python worker/training/restorer/train.py --data DIR --out DIR [--minutes M | --steps N]

``--data`` is a folder of aligned face crops (*.jpg); a tenth of them, by a hash of the file name,
is never trained on. Writes ``last.safetensors`` (float16, averaged weights) and ``last.pt``
(to resume with ``--resume``) every ``--save-minutes``. A run limited by ``--steps`` is
reproducible from its seed on one machine; one limited by ``--minutes`` depends on its speed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from losses import psnr, restoration_loss, ssim
from optimizer import Optimizers
from safetensors.torch import save_file
from sources import Mixture, PairStream, load_faces
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from face_restore_worker.network.local_restorer import (
    LocalRestorer,
    count_flop,
)

_WARM_UP_STEPS = 200


class Average:
    """Exponential moving average of a network's parameters, kept in float32."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take one step; early steps average over what there is so far."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            self.state[name].lerp_(value, 1 - decay)


class Clip:
    """Limit for the gradient's norm: twice its running mean.

    The loss holds a logarithm, so its usual gradient grows as training goes well; a fixed limit
    would be too loose at first, where a single odd batch can throw a network without
    normalisation off, or too tight later.
    """

    def __init__(self) -> None:
        self.mean = 10.0

    @property
    def limit(self) -> float:
        """The norm to clip the next gradient to."""
        return 2 * self.mean

    def update(self, norm: float) -> None:
        """Take one gradient's norm (before clipping) into the mean, outliers limited."""
        self.mean = 0.98 * self.mean + 0.02 * min(norm, self.limit)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the built-in local restorer.")
    parser.add_argument("--data", type=Path, required=True, help="folder of aligned crops (*.jpg)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and log")
    parser.add_argument("--minutes", type=float, default=120.0, help="length of the run")
    parser.add_argument("--steps", type=int, help="length of the run in steps instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--workers", type=int, default=0, help="processes that make samples")
    parser.add_argument("--batch", type=int, default=8, help="128-pixel patches per step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--synthetic", type=int, default=200, help="synthetic pictures to make")
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--validation", type=int, default=12, help="held-out batches to watch")
    parser.add_argument("--resume", type=Path, help="last.pt of an earlier run, to fine-tune")
    return parser.parse_args(argv)


def train(options: argparse.Namespace) -> None:
    """Run the training that the options describe."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    pixels = options.batch * 128 * 128
    faces = load_faces(options.data, held_out=False)
    stream = PairStream(faces, options.seed, pixels, options.synthetic, Mixture())
    validation = _validation_batches(options)
    network = LocalRestorer().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = Optimizers(network, options.rate)
    average = Average(network, 0.999)
    if options.resume:
        _resume(options.resume, network, optimizer, average)
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"{len(faces)} faces, {parameters} parameters, {_gflop(network, device):.1f} GFLOP at 512"
    )
    start = saved = time.monotonic()
    progress, total_loss, clip = 0.0, 0.0, Clip()
    batches = DataLoader(stream, batch_size=None, num_workers=options.workers)
    for step, (degraded, clean) in enumerate(batches, start=1):
        rate = options.rate * _schedule(step, progress)
        optimizer.set_rate(rate)
        total_loss += _step(network, optimizer, clip, degraded.to(device), clean.to(device))
        average.update(network, step)
        now = time.monotonic()
        progress = step / options.steps if options.steps else (now - start) / 60 / options.minutes
        if step % 100 == 0:
            print(f"step {step} minutes {(now - start) / 60:.1f} rate {rate:.2e} "
                  f"loss {total_loss / 100:.3f} norm {clip.mean:.1f}", flush=True)  # fmt: skip
            total_loss = 0.0
        if now - saved > 60 * options.save_minutes or progress >= 1:
            saved = now
            _save(options.out, network, optimizer, average, step)
            _validate(average, validation, device)
        if progress >= 1:
            break


def _gflop(network: nn.Module, device: torch.device) -> float:
    return count_flop(network.to(device), 512, 512) / 1e9


def _schedule(step: int, progress: float) -> float:
    warm_up = min(1.0, step / _WARM_UP_STEPS)
    return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def _step(
    network: nn.Module,
    optimizer: Optimizers,
    clip: Clip,
    degraded: Tensor,
    clean: Tensor,
) -> float:
    degraded = degraded.contiguous(memory_format=torch.channels_last)
    with torch.autocast(degraded.device.type, torch.bfloat16):
        output = network(degraded)
    loss = restoration_loss(output.float(), clean)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(network.parameters(), clip.limit))
    if not math.isfinite(norm):
        raise FloatingPointError("the gradient is not finite; lower --rate or change --seed")
    clip.update(norm)
    optimizer.step()
    return float(loss.detach())


def _validation_batches(options: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    faces = load_faces(options.data, held_out=True)
    stream = PairStream(faces, 12345, 4 * 256 * 256, 1, Mixture(synthetic=0.0))
    batches = iter(stream)
    return [next(batches) for _ in range(options.validation)]


def _validate(average: Average, batches: list[tuple[Tensor, Tensor]], device: torch.device) -> None:
    """Print the mean gain on a few held-out patches; evaluate.py measures properly."""
    network = LocalRestorer.from_state_dict(average.state).to(device)
    gains: list[Tensor] = []
    for degraded, clean in batches:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            restored = network(degraded.to(device)).float().cpu()
        before, after, target = ((x * 0.5 + 0.5).clamp(0, 1) for x in (degraded, restored, clean))
        changed = psnr(before, target) < 45
        rise = torch.stack(
            [psnr(after, target) - psnr(before, target), ssim(after, target) - ssim(before, target)]
        )
        gains.append(rise[:, changed])
    mean = torch.cat(gains, dim=1).mean(dim=1)
    print(f"held-out patches: gain {mean[0]:.2f} dB, {mean[1]:.3f} SSIM", flush=True)


def _save(
    folder: Path, network: nn.Module, optimizer: Optimizers, average: Average, step: int
) -> None:
    half = {k: v.half().contiguous().cpu() for k, v in average.state.items()}
    save_file(half, folder / "new.safetensors", metadata={"steps": str(step)})
    (folder / "new.safetensors").replace(folder / "last.safetensors")
    state: dict[str, Any] = {
        "network": network.state_dict(),
        "optimizer": [part.state_dict() for part in optimizer.parts],
        "average": average.state,
    }
    torch.save(state, folder / "new.pt")
    (folder / "new.pt").replace(folder / "last.pt")


def _resume(path: Path, network: nn.Module, optimizer: Optimizers, average: Average) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    for part, saved in zip(optimizer.parts, state["optimizer"], strict=True):
        part.load_state_dict(saved)
    for name, value in state["average"].items():
        average.state[name].copy_(value)


if __name__ == "__main__":
    train(parse_arguments())
