"""Blind degradations for training and judging a restorer.

One pass is blur, down-scaling, noise, JPEG, in that order, as blind face restoration uses it; a
second pass with weaker ranges models a picture that was saved and shared again ("second-order
degradation", Wang et al., Real-ESRGAN, 2021). The result always has the size of its input.

Pictures are (H, W, 3) float32 RGB in [0, 1]. Every function takes a ``numpy.random.Generator`` and
is deterministic given its state. Lengths (blur widths) are in pixels of the picture degraded.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]

INTERPOLATORS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)
_UPSAMPLERS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


@dataclass(frozen=True)
class Strength:
    """Ranges one pass draws from, and how often each step happens (probabilities)."""

    blur_probability: float = 0.8
    blur_sigma: tuple[float, float] = (0.3, 5.0)
    scale_probability: float = 0.8
    scale: tuple[float, float] = (1.0, 8.0)
    noise_probability: float = 0.8
    noise_sigma: tuple[float, float] = (1.0, 30.0)
    poisson_peak: tuple[float, float] = (30.0, 1000.0)
    jpeg_probability: float = 0.8
    jpeg_quality: tuple[int, int] = (30, 95)


FIRST = Strength()
SECOND = Strength(
    blur_probability=0.5,
    blur_sigma=(0.2, 2.0),
    scale_probability=0.5,
    scale=(1.0, 3.0),
    noise_probability=0.5,
    noise_sigma=(1.0, 15.0),
    poisson_peak=(100.0, 2000.0),
)


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float) -> Float:
    """Normalised anisotropic Gaussian, odd size covering three standard deviations."""
    reach = max(1, int(np.ceil(3 * max(sigma_x, sigma_y))))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    normalised: Float = (kernel / kernel.sum()).astype(np.float32)
    return normalised


def motion_kernel(length: float, angle: float, bend: float) -> Float:
    """Normalised path of a shaking camera: an arc of ``length`` pixels, anti-aliased."""
    reach = max(1, int(np.ceil(length / 2)) + 1)
    size = 2 * reach + 1
    along = np.linspace(-0.5, 0.5, 4 * size)
    across = bend * (along**2 - 1 / 12)
    x = reach + length * (along * np.cos(angle) - across * np.sin(angle))
    y = reach + length * (along * np.sin(angle) + across * np.cos(angle))
    kernel = np.zeros((size + 1, size + 1), np.float32)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dx - (x - left)) * np.abs(1 - dy - (y - top))
            rows = np.clip(top + dy, 0, size)
            columns = np.clip(left + dx, 0, size)
            np.add.at(kernel, (rows, columns), weight.astype(np.float32))
    kernel = kernel[:size, :size]
    normalised: Float = kernel / kernel.sum()
    return normalised


def blur(rng: np.random.Generator, image: Float, sigma: tuple[float, float]) -> Float:
    """Isotropic (half), anisotropic or motion blur, width log-uniform in ``sigma`` pixels."""
    width = _log_uniform(rng, sigma)
    choice = rng.random()
    border = cv2.BORDER_REFLECT_101
    if choice < 0.5:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), width, borderType=border), np.float32)
    angle = float(rng.uniform(0, np.pi))
    if choice < 0.8:
        kernel = gaussian_kernel(width, max(width * float(rng.uniform(0.2, 1)), 0.2), angle)
    else:
        # A path as wide as the Gaussian: a uniform line of length L has deviation L / sqrt(12).
        kernel = motion_kernel(max(width * 3.46, 1.5), angle, float(rng.uniform(-0.6, 0.6)))
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=border), np.float32)


def shrink(rng: np.random.Generator, image: Float, factor: float) -> Float:
    """Down-scale by ``factor`` (at least 1) with a random interpolator."""
    height, width = image.shape[:2]
    size = (max(4, round(width / factor)), max(4, round(height / factor)))
    method = INTERPOLATORS[rng.integers(len(INTERPOLATORS))]
    return np.asarray(cv2.resize(image, size, interpolation=method), np.float32)


def gaussian_noise(rng: np.random.Generator, image: Float, sigma: float, gray: bool) -> Float:
    """Add Gaussian noise of ``sigma`` in 8-bit levels, the same for the channels if ``gray``."""
    height, width = image.shape[:2]
    noise = rng.standard_normal((height, width, 1 if gray else 3), dtype=np.float32)
    noisy: Float = image + noise * np.float32(sigma / 255)
    return noisy


def poisson_noise(rng: np.random.Generator, image: Float, peak: float, gray: bool) -> Float:
    """Photon noise: variance ``image / peak``, in the normal approximation (peak >= 30)."""
    level = np.clip(image, 0, 1)
    if gray:
        level = level.mean(axis=2, keepdims=True)
    noise = rng.standard_normal(level.shape, dtype=np.float32)
    noisy: Float = image + noise * np.sqrt(level / np.float32(peak))
    return noisy


def jpeg(rng: np.random.Generator, image: Float, quality: int) -> Float:
    """Save as JPEG of ``quality`` and read back; 4:2:0 or 4:4:4 chroma at random."""
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
        if rng.random() < 0.7
        else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    )
    levels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    # Encoded as if it were BGR the channels would trade places in the luma sum: convert.
    done, data = cv2.imencode(".jpg", cv2.cvtColor(levels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {levels.shape} picture as JPEG")
    decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return np.asarray(decoded, np.float32) / np.float32(255)


def one_pass(rng: np.random.Generator, image: Float, strength: Strength, gray: bool) -> Float:
    """Blur, shrink, noise and JPEG once; the result may be smaller than the input."""
    if rng.random() < strength.blur_probability:
        image = blur(rng, image, strength.blur_sigma)
    if rng.random() < strength.scale_probability:
        image = shrink(rng, image, _log_uniform(rng, strength.scale))
    if rng.random() < strength.noise_probability:
        same = gray or rng.random() < 0.4
        if rng.random() < 0.6:
            image = gaussian_noise(rng, image, float(rng.uniform(*strength.noise_sigma)), same)
        else:
            image = poisson_noise(rng, image, _log_uniform(rng, strength.poisson_peak), same)
    if rng.random() < strength.jpeg_probability:
        low, high = strength.jpeg_quality
        image = jpeg(rng, image, int(rng.integers(low, high + 1)))
    return image


def degrade(
    rng: np.random.Generator,
    image: Float,
    first: Strength = FIRST,
    second: Strength = SECOND,
    twice: float = 0.5,
    gray: bool = False,
) -> Float:
    """Degrade once, or with probability ``twice`` twice; same size as the input.

    Args:
        image: (H, W, 3) float32 RGB in [0, 1].
        gray: the picture is gray and stays so (noise is drawn once for the three channels).

    Returns:
        (H, W, 3) float32 RGB in [0, 1], rounded to 8-bit levels as a saved picture would be.
    """
    height, width = image.shape[:2]
    image = one_pass(rng, image, first, gray)
    if rng.random() < twice:
        image = one_pass(rng, image, second, gray)
    if image.shape[:2] != (height, width):
        method = _UPSAMPLERS[rng.integers(len(_UPSAMPLERS))]
        image = np.asarray(cv2.resize(image, (width, height), interpolation=method), np.float32)
        if rng.random() < 0.25:
            # Enlarged by somebody and saved again.
            image = jpeg(rng, image, int(rng.integers(50, 96)))
    rounded: Float = np.round(np.clip(image, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return rounded


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    low, high = limits
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
