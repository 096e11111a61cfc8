"""The recipe behind the golden GPEN vectors in this folder.

`random_state_dict(shapes, seed)` makes a reproducible GPEN state dict from
nothing but the names and shapes of its tensors, so a 285 MB checkpoint need
not be stored to compare two implementations of the same network.

Rules, applied to every floating tensor of the state dict in sorted key order,
tensor number i drawing from `numpy.random.default_rng([seed, i])`:

* `...kernel` (the FIR blur buffers, [1,3,3,1] x [1,3,3,1]) keep their value:
  they are not in the returned dict.
* `...noise.weight` (the gain on the encoder features), shape (1,): uniform in
  [0.2, 0.8).
* `...bias` whose key ends in `modulation.bias`: 1 + 0.1 N(0, 1).
* any other `...bias`: 0.1 N(0, 1).
* `generator.style.<k>.weight` (equalised learning rate 0.01): 100 N(0, 1).
* everything else: N(0, 1)  (GPEN scales weights at run time).

`input_image(size, seed)` is the network input: float32, shape (1, 3, size,
size), in [-1, 1], RGB, smooth plus texture so that all frequencies matter.
"""

from __future__ import annotations

import numpy as np


def random_state_dict(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return {key: float32 array} for `shapes`, by the rules above."""
    out: dict[str, np.ndarray] = {}
    for i, key in enumerate(sorted(shapes)):
        if key.endswith("kernel"):
            continue
        rng = np.random.default_rng([seed, i])
        shape = tuple(shapes[key])
        if key.endswith("noise.weight"):
            value = rng.uniform(0.2, 0.8, shape)
        elif key.endswith("modulation.bias"):
            value = 1.0 + 0.1 * rng.standard_normal(shape)
        elif key.endswith("bias"):
            value = 0.1 * rng.standard_normal(shape)
        elif key.startswith("generator.style.") and key.endswith("weight"):
            value = 100.0 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape)
        out[key] = value.astype(np.float32)
    return out


def input_image(size: int, seed: int) -> np.ndarray:
    """Return the network input, float32 (1, 3, size, size) in [-1, 1]."""
    rng = np.random.default_rng([seed, 987654321])
    y, x = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    planes = []
    for _ in range(3):
        phase, fx, fy = rng.uniform(0, 2 * np.pi), rng.uniform(1, 6), rng.uniform(1, 6)
        smooth = 0.5 * np.sin(2 * np.pi * (fx * x + fy * y) + phase)
        planes.append(smooth + 0.2 * rng.standard_normal((size, size)))
    return np.clip(np.stack(planes), -1, 1).astype(np.float32)[None]
