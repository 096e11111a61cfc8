"""What detection on a device is made of: levels, proposer and crops are the processor's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from face_restore_worker.network.proposer_cuda import ProposerCuda
from face_restore_worker.pipeline import gpu_pyramid, pyramid, refine
from face_restore_worker.pipeline.gpu_propose import DeviceProposer
from face_restore_worker.pipeline.gpu_refine import read_crops
from face_restore_worker.pipeline.propose import load_network
from face_restore_worker.pipeline.pyramid import Picture
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_factory import as_depth, background
from test_gpu_detect import CPU, PROPOSER, TYPES, noise, uploaded
from torch import nn

# --- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(100, 130, 3), (99, 131, 3), (301, 200), (7, 340, 1), (1, 1)])
def test_levels_are_the_processors(
    dtype: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_pyramid, "BAND_BYTES", 2000)
    image = np.array(as_depth(noise(*shape), dtype))
    if dtype == np.float32:
        image[0, 0], image[-1, -1] = np.nan, -np.inf
    image.flags.writeable = False
    picture, photo = Picture(image[:, ::-1]), uploaded(image[:, ::-1])
    assert photo.dtype == torch.uint8
    assert photo.shape == (*shape[:2], 3 if shape[2:] == (3,) else 1)  # gray stays as small
    for finest in (1, 2, 3, 4, 5):
        wanted = pyramid.build_levels(picture, finest, 20)
        found = gpu_pyramid.build_levels(photo, finest, 20)
        assert len(wanted) == len(found)
        for a, b in zip(found, wanted, strict=True):
            assert (a.factor, a.width, a.height) == (b.factor, b.width, b.height)
            whole = (0, 0, a.width, a.height)
            # OpenCV rounds halves to even, which blocks of 4 x 4 have.
            assert difference(a.read(whole), b.read(whole)) <= (1 if finest == 4 else 0)


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("shape", [(60, 71, 3), (1, 9), (41, 40)])
def test_magnified_levels_are_the_processors(times: int, shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    wanted = pyramid.magnified(Picture(image), times)
    found = gpu_pyramid.magnified(uploaded(image), times)
    width, height = wanted.width, wanted.height
    assert (found.width, found.height, found.factor) == (width, height, wanted.factor)
    for rect in ((0, 0, width, height), (width // 3, 0, width, height - 1)):
        assert difference(found.read(rect), wanted.read(rect)) <= 1


def difference(found: torch.Tensor, wanted: np.ndarray) -> int:
    assert tuple(found.shape) == wanted.shape
    return int(np.abs(found.numpy().astype(int) - wanted).max())


# --- the proposer -------------------------------------------------------------------------------


def proposer_on(network: nn.Module, threshold: float, side: int = 128) -> DeviceProposer:
    return DeviceProposer(ProposerCuda(network, torch.float32, CPU, side, (1, 2)), threshold)


class Spots(nn.Module):
    """Passes cells that hold a bright pixel: an output for each of the first two channels."""

    def answers(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(x[:, :2, 1:-1, 1:-1], 8) - 1


@pytest.mark.parametrize("quarters", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(40, 72), (128, 128), (33, 301), (500, 45), (257, 400)])
def test_places_lie_where_they_were_seen(shape: tuple[int, int], quarters: Any) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    height, width = shape
    across, down = range(3, width, 29), range(5, height, 31)
    spots = [(x, y) for x in (*across, width - 1) for y in (*down, height - 1)]
    for x, y in spots:
        image[y, x, 0] = 255
    image[7, 20, 1] = 255
    level = gpu_pyramid.build_levels(uploaded(image), 1)[0]
    with torch.inference_mode():
        places = proposer_on(Spots(), 0.5, 192).places(level, (0, 0, width, height), quarters)
    for x, y in spots:
        assert np.abs(places.small - (x + 0.5, y + 0.5)).max(axis=1).min() <= 8
    assert all(np.abs(np.array(spots) - p).max(axis=1).min() <= 8 for p in places.small)
    assert len(places.large) >= 1 and np.abs(places.large - (20.5, 7.5)).max() <= 8


@pytest.mark.parametrize("quarters", [(0,), (1,), (0, 1, 2, 3)])
def test_the_proposer_gives_the_networks_answers(quarters: tuple[int, ...]) -> None:
    image = np.repeat(noise(128, 128)[..., None], 3, 2)
    network = load_network(PROPOSER[0]).eval()
    answers = np.full((2, 16, 16), -np.inf)
    for quarter in quarters:
        frame = np.pad(np.rot90(image, quarter), ((1, 1), (1, 1), (0, 0)), constant_values=128)
        with torch.inference_mode():
            logits = network(torch.from_numpy(frame).permute(2, 0, 1)[None].float())[0].numpy()
        answers = np.maximum(answers, np.rot90(logits, -quarter, (1, 2)))
    low, high = np.sort(answers[0], axis=None)[80:82]
    middle = float(low + high) / 2
    level = gpu_pyramid.build_levels(uploaded(image[..., 0]), 1, 400)[0]
    with torch.inference_mode():
        proposer = proposer_on(network, 1 / (1 + np.exp(-middle)))
        found = proposer.places(level, (0, 0, 128, 128), quarters)
    assert len(found.small) == 256 - 81 and found.looked_at == 256
    for places, cells in zip((found.small, found.large), answers >= middle, strict=True):
        y, x = np.nonzero(cells)
        np.testing.assert_array_equal(places, np.stack([x, y], 1) * 8 + 4.0)


def test_cells_that_are_no_numbers_are_looked_at() -> None:
    class Nothing(nn.Module):
        def answers(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 2, 16, 16), torch.nan)

    level = gpu_pyramid.build_levels(uploaded(noise(40, 64, 3)), 1)[0]
    with torch.inference_mode():
        assert len(proposer_on(Nothing(), 0.5).places(level, (0, 0, 64, 40)).small) == 5 * 8


# --- the second look ----------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(5, 900), st.floats(5, 700), st.floats(6, 900), st.floats(-3.2, 3.2)),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_crops_are_the_processors(faces: list[Any], gray: bool) -> None:
    image = background(901, 703, seed=3)
    image = image[..., 0] if gray else image
    levels = pyramid.build_levels(Picture(image), 1)
    on_it = gpu_pyramid.build_levels(uploaded(image), 1)
    matrices = [
        refine.crop_matrix(np.array([x - s / 2, y - s / 2, x + s / 2, y + s / 2]), turn)
        for x, y, s, turn in faces
    ]
    found = read_crops(on_it, matrices)
    assert found.shape == (len(faces), refine.CROP_SIDE, refine.CROP_SIDE, 3)
    for crop, matrix in zip(found, matrices, strict=True):
        wanted = refine.read_crop(levels, matrix).astype(float)
        off = np.abs(crop.numpy() - wanted)
        assert off.mean() < 1 and off.max() <= 12  # OpenCV rounds positions to 1/32 pixel
