"""The second look: each face again, upright and at the size the network sees best.

The first pass finds faces at whatever size the pyramid shows them; box and landmarks are then as
coarse as that. Here a square crop about each face is turned upright and scaled so that the face
measures REFINED_SIDE pixels, and box and landmarks are taken from there. What a small network
took for a face by mistake it seldom takes for one again at that size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from face_restore_worker.pipeline.nms import iou
from face_restore_worker.pipeline.pyramid import AnyScale, Level, Pixels, Rect, Scale
from face_restore_worker.pipeline.views import (
    Candidates,
    Floats,
    Matrix,
    Network,
    compose,
    edge_to_centre,
    inverse,
    map_points,
    placed,
)

REFINED_SIDE = 112.0
"""Where landmarks are best: measured from 48 to 160, with two MobileNet-0.25 detectors."""
CONFIRMED_SIDE = 56.0
"""Faces of less than SMALL pixels are too blurred at REFINED_SIDE to be told from anything else."""
SMALL = 32.0
CROP_SIDE = 224
MIN_TURN = math.radians(15)
"""Faces tilted less are looked at as they are: the network knows such tilts."""
MIN_SCORE = 0.3
"""A second look that scores less than this does not move a face."""
LOWEST_SCORE = 0.1
MIN_OVERLAP = 0.35
MIRRORED = np.array([1, 0, 2, 4, 3])
"""Order of the landmarks after a mirror."""

Size = tuple[int, int]
"""Width and height."""


def roll(landmarks: Floats) -> float:
    """Angle in radians by which an upright face must turn (x towards y) to look like this one.

    The least-squares rotation of the line between the eyes to the x axis and of the line from the
    eyes to the mouth to the y axis. landmarks: (5, 2).
    """
    across = landmarks[1] - landmarks[0]
    down = landmarks[3:].mean(axis=0) - landmarks[:2].mean(axis=0)
    return math.atan2(across[1] - down[0], across[0] + down[1])


def crop_matrix(box: Floats, angle: float, side: float = REFINED_SIDE) -> Matrix:
    """From the photograph to the crop about `box` turned upright by `angle`, pixel-edge, (2, 3).

    side: what the box's side (geometric mean) measures in the crop of CROP_SIDE pixels.
    """
    size = np.maximum(box[2:] - box[:2], 1e-3)
    scale = side / math.sqrt(size[0] * size[1])
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cos, sin], [-sin, cos]])
    offset = CROP_SIDE / 2 - linear @ ((box[:2] + box[2:]) / 2)
    return np.concatenate([linear, offset[:, None]], axis=1)


def turned_box(box: Floats, angle: float, to_photo: Matrix) -> Floats:
    """The box (4,) parallel to the photograph's axes of the ellipse in `box` of an upright crop.

    A face fills about the ellipse in its box; the corners of a turned box lie outside of it.
    """
    centre = map_points(((box[:2] + box[2:]) / 2)[None], to_photo)[0]
    scale = math.sqrt(abs(np.linalg.det(to_photo[:, :2])))
    a, b = (box[2:] - box[:2]) / 2 * scale
    half = np.hypot(
        [a * math.cos(angle), a * math.sin(angle)], [b * math.sin(angle), b * math.cos(angle)]
    )
    return np.concatenate([centre - half, centre + half])


def source_of(levels: Sequence[AnyScale], matrix: Matrix) -> tuple[AnyScale, Rect, Size | None]:
    """What the crop of `matrix` (photograph to crop, pixel-edge) is resampled from.

    Returns the coarsest level that is no coarser than the crop, the part of it the crop shows with
    two pixels more to each side, and the width and height to which that part is to be shrunk
    first; None where it is not.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    fitting = [level for level in levels if level.factor * scale <= 1.0]
    level = max(fitting or levels[:1], key=lambda candidate: candidate.factor)
    corners = np.array([[0, 0], [CROP_SIDE, 0], [0, CROP_SIDE], [CROP_SIDE, CROP_SIDE]], float)
    seen = map_points(corners, inverse(matrix)) / level.factor
    low = np.floor(seen.min(axis=0)).astype(int) - 2
    high = np.ceil(seen.max(axis=0)).astype(int) + 2
    x0, y0 = (
        int(np.clip(v, 0, m - 1)) for v, m in zip(low, (level.width, level.height), strict=True)
    )
    x1 = int(np.clip(high[0], x0 + 1, level.width))
    y1 = int(np.clip(high[1], y0 + 1, level.height))
    shrink = level.factor * scale
    size = None
    if shrink < 0.75:
        size = (max(round((x1 - x0) * shrink), 1), max(round((y1 - y0) * shrink), 1))
    return level, (x0, y0, x1, y1), size


def from_source(matrix: Matrix, level: Scale, rect: Rect, size: Size | None) -> Matrix:
    """From the part of a level, shrunk where that is wished, to the crop; pixel-edge.

    What `source_of` returned for `matrix`.
    """
    to_photo = placed(level.factor, rect[0], rect[1])
    if size is not None:
        width, height = rect[2] - rect[0], rect[3] - rect[1]
        ratio = np.array([[width / size[0], 0, 0], [0, height / size[1], 0]])
        to_photo = compose(to_photo, ratio)
    return compose(matrix, to_photo)


def read_crop(levels: Sequence[Level], matrix: Matrix) -> Pixels:
    """Resample the crop of `matrix` (photograph to crop, pixel-edge): (S, S, 3) uint8 RGB.

    Read from a level that is no coarser than the crop, then shrunk area-correctly to about the
    crop's scale, then turned. The border is repeated.
    """
    import cv2

    level, rect, size = source_of(levels, matrix)
    piece = level.read(rect)
    if size is not None:
        piece = cv2.resize(piece, size, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(
        piece,
        edge_to_centre(from_source(matrix, level, rect, size)),
        (CROP_SIDE, CROP_SIDE),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )


Look = tuple[Floats, Floats, float]
"""Box (4,), landmarks (5, 2), score."""


class Looker(Protocol):
    """Looks at crops of one photograph.

    batch: faces that are best looked at together.
    """

    @property
    def batch(self) -> int:
        """See above."""

    def look(self, matrices: Sequence[Matrix], mirror: bool) -> list[Candidates]:
        """Every anchor of LOWEST_SCORE on each crop, then on each mirrored crop where wished.

        matrices: photograph to crop, pixel-edge; see ``crop_matrix``. Coordinates are the crops'.
        """


class Crops:
    """A Looker in the computer's memory.

    network: looks. levels: of the photograph, finest first.
    """

    batch = 4

    def __init__(self, network: Network, levels: Sequence[Level]) -> None:
        self._network, self._levels = network, levels

    def look(self, matrices: Sequence[Matrix], mirror: bool) -> list[Candidates]:
        """See Looker."""
        crops = [read_crop(self._levels, matrix) for matrix in matrices]
        if mirror:
            crops += [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
        return self._network.find(crops, LOWEST_SCORE)


def refine(looker: Looker, faces: Candidates, *, mirror: bool, confirm: float) -> Candidates:
    """Take box and landmarks of every face from a second look; scores stay the first pass's.

    mirror: also look at the mirrored crop and take the mean: less scatter with small networks.
    confirm: faces that score less at the second look are dropped; 0 keeps all. A face the second
        look does not see clearly keeps the box and landmarks it had.
    """
    boxes, landmarks = faces.boxes.copy(), faces.landmarks.copy()
    seen = np.zeros(len(faces))
    small = faces.sides < SMALL
    for index in _batches(np.arange(len(faces)), looker.batch):
        looks = _look(looker, faces.take(index), REFINED_SIDE, mirror)
        for i, look in zip(index, looks, strict=True):
            seen[i] = look[2] if look else 0.0
            if look and look[2] >= MIN_SCORE:
                boxes[i], landmarks[i] = look[:2]
    if confirm > 0:
        for index in _batches(np.flatnonzero(small), looker.batch):
            looks = _look(looker, faces.take(index), CONFIRMED_SIDE, mirror)
            seen[index] = [look[2] if look else 0.0 for look in looks]
    refined = Candidates(boxes, landmarks, faces.scores, faces.scales)
    return refined.take(seen >= confirm)


def _batches(index: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    return [index[i : i + size] for i in range(0, len(index), size)]


def _look(looker: Looker, faces: Candidates, side: float, mirror: bool) -> list[Look | None]:
    """Each face again, its box measuring `side` pixels; in photograph coordinates, pixel-edge."""
    tilts = [roll(points) for points in faces.landmarks]
    angles = [tilt if abs(tilt) > MIN_TURN else 0.0 for tilt in tilts]
    matrices = [
        crop_matrix(box, angle, side) for box, angle in zip(faces.boxes, angles, strict=True)
    ]
    found = [_centre_face(one, side) for one in looker.look(matrices, mirror)]
    looks, others = found[: len(faces)], found[len(faces) :]
    if mirror:
        looks = [_mean(a, _unmirrored(b)) for a, b in zip(looks, others, strict=True)]
    result: list[Look | None] = []
    for look, angle, matrix in zip(looks, angles, matrices, strict=True):
        back = inverse(matrix)
        result.append(
            look and (turned_box(look[0], angle, back), map_points(look[1], back), look[2])
        )
    return result


def _unmirrored(look: Look | None) -> Look | None:
    if look is None:
        return None
    x0, y0, x1, y1 = look[0]
    points = look[1][MIRRORED] * (-1, 1) + (CROP_SIDE, 0)
    return np.array([CROP_SIDE - x1, y0, CROP_SIDE - x0, y1]), points, look[2]


def _mean(a: Look | None, b: Look | None) -> Look | None:
    """The clearer of two looks, or their mean where both are clear; the better score."""
    if a is None or b is None:
        return a or b
    score = max(a[2], b[2])
    if min(a[2], b[2]) < MIN_SCORE <= score:
        clear = a if a[2] >= b[2] else b
        return clear[0], clear[1], score
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2, score


def _centre_face(found: Candidates, side: float) -> Look | None:
    """The mean of the confident anchors on the face in the middle of the crop, or None."""
    if len(found) == 0:
        return None
    low, high = (CROP_SIDE - side) / 2, (CROP_SIDE + side) / 2
    expected = np.array([[low, low, high, high]])
    overlap = iou(found.boxes, expected)[:, 0]
    rating = np.where(overlap >= MIN_OVERLAP, found.scores * overlap, 0.0)
    best = int(np.argmax(rating))
    if rating[best] <= 0:
        return None
    same = iou(found.boxes, found.boxes[best : best + 1])[:, 0] > 0.6
    weights = np.where(same, found.scores**4, 0.0)
    weights = np.where(weights > 0.5 * weights.max(), weights, 0.0)
    weights /= weights.sum()
    landmarks = np.einsum("n,nij->ij", weights, found.landmarks)
    return weights @ found.boxes, landmarks, float(found.scores[same].max())
