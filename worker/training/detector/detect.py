"""Detection with RetinaFace: anchors, decoding, suppression, an image pyramid, refined landmarks.

Written in NumPy and torch alone, so that it needs no torchvision operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from network import to_input
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float32]
#: (stride, anchor sizes) of the three levels and the two variances, as in facexlib's configuration.
LEVELS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
VARIANCES = (0.1, 0.2)
#: Indices of the five landmarks (eyes, nose, mouth corners) after a mirror.
MIRROR = (1, 0, 2, 4, 3)


@dataclass(frozen=True)
class Faces:
    """N faces, best first; px: boxes [N, 4] (x0, y0, x1, y1), landmarks [N, 5, 2]; scores [N]."""

    boxes: Floats
    landmarks: Floats
    scores: Floats

    def take(self, index: NDArray[np.intp]) -> Faces:
        """The faces at ``index``."""
        return Faces(self.boxes[index], self.landmarks[index], self.scores[index])


@lru_cache(maxsize=64)
def anchors(height: int, width: int) -> Floats:
    """Anchors of an image, [A, 3]: centre x, centre y and side in px, in the network's order."""
    rows = []
    for stride, sizes in LEVELS:
        ys, xs = np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)]
        centres = np.stack([(xs + 0.5) * stride, (ys + 0.5) * stride], -1).reshape(-1, 1, 2)
        centres = np.repeat(centres, len(sizes), 1)
        sides = np.broadcast_to(np.array(sizes)[None, :, None], (len(centres), len(sizes), 1))
        rows.append(np.concatenate([centres, sides], -1).reshape(-1, 3))
    return np.concatenate(rows).astype(np.float32)


def decode(loc: Floats, points: Floats, prior: Floats) -> tuple[Floats, Floats]:
    """Network outputs [N, 4] and [N, 10] at anchors [N, 3] -> boxes [N, 4], landmarks [N, 5, 2]."""
    centre, side = prior[:, :2], prior[:, 2:]
    middle = centre + loc[:, :2] * VARIANCES[0] * side
    half = side * np.exp(loc[:, 2:] * VARIANCES[1]) / 2
    landmarks = centre[:, None] + points.reshape(-1, 5, 2) * VARIANCES[0] * side[:, None]
    return np.concatenate([middle - half, middle + half], 1), landmarks


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes [N, 4] and [M, 4] -> [N, M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), -1)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], -1) for x in (a, b))
    return shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-9)


def suppress(faces: Faces, overlap: float = 0.4) -> Faces:
    """Greedy non-maximum suppression: keep the best of boxes that overlap more than ``overlap``."""
    order = np.argsort(-faces.scores, kind="stable")
    boxes, kept = faces.boxes[order], []
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            kept.append(order[i])
            alive &= iou(boxes[i : i + 1], boxes)[0] <= overlap
    return faces.take(np.array(kept, np.intp))


def _single(net: nn.Module, image: NDArray[np.uint8], threshold: float) -> Faces:
    device = next(net.parameters()).device
    with torch.inference_mode():
        loc, logits, points = net(to_input(image[None], str(device)))
        scores = torch.softmax(logits, -1)[0, :, 1]
        index = torch.nonzero(scores > threshold)[:, 0]
        parts = (loc[0, index], points[0, index], scores[index])
        loc_, points_, scores_ = (part.float().cpu().numpy() for part in parts)
    prior = anchors(*image.shape[:2])[index.cpu().numpy()]
    boxes, landmarks = decode(loc_, points_, prior)
    return Faces(boxes, landmarks, scores_)


def detect(
    net: nn.Module, image: NDArray[np.uint8], threshold: float, scales: Sequence[float] = (1.0,)
) -> Faces:
    """Find the faces of a uint8 BGR image [H, W, 3] at every scale, merged by suppression."""
    levels = []
    for scale in scales:
        height, width = (max(32, round(side * scale)) for side in image.shape[:2])
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = image if scale == 1 else cv2.resize(image, (width, height), interpolation=way)
        found = _single(net, scaled, threshold)
        ratio = np.array([image.shape[1] / width, image.shape[0] / height], np.float32)
        levels.append(Faces(found.boxes * np.tile(ratio, 2), found.landmarks * ratio, found.scores))
    merged = Faces(
        *(np.concatenate([getattr(f, k) for f in levels]) for k in ("boxes", "landmarks", "scores"))
    )
    return suppress(merged)


def _best_in_crop(net: nn.Module, crop: NDArray[np.uint8], expected: Floats) -> Floats | None:
    """Landmarks [5, 2] averaged over the confident anchors that overlap the expected box."""
    found = _single(net, crop, 0.2)
    if not len(found.scores):
        return None
    overlap = iou(expected[None], found.boxes)[0]
    weight = np.where(overlap > 0.4, found.scores**4 * overlap, 0)
    if weight.max() < 1e-3:
        return None
    weight = np.where(weight > 0.5 * weight.max(), weight, 0)
    return np.einsum("n,nij->ij", weight / weight.sum(), found.landmarks).astype(np.float32)


def refine(
    net: nn.Module, image: NDArray[np.uint8], faces: Faces, size: float = 160, mirror: bool = True
) -> Faces:
    """Second pass: look at every face again at ``size`` px and take the landmarks from there.

    The crop is twice the box's side about its centre; with ``mirror`` the mean with the mirrored
    crop's landmarks is taken. A face not found again keeps its first landmarks.
    """
    landmarks = faces.landmarks.copy()
    for i, box in enumerate(faces.boxes):
        side = float(np.sqrt(max(np.prod(box[2:] - box[:2]), 1.0)))
        scale, edge = size / side, int(-(-size * 2 // 32) * 32)
        offset = edge / 2 - (box[:2] + box[2:]) / 2 * scale
        matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]], np.float32)
        source = image
        if scale < 0.6:  # warpAffine does not filter: take away what would alias first
            source = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
        crop = cv2.warpAffine(source, matrix, (edge, edge), borderMode=cv2.BORDER_REPLICATE)
        expected = (box.reshape(2, 2) * scale + offset).reshape(4).astype(np.float32)
        views = [_best_in_crop(net, crop, expected)]
        if mirror:
            turned = expected[[2, 1, 0, 3]] * (-1, 1, -1, 1) + np.array([edge, 0, edge, 0])
            seen = _best_in_crop(net, np.ascontiguousarray(crop[:, ::-1]), turned.astype("f4"))
            views.append(None if seen is None else (seen * (-1, 1) + (edge - 1, 0))[list(MIRROR)])
        kept = [v for v in views if v is not None]
        if kept:
            landmarks[i] = (np.mean(kept, 0) - offset) / scale
    return Faces(faces.boxes, landmarks, faces.scores)
