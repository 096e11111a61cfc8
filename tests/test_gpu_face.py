"""The device's way of a face, on torch's CPU device, gives what the CPU's way gives."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline import colour, gpu_colour, gpu_resample, gpu_warp, mask, warp
from face_restore_worker.pipeline.align import alignment_matrix, template_landmarks
from face_restore_worker.pipeline.gpu_face import DeviceFaces, Finished, Wish
from face_restore_worker.pipeline.parsing import FaceParser
from face_restore_worker.pipeline.paste import (
    align_face,
    bring_back,
    finish_crop,
    whole_picture,
)
from face_restore_worker.pipeline.warp import Rect
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.natural import natural_photo, place_face

CPU = torch.device("cpu")
RNG = np.random.default_rng(7)
torch.set_num_threads(2)


def planar(image: np.ndarray) -> torch.Tensor:
    image = image if image.ndim == 3 else image[..., None]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def back(image: torch.Tensor) -> np.ndarray:
    array = image.permute(1, 2, 0).numpy()
    return array if array.shape[2] == 3 else array[..., 0]


class Sharpen:
    """A network that changes colours and contrast: stands for one on the device."""

    def __init__(self, size: int, factor: float = 1.3) -> None:
        self.size, self.device, self.factor = size, CPU, factor

    def restore_pixels(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert pixels.shape == (self.size, self.size, 3) and pixels.is_contiguous()
        y = (pixels - 0.5) * self.factor + torch.tensor([0.55, 0.5, 0.45])
        return y.clamp(0, 1), torch.isfinite(y).all()


def on_the_cpu(photo: np.ndarray, matrix: np.ndarray, network: Sharpen, wish: Wish) -> Any:
    """What `Restorer` does with a face on a CPU."""
    aligned = align_face(photo, matrix, network.size)
    output = network.restore_pixels(torch.from_numpy(aligned.rgb).contiguous())[0].numpy()
    made = mask.oval_mask(network.size, wish.template, wish.softness) if wish.mask else None
    weight = mask.full_mask(network.size) if made is None else made
    restored = finish_crop(aligned, output, weight, wish.keep_colour)
    return bring_back(photo, aligned, restored, made)


def started(photo: np.ndarray, matrix: np.ndarray, network: Sharpen, wish: Wish) -> Finished:
    done = DeviceFaces(network).start(photo, matrix, wish)()
    assert done is not None
    return done


@settings(max_examples=8, deadline=None)
@given(
    size=st.floats(math.log(30), math.log(500)).map(math.exp),
    angle=st.floats(-math.pi, math.pi),
    across=st.tuples(st.floats(-0.05, 1.05), st.floats(-0.05, 1.05)),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    crop=st.sampled_from([64, 256, 512]),
    gray=st.booleans(),
    keep_colour=st.booleans(),
    template=st.sampled_from(["ffhq", "gpen"]),
    softness=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_patch_is_the_same_as_on_the_cpu(
    size: float,
    angle: float,
    across: tuple[float, float],
    dtype: str,
    crop: int,
    gray: bool,
    keep_colour: bool,
    template: str,
    softness: float,
) -> None:
    side = max(40, round(1.2 * size))
    photo = natural_photo(side, side + 7, dtype)
    if gray:
        photo = np.repeat(photo[..., :1], 3, axis=2)
    face = place_face(size, angle, across[0] * side, across[1] * side, template)
    matrix = alignment_matrix(face.landmarks, template, crop)
    network, wish = Sharpen(crop), Wish(template, softness, keep_colour)
    try:
        wanted = on_the_cpu(photo, matrix, network, wish)
    except ImageError:
        with pytest.raises(ImageError):
            started(photo, matrix, network, wish)
        return
    found = started(photo, matrix, network, wish)
    if wanted is None:
        assert found.rgb is None
        return
    x, y, rgb, soft = wanted
    assert found.rgb is not None and found.mask is not None
    assert (found.x, found.y) == (x, y) and found.mask.shape == soft.shape
    assert np.abs(found.mask - soft).max() < 2e-4
    assert found.rgb.shape == rgb.shape and found.rgb.dtype == np.float32
    # OpenCV's Lanczos rounds positions to 1/32 pixel: see gpu_resample.
    difference = np.abs(found.rgb - rgb)[soft > 0]
    assert difference.mean() < 3e-3 and difference.max() < 0.04
    if gray:
        assert np.array_equal(found.rgb[..., 0], found.rgb[..., 1])
    assert found.parsed and found.aligned_input is None


def test_a_picture_that_is_a_face_as_a_whole() -> None:
    photo = natural_photo(300, 260)
    points = template_landmarks("ffhq", 256)
    _, matrix = whole_picture(photo.shape, 256, points)
    network, wish = Sharpen(256), Wish("ffhq", 1.0, True, mask=False, crops=True)
    x, y, rgb, soft = on_the_cpu(photo, matrix, network, wish)
    found = started(photo, matrix, network, wish)
    assert found.rgb is not None and found.mask is not None
    assert (found.x, found.y, found.rgb.shape) == (x, y, rgb.shape)
    assert np.array_equal(found.mask, soft)
    assert np.abs(found.rgb - rgb).mean() < 2e-3
    aligned = align_face(photo, matrix, 256)
    assert found.aligned_input is not None and found.aligned_output is not None
    assert np.abs(found.aligned_input - aligned.rgb).mean() < 2e-3
    assert found.aligned_output.shape == (256, 256, 3)


def test_a_gray_picture_without_channels() -> None:
    photo = natural_photo(200, 200)[..., 1].copy()
    face = place_face(90, 0.2, 100, 100)
    matrix = alignment_matrix(face.landmarks, "ffhq", 128)
    network, wish = Sharpen(128), Wish("ffhq", 1.0, True)
    _, _, rgb, _ = on_the_cpu(photo, matrix, network, wish)
    found = started(photo, matrix, network, wish)
    assert found.rgb is not None and np.abs(found.rgb - rgb).mean() < 2e-3


def test_values_that_are_no_numbers_give_no_face() -> None:
    photo = natural_photo(200, 200)
    matrix = alignment_matrix(place_face(90, 0.2, 100, 100).landmarks, "ffhq", 64)
    assert DeviceFaces(Sharpen(64, math.nan)).start(photo, matrix, Wish("ffhq", 1, True))() is None


def test_faces_can_be_started_before_the_last_one_is_fetched() -> None:
    photo = natural_photo(300, 400)
    matrices = [
        alignment_matrix(place_face(80, 0.1, x, 140).landmarks, "ffhq", 128) for x in (100, 250)
    ]
    faces, wish = DeviceFaces(Sharpen(128)), Wish("ffhq", 1.0, True)
    waiting = [faces.start(photo, matrix, wish) for matrix in matrices]
    for matrix, wait in zip(matrices, waiting, strict=True):
        together, alone = wait(), started(photo, matrix, Sharpen(128), wish)
        assert together is not None and together.rgb is not None and alone.rgb is not None
        assert np.array_equal(together.rgb, alone.rgb) and together.x == alone.x


class Labels(torch.nn.Module):
    """A parser of brightness: class 1 (skin) where it is bright; background for a gain of 0."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits = torch.zeros((len(x), 19, *x.shape[2:]))
        logits[:, 0] = 20.0
        logits[:, 1] = 20.0 * (self.weight > 0) + x.mean(dim=1) * self.weight + self.weight
        return logits, None


@pytest.mark.parametrize("crop", [128, 512, pytest.param(1024, marks=pytest.mark.slow)])
def test_masks_by_face_parts(crop: int) -> None:
    photo = natural_photo(300, 300)
    matrix = alignment_matrix(place_face(120, 0.3, 150, 150).landmarks, "ffhq", crop)
    parser = FaceParser(Labels(30.0))
    network = Sharpen(crop)
    wish = Wish("ffhq", 1.0, False, parser=parser)
    found = started(photo, matrix, network, wish)
    aligned = align_face(photo, matrix, crop)
    output = network.restore_pixels(torch.from_numpy(aligned.rgb))[0].numpy()
    small = output if crop <= 512 else cv2.resize(output, (512, 512), interpolation=cv2.INTER_AREA)
    made = mask.parse_mask(parser(small), crop, 1.0)
    assert mask.covers_face(made) is found.parsed is True
    patch = bring_back(photo, aligned, finish_crop(aligned, output, made, False), made)
    assert patch is not None and found.mask is not None
    assert found.mask.shape == patch[3].shape
    assert np.abs(found.mask - patch[3]).mean() < 2e-3


def test_a_face_the_parser_does_not_see_gets_an_oval() -> None:
    photo = natural_photo(300, 300)
    matrix = alignment_matrix(place_face(120, 0.3, 150, 150).landmarks, "ffhq", 128)
    blind = Wish("ffhq", 1.0, True, parser=FaceParser(Labels(0.0)))
    found = started(photo, matrix, Sharpen(128), blind)
    oval = started(photo, matrix, Sharpen(128), Wish("ffhq", 1.0, True))
    assert not found.parsed and oval.parsed
    assert found.mask is not None and oval.mask is not None
    assert np.array_equal(found.mask, oval.mask)


# -- the parts -------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([cv2.INTER_LINEAR, cv2.INTER_CUBIC]),
    st.sampled_from([cv2.BORDER_REFLECT, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT]),
    st.floats(-0.9, 0.9), st.floats(-0.9, 0.9), st.floats(-20, 60),
    st.integers(3, 40), st.integers(3, 40), st.sampled_from([50, 1 << 20]),
)  # fmt: skip
def test_sampling_is_opencvs(
    kernel: int, border: int, a: float, b: float, shift: float, width: int, height: int, chunk: int
) -> None:
    image = RNG.random((37, 41, 3), dtype=np.float32)
    matrix = np.array([[a, b, shift], [-b, a, 12.3]])
    corners = np.array([(x, y, 1) for x in (0, width - 1) for y in (0, height - 1)]) @ matrix.T
    # OpenCV mirrors a picture once, not again and again.
    within = np.all((corners > (-39, -35)) & (corners < (80, 72)))
    assume(border != cv2.BORDER_REFLECT or bool(within))
    flags = kernel | cv2.WARP_INVERSE_MAP
    wanted = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=border)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_resample, "_CHUNK", chunk)
        found = gpu_resample.sample(planar(image), matrix, (width, height), kernel, border)
    assert np.abs(back(found) - wanted).max() < 5e-4  # OpenCV's positions are fp32


def test_lanczos_is_exact_where_opencv_rounds_positions() -> None:
    """A wave the kernel passes, at positions that 1/32 pixel divides and at others."""
    x = np.arange(80)
    image = np.repeat((0.5 + 0.4 * np.sin(0.5 * x))[None, :, None], 20, axis=0).astype(np.float32)
    for step, bound in ((0.5, 2e-3), (0.37, 2e-3)):
        matrix = np.array([[step, 0, 20.0], [0, 1, 0.0]])
        found = gpu_resample.sample(
            planar(image), matrix, (60, 20), cv2.INTER_LANCZOS4, cv2.BORDER_REFLECT
        )
        wanted = 0.5 + 0.4 * np.sin(0.5 * (20 + step * np.arange(60)))
        assert np.abs(found[0, 10].numpy() - wanted).max() < bound


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(1, 60), st.integers(2, 60), st.integers(1, 60))
def test_shrinking_is_opencvs(height: int, to_height: int, width: int, to_width: int) -> None:
    to_height, to_width = min(height, to_height), min(width, to_width)
    image = RNG.random((height, width, 3), dtype=np.float32)
    # OpenCV averages in both directions only where both shrink.
    if (to_height, to_width) != (height, width) and (to_height == height or to_width == width):
        to_height, to_width = height, width
    wanted = cv2.resize(image, (to_width, to_height), interpolation=cv2.INTER_AREA)
    found = gpu_resample.shrink(planar(image), to_height, to_width)
    assert np.abs(back(found) - wanted).max() < 1e-5


@pytest.mark.parametrize(("size", "angle"), [(30, 0.2), (150, 0.9), (600, 0.1)])
def test_warps_there_and_back(size: int, angle: float) -> None:
    photo = natural_photo(max(200, size), max(200, size))
    face = place_face(size, angle, photo.shape[1] / 2, photo.shape[0] / 2)
    for side in (64, 256):
        matrix = alignment_matrix(face.landmarks, "ffhq", side)
        rect = warp.source_rect(matrix, side, photo.shape)
        wanted = warp.warp_to_crop(photo, matrix, side)
        region = torch.from_numpy(np.ascontiguousarray(rect.cut(photo)))
        found = gpu_warp.warp_to_crop(region, 255.0, rect, matrix, side)
        assert np.abs(back(found) - wanted).mean() < 1.5e-3
        part = Rect(rect.x + 2, rect.y + 3, rect.width - 5, rect.height - 4)
        there = warp.warp_back(wanted, matrix, part)
        assert np.abs(back(gpu_warp.warp_back(planar(wanted), matrix, part)) - there).mean() < 1e-3
        oval = mask.oval_mask(side)
        soft = gpu_warp.warp_mask_back(torch.tensor(oval), side, matrix, part)
        assert np.abs(soft.numpy() - warp.warp_mask_back(oval, side, matrix, part)).max() < 2e-4


@pytest.mark.parametrize("size", [96, 128, 512])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_is_kept_alike(size: int, channels: int) -> None:
    restored = natural_photo(size, size, "float32")[..., :channels]
    original = natural_photo(size, size, "float32", 3)[..., :channels]
    if channels == 1:
        restored, original = restored[..., 0], original[..., 0]
    weight = mask.oval_mask(size)
    wanted = colour.keep_colour(restored.copy(), original, weight)
    found = gpu_colour.keep_colour(planar(restored), planar(original), torch.tensor(weight))
    assert np.abs(back(found) - wanted).max() < 1e-4
    if channels == 3:
        light = gpu_colour.luma(planar(restored))[0].numpy()
        assert np.abs(light - colour.luma(restored)).max() < 1e-6


@pytest.mark.parametrize(("side", "size"), [(512, 2048), (512, 512), (128, 128), (300, 100)])
@pytest.mark.parametrize("softness", [0.0, 1.0])
def test_parsed_masks_are_feathered_alike(side: int, size: int, softness: float) -> None:
    face = cv2.GaussianBlur(RNG.random((side, side), dtype=np.float32), (0, 0), side / 20)
    face = ((face - face.min()) / np.ptp(face)).astype(np.float32)
    wanted = mask.parse_mask(face, size, softness)
    found = gpu_colour.parse_mask(torch.from_numpy(face), size, softness).numpy()
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-4
