"""Which pixels of an aligned face belong to it, from facexlib's ParseNet.

ParseNet tells 19 classes (those of CelebAMask-HQ) of a 512-pixel aligned face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import nn

SIZE = 512
CLASSES = 19
NOT_FACE = (0, 14, 16, 17, 18)
"""Background, hat, necklace, neck, cloth: everything else is restored."""


class FaceParser:
    """Soft face masks from a ParseNet.

    network: maps (N, 3, 512, 512) RGB in [-1, 1] to (logits (N, 19, 512, 512), anything); see
        ``facexlib_nets.load_parsenet``. device: where it lies.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu") -> None:
        import torch

        self.network = network
        self.device = torch.device(device)
        parameter = next(network.parameters(), None)
        self.dtype = torch.float32 if parameter is None else parameter.dtype
        keep = torch.ones(CLASSES, dtype=torch.bool)
        keep[list(NOT_FACE)] = False
        self._keep = keep.to(self.device)

    def __call__(self, crop: NDArray[np.float32]) -> NDArray[np.float32]:
        """The probability that each pixel of an aligned crop belongs to the face.

        crop: (S, S, 3) float32 RGB in [0, 1], any S. Returns (S, S) float32 in [0, 1].
        """
        import cv2
        import torch

        side = crop.shape[0]
        if crop.ndim != 3 or crop.shape != (side, side, 3):
            raise ValueError(f"a crop has shape (S, S, 3), not {crop.shape}")
        small = np.nan_to_num(np.asarray(crop, dtype=np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        if side != SIZE:
            way = cv2.INTER_AREA if side > SIZE else cv2.INTER_CUBIC
            small = cv2.resize(small, (SIZE, SIZE), interpolation=way)
        small = np.ascontiguousarray(np.clip(small, 0, 1) * 2 - 1)
        with torch.inference_mode():
            batch = torch.from_numpy(small)[None].to(self.device).permute(0, 3, 1, 2)
            mask: NDArray[np.float32] = self.probabilities(batch).cpu().numpy()
        if side != SIZE:
            way = cv2.INTER_CUBIC if side > SIZE else cv2.INTER_AREA
            mask = cv2.resize(mask, (side, side), interpolation=way).astype(np.float32, copy=False)
        return np.clip(mask, 0.0, 1.0)

    def probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        """The same for (1, 3, 512, 512) RGB in [-1, 1] on the parser's device; (512, 512) fp32."""
        import torch

        logits = self.network(batch.to(self.dtype))[0].float()
        # The sum of the kept ones, not the best class: hair against ear is no edge of the face.
        return torch.softmax(logits, dim=1)[0][self._keep].sum(dim=0)
