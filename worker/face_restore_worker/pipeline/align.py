"""Alignment: the similarity transform that brings five landmarks onto a template.

Transforms are (2, 3) float64 matrices acting on pixel-centre coordinates, on both sides: they map
a point (x, y) of the photograph to ``A @ (x, y) + b`` in the aligned crop.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from face_restore_worker.errors import ImageError

FloatArray = NDArray[np.float64]

#: Landmarks of an aligned face in pixel-edge coordinates of a crop that spans [0, 512] x [0, 512]:
#: left eye, right eye, nose, left and right mouth corner. "ffhq" is what most tools use with GPEN;
#: "gpen" is the template of the authors' demo, looser by 17 % in eye distance.
TEMPLATES: dict[str, FloatArray] = {
    "ffhq": np.array(
        [
            (192.98138, 239.94708),
            (318.90277, 240.19360),
            (256.63416, 314.01935),
            (201.26117, 371.41043),
            (313.08905, 371.15118),
        ]
    ),
    "gpen": np.array(
        [
            (202.04, 242.88),
            (309.43, 242.29),
            (256.08, 303.96),
            (211.96, 366.83),
            (300.89, 366.34),
        ]
    ),
}
for _points in TEMPLATES.values():
    _points.setflags(write=False)

TEMPLATE_UNITS = 512.0


def template_landmarks(name: str, size: int) -> FloatArray:
    """Where the template's landmarks lie in a crop of ``size`` pixels.

    Args:
        name: a key of ``TEMPLATES``.
        size: side of the crop in pixels.

    Returns:
        (5, 2) float64, pixel-centre coordinates. A template spans the crop edge to edge whatever
        its size, so that the scaling happens in pixel-edge coordinates, half a pixel away.

    Raises:
        ImageError: the template is unknown or the size is not positive.
    """
    if name not in TEMPLATES:
        raise ImageError(
            f"There is no alignment template named {name!r}.",
            hint=f"Choose one of: {', '.join(TEMPLATES)}.",
            code="bad-request",
        )
    if size < 1:
        raise ImageError(f"An aligned crop of {size} pixels has no pixels.", code="bad-request")
    return TEMPLATES[name] * (size / TEMPLATE_UNITS) - 0.5


def umeyama(src: ArrayLike, dst: ArrayLike) -> FloatArray:
    """The similarity transform (no reflection) that takes ``src`` to ``dst`` in least squares.

    S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    IEEE PAMI 13 (1991), equations 40 to 42. With the covariance of the centred points
    C = dst^T src / n = U D V^T and S = diag(1, det(U) det(V)):
    rotation R = U S V^T, scale c = trace(D S) / variance(src), shift t = mean(dst) - c R mean(src).

    Args:
        src, dst: (n, 2), n at least 2.

    Returns:
        (2, 3) float64.

    Raises:
        ImageError: the shapes differ, a coordinate is not finite, the points of ``src`` coincide,
            or no rotation fits better than a reflection would (the scale comes out as zero).
    """
    a = np.asarray(src, dtype=np.float64)
    b = np.asarray(dst, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] != 2 or len(a) < 2:
        raise _no_fit(f"point sets of shape {a.shape} and {b.shape} cannot be matched")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise _no_fit("a coordinate is not a finite number")
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    centred_a, centred_b = a - mean_a, b - mean_b
    variance = float((centred_a**2).sum() / len(a))
    spread = max(1.0, float(np.abs(a).max()))
    if variance <= (1e-9 * spread) ** 2:
        raise _no_fit("all landmarks lie on one point")
    u, d, vt = np.linalg.svd(centred_b.T @ centred_a / len(a))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    scale = float((d * sign).sum() / variance)
    if not scale > 0 or d[0] <= 0 or scale < 1e-9:
        raise _no_fit("the landmarks do not have the layout of a face")
    linear = scale * (u * sign) @ vt
    return np.column_stack([linear, mean_b - linear @ mean_a])


def alignment_matrix(landmarks: ArrayLike, template: str = "ffhq", size: int = 512) -> FloatArray:
    """The transform from the photograph to the aligned crop, for one face.

    Args:
        landmarks: (5, 2), pixel-centre coordinates of the photograph.
        template: a key of ``TEMPLATES``.
        size: side of the crop in pixels.

    Returns:
        (2, 3) float64.

    Raises:
        ImageError: as ``umeyama`` and ``template_landmarks`` do.
    """
    return umeyama(landmarks, template_landmarks(template, size))


def invert(matrix: ArrayLike) -> FloatArray:
    """The exact inverse of a (2, 3) affine transform, as (2, 3) float64.

    Closed form, so that it is as exact as float64 allows. Raises ``ImageError`` when the transform
    is singular.
    """
    m = np.asarray(matrix, dtype=np.float64)
    (a, b), (c, d) = m[:, :2]
    determinant = a * d - b * c
    if determinant == 0 or not np.isfinite(determinant):
        raise _no_fit("the transform has no inverse")
    linear = np.array([[d, -b], [-c, a]]) / determinant
    return np.column_stack([linear, -linear @ m[:, 2]])


def compose(outer: ArrayLike, inner: ArrayLike) -> FloatArray:
    """The (2, 3) transform that applies ``inner`` first and ``outer`` to its result."""
    f = np.asarray(outer, dtype=np.float64)
    g = np.asarray(inner, dtype=np.float64)
    return np.column_stack([f[:, :2] @ g[:, :2], f[:, :2] @ g[:, 2] + f[:, 2]])


def rescale(factor: float) -> FloatArray:
    """The (2, 3) transform of a picture scaled by ``factor``, edges on edges, pixel-centre."""
    shift = 0.5 * factor - 0.5
    return np.array([[factor, 0.0, shift], [0.0, factor, shift]])


def translate(x: float, y: float) -> FloatArray:
    """The (2, 3) transform that moves points by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def apply(matrix: ArrayLike, points: ArrayLike) -> FloatArray:
    """Points (n, 2) through a (2, 3) transform, as (n, 2) float64."""
    m = np.asarray(matrix, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ m[:, :2].T + m[:, 2]


def scale_of(matrix: ArrayLike) -> float:
    """Pixels of the crop for each pixel of the photograph."""
    (a, b), (c, d) = np.asarray(matrix, dtype=np.float64)[:, :2]
    return math.sqrt(abs(a * d - b * c))


def _no_fit(reason: str) -> ImageError:
    return ImageError(
        f"This face cannot be aligned: {reason}.",
        hint="Leave this face out, or give its five landmarks as left eye, right eye, nose, left "
        "and right mouth corner.",
        code="bad-landmarks",
    )
