"""Clean and degraded training pairs: face crops at several scales and synthetic pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from degradations import FIRST, SECOND, Float, Strength, degrade, gaussian_noise, jpeg
from synthetic import synthetic_picture
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

Image = npt.NDArray[np.uint8]

#: Pixels around the patch that are degraded with it and then cut off, so that the borders of
#: blurs do not show. A multiple of 8: the JPEG grid then starts at the patch's corner.
MARGIN = 16

_ENLARGERS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)

#: At the crops' own scale a pixel holds twice the detail it holds at 512: half the blur and scale.
NATIVE_FIRST = replace(FIRST, blur_sigma=(0.2, 3.0), scale=(1.0, 5.0))


def is_held_out(name: str) -> bool:
    """Whether a file name belongs to the tenth kept for judging (by its SHA-256)."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def load_faces(folder: Path, held_out: bool) -> list[Image]:
    """Read the JPEG crops of one side of the split, (H, W, 3) uint8 RGB, sorted by name.

    Raises:
        FileNotFoundError: the folder holds no readable JPEG of that side.
    """
    faces = []
    for path in sorted(folder.glob("*.jpg")):
        if is_held_out(path.name) == held_out:
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is not None:
                faces.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8))
    if not faces:
        side = "held-out" if held_out else "training"
        raise FileNotFoundError(f"no {side} face crops (*.jpg) in {folder}; give another --data")
    return faces


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of training samples (probabilities)."""

    synthetic: float = 0.15
    #: Scales of the clean picture: twice its own size is the 512-pixel working size.
    doubled: float = 0.62
    native: float = 0.23
    #: Of the doubled ones: degraded before they were enlarged, like a small face in a photo.
    degraded_small: float = 0.35
    clean: float = 0.10
    nearly_clean: float = 0.06
    made_gray: float = 0.15


class PairStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches (degraded, clean), each (N, 3, P, P) float32 in [-1, 1].

    P changes from batch to batch and N with it, so that a batch has about the same pixel count:
    small patches give variety, large ones context.
    """

    def __init__(
        self, faces: list[Image], seed: int, pixels: int, synthetic: int, mixture: Mixture
    ) -> None:
        super().__init__()
        self.faces, self.seed, self.pixels, self.mixture = faces, seed, pixels, mixture
        rng = np.random.default_rng((seed, 1))
        self.synthetic = [synthetic_picture(rng, 288) for _ in range(synthetic)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, 2, worker.id if worker else 0))
        while True:
            patch = int(rng.choice([128, 192, 256], p=[0.65, 0.2, 0.15]))
            count = max(1, round(self.pixels / patch**2))
            pairs = [self._pair(rng, patch) for _ in range(count)]
            degraded, clean = (np.stack(side) for side in zip(*pairs, strict=True))
            yield _to_tensor(degraded), _to_tensor(clean)

    def _pair(self, rng: np.random.Generator, patch: int) -> tuple[Float, Float]:
        mixture = self.mixture
        if rng.random() < mixture.synthetic:
            picture = self.synthetic[rng.integers(len(self.synthetic))]
        else:
            picture = self.faces[rng.integers(len(self.faces))]
        kind = rng.random() * (mixture.doubled + mixture.native)
        scale = 2 if kind < mixture.doubled or patch + 2 * MARGIN > min(picture.shape[:2]) else 1
        size = patch + 2 * MARGIN
        clean = _cut(rng, picture, size // scale)
        if rng.random() < mixture.made_gray:
            clean = np.repeat(clean @ np.float32([[0.299], [0.587], [0.114]]), 3, axis=2)
        gray = bool(np.ptp(clean, axis=2).max() < 1.5 / 255)
        if gray:
            clean = np.repeat(clean[..., :1], 3, axis=2)
        method = _ENLARGERS[rng.integers(len(_ENLARGERS))]
        if scale == 2 and rng.random() < mixture.degraded_small:
            degraded = _enlarge(self._degrade(rng, clean, gray, NATIVE_FIRST), size, method)
            clean = _enlarge(clean, size, method)
        else:
            clean = _enlarge(clean, size, method)
            first = FIRST if scale == 2 else NATIVE_FIRST
            degraded = self._degrade(rng, clean, gray, first)
        return _trim(rng, degraded, clean, patch)

    def _degrade(
        self, rng: np.random.Generator, clean: Float, gray: bool, first: Strength
    ) -> Float:
        choice = rng.random()
        if choice < self.mixture.clean:
            return clean
        if choice < self.mixture.clean + self.mixture.nearly_clean:
            if rng.random() < 0.5:
                return jpeg(rng, clean, int(rng.integers(80, 99)))
            noisy = gaussian_noise(rng, clean, float(rng.uniform(0.3, 2.5)), gray)
            return np.clip(noisy, 0, 1)
        if rng.random() < 0.3:
            # A third of the samples miss several steps: mild and single degradations occur too.
            mild = replace(first, blur_probability=0.4, scale_probability=0.3, scale=(1.0, 3.0))
            return degrade(rng, clean, mild, SECOND, twice=0.0, gray=gray)
        return degrade(rng, clean, first, SECOND, twice=0.45, gray=gray)


def _cut(rng: np.random.Generator, picture: Image, size: int) -> Float:
    """A random window, flipped at random, as float RGB in [0, 1]."""
    size = min(size, *picture.shape[:2])
    top = int(rng.integers(picture.shape[0] - size + 1))
    left = int(rng.integers(picture.shape[1] - size + 1))
    window = picture[top : top + size, left : left + size]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    if rng.random() < 0.1:
        window = np.rot90(window, int(rng.integers(1, 4)))
    return np.ascontiguousarray(window, np.float32) / np.float32(255)


def _enlarge(picture: Float, size: int, method: int) -> Float:
    if picture.shape[0] == size:
        return picture
    larger = cv2.resize(picture, (size, size), interpolation=method)
    return np.clip(larger, 0, 1)


def _trim(
    rng: np.random.Generator, degraded: Float, clean: Float, patch: int
) -> tuple[Float, Float]:
    """Cut the margin off, mostly on the JPEG grid (saved pictures), at times anywhere."""
    top = left = MARGIN
    if rng.random() < 0.4:
        top, left = (int(v) for v in rng.integers(0, 2 * MARGIN + 1, 2))
    window = np.s_[top : top + patch, left : left + patch]
    return degraded[window], clean[window]


def _to_tensor(batch: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))) * 2 - 1
