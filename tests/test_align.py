"""Similarity transforms: least squares, templates at any crop size, exact inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.align import (
    TEMPLATES,
    alignment_matrix,
    apply,
    compose,
    invert,
    rescale,
    scale_of,
    template_landmarks,
    umeyama,
)
from hypothesis import given, settings
from hypothesis import strategies as st

angles = st.floats(-math.pi, math.pi)
scales = st.floats(0.01, 100)
shifts = st.floats(-20_000, 20_000)


def similarity(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def residual(matrix: np.ndarray, src: np.ndarray, dst: np.ndarray) -> float:
    return float(((apply(matrix, src) - dst) ** 2).sum())


@given(angles, scales, shifts, shifts)
def test_umeyama_recovers_a_similarity(angle: float, scale: float, x: float, y: float) -> None:
    wanted = similarity(angle, scale, x, y)
    src = TEMPLATES["ffhq"]
    found = umeyama(src, apply(wanted, src))
    assert np.allclose(found[:, :2], wanted[:, :2], rtol=1e-7, atol=1e-7 * scale)
    assert np.allclose(apply(found, src), apply(wanted, src), atol=1e-7 * (scale * 512 + 1))


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20), angles, st.floats(0.9, 1.1))
@settings(max_examples=50)
def test_umeyama_is_the_least_squares_fit(
    seed: int, noise: float, angle: float, scale: float
) -> None:
    """No other similarity near it fits better, and it is what the normal equations give."""
    rng = np.random.default_rng(seed)
    src = TEMPLATES["ffhq"] + rng.normal(0, noise, (5, 2))
    dst = TEMPLATES["gpen"] * 2 + rng.normal(0, noise, (5, 2))
    best = umeyama(src, dst)
    # The same problem as linear least squares in (a, b, tx, ty) for [[a, -b], [b, a]].
    rows = np.zeros((10, 4))
    rows[0::2] = np.column_stack([src[:, 0], -src[:, 1], np.ones(5), np.zeros(5)])
    rows[1::2] = np.column_stack([src[:, 1], src[:, 0], np.zeros(5), np.ones(5)])
    a, b, tx, ty = np.linalg.lstsq(rows, dst.ravel(), rcond=None)[0]
    assert np.allclose(best, [[a, -b, tx], [b, a, ty]], atol=1e-6)
    other = compose(similarity(0.01 * math.sin(angle), scale, 0.1, -0.1), best)
    assert residual(best, src, dst) <= residual(other, src, dst) + 1e-9


@given(angles, scales, shifts, shifts)
def test_inverse_is_exact(angle: float, scale: float, x: float, y: float) -> None:
    matrix = similarity(angle, scale, x, y)
    points = np.array([(0.0, 0.0), (2047.0, 13.5), (-300.25, 5000.0)])
    back = apply(invert(matrix), apply(matrix, points))
    size = max(abs(x), abs(y), scale * 6000) / scale
    assert np.abs(back - points).max() <= 1e-12 * (size + 6000) * 10
    assert np.allclose(compose(invert(matrix), matrix), [[1, 0, 0], [0, 1, 0]], atol=1e-9 * size)


@pytest.mark.parametrize("name", ["ffhq", "gpen"])
@given(size=st.sampled_from([64, 256, 512, 1024, 2048]))
def test_template_spans_the_crop_at_any_size(name: str, size: int) -> None:
    """A crop of another size is the 512 crop scaled edge to edge: half a pixel matters."""
    at_512 = template_landmarks(name, 512)
    at_size = template_landmarks(name, size)
    assert np.allclose(apply(rescale(size / 512), at_512), at_size)
    assert np.allclose((at_size + 0.5) / size, TEMPLATES[name] / 512)


@given(angles, st.floats(0.05, 40), shifts, shifts, st.sampled_from([512, 2048]))
def test_alignment_brings_landmarks_onto_the_template(
    angle: float, scale: float, x: float, y: float, size: int
) -> None:
    landmarks = apply(similarity(angle, scale, x, y), TEMPLATES["ffhq"])
    matrix = alignment_matrix(landmarks, "ffhq", size)
    assert np.allclose(apply(matrix, landmarks), template_landmarks("ffhq", size), atol=1e-5)
    assert scale_of(matrix) == pytest.approx(size / 512 / scale, rel=1e-6)


def test_mirrored_landmarks_are_not_fitted_by_a_reflection() -> None:
    mirrored = TEMPLATES["ffhq"] * (-1, 1)
    matrix = umeyama(mirrored, TEMPLATES["ffhq"])
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    "landmarks",
    [
        np.full((5, 2), 7.0),
        np.full((5, 2), np.nan),
        np.array([(0.0, np.inf)] * 5),
        np.zeros((4, 2)),
        np.zeros((5, 3)),
    ],
)
def test_landmarks_that_fit_no_face_are_refused(landmarks: np.ndarray) -> None:
    with pytest.raises(ImageError) as caught:
        alignment_matrix(landmarks)
    assert caught.value.code == "bad-landmarks"
    assert caught.value.hint


def test_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(ImageError, match="ffhq, gpen"):
        template_landmarks("arcface", 512)
