"""The Restorer as programs use it: pictures and faces in, patches and notes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from face_restore_shared.schema import STAGES, DetectOptions, FaceTarget, RestoreOptions
from face_restore_worker import Face, Restorer, composite
from face_restore_worker.errors import Cancelled, DeviceError, ImageError, ModelError
from face_restore_worker.pipeline.backends import run_network
from face_restore_worker.pipeline.parsing import FaceParser

from tests.gpen_factory import random_state, tiny
from tests.natural import Apply, Identity, natural_photo, place_face, psnr

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def only_builtin_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user of this machine has installed must not matter."""
    monkeypatch.setenv("FACE_RESTORE_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return natural_photo(300, 400)


def face(size: float = 80, x: float = 150, y: float = 140) -> Face:
    return place_face(size, 0.1, x, y)


# -- with the built-in models --------------------------------------------------------------------


def test_the_builtin_models_restore_a_real_photograph() -> None:
    data = pytest.importorskip("skimage.data")
    picture = data.astronaut()
    restorer = Restorer()
    stages: list[tuple[str, int, int, float]] = []
    outcome = restorer.restore(picture, progress=lambda *step: stages.append(step))
    assert outcome.model_id == "builtin-restorer" and "not GPEN" in outcome.model_name
    assert any("gpen-bfr-2048" in note for note in outcome.notes)
    assert outcome.detector == restorer.detector_name and outcome.device == restorer.device_name
    centres = [f.centre for f in outcome.faces]
    assert any(190 < x < 260 and 80 < y < 160 for x, y in centres)
    assert len(outcome.patches) == len(outcome.faces)
    result = composite(picture, outcome.patches)
    changed = (result != picture).any(axis=2)
    assert changed.any() and changed.mean() < 0.2
    assert psnr(result, picture, 255) > 30  # a clean photograph stays much as it is
    assert {"detecting", "restoring", "pasting"} <= set(outcome.timings)
    # Progress only goes forward, in known stages, to the end.
    assert {step[0] for step in stages} <= set(STAGES)
    fractions = [step[3] for step in stages]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    # The same picture gives the same bytes.
    again = restorer.restore(picture)
    for a, b in zip(outcome.patches, again.patches, strict=True):
        assert np.array_equal(a.rgb, b.rgb) and np.array_equal(a.mask, b.mask)


def test_the_builtin_restorer_reduces_noise() -> None:
    data = pytest.importorskip("skimage.data")
    clean = data.astronaut().astype(np.float32) / 255
    noise = np.random.default_rng(0).normal(0, 0.08, clean.shape)
    noisy = np.clip(clean + noise, 0, 1).astype(np.float32)
    target = place_face(130, 0.05, 222, 125)
    patch = Restorer().restore(noisy, [target]).patches[0]
    rows = slice(patch.y, patch.y + patch.mask.shape[0])
    columns = slice(patch.x, patch.x + patch.mask.shape[1])
    shown = patch.mask > 0.5
    before = psnr(noisy[rows, columns][shown], clean[rows, columns][shown], 1)
    after = psnr(patch.rgb[shown], clean[rows, columns][shown], 1)
    assert after > before + 2


def test_unloading_and_loading_again() -> None:
    restorer = Restorer()
    restorer.load()
    aligned = RestoreOptions(aligned=True)
    picture = natural_photo(64, 64)
    first = restorer.restore(picture, options=aligned).patches[0].rgb
    restorer.unload()
    assert np.array_equal(restorer.restore(picture, options=aligned).patches[0].rgb, first)


def test_a_gpen_checkpoint_by_its_path(tmp_path: Path, photo: np.ndarray) -> None:
    """A tiny GPEN of random weights: its own crop size, the same result in and out of a file."""
    path = tmp_path / "tiny gpen.pth"
    torch.save(random_state(tiny(32)), path)
    restorer = Restorer(model=path, precision="fp32")
    outcome = restorer.restore(photo, [face()], options=RestoreOptions(return_aligned=True))
    patch = outcome.patches[0]
    assert patch.crop_size == 32 and patch.aligned_input is not None
    assert outcome.model_id == "file" and outcome.model_name == path.name
    from face_restore_worker import load_gpen

    wanted = run_network(load_gpen(path), patch.aligned_input, "cpu")
    free = RestoreOptions(keep_colour=False, return_aligned=True)
    got = restorer.restore(photo, [face()], options=free).patches[0].aligned_output
    assert wanted is not None and got is not None and np.allclose(got, wanted, atol=1e-6)


def test_options_may_name_another_model(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "other.pth"
    torch.save(random_state(tiny(16)), path)
    restorer = Restorer()
    outcome = restorer.restore(photo, [face()], options=RestoreOptions(model=str(path)))
    assert outcome.model_name == "other.pth" and outcome.patches[0].crop_size == 16
    assert restorer.restore(photo, [face()]).model_id == "builtin-restorer"


def test_unknown_names_are_refused_at_once() -> None:
    with pytest.raises(ModelError):
        Restorer(model="gpen-bfr-9999")
    with pytest.raises(ModelError):
        Restorer(model="gpen-bfr-2048")  # known but not installed
    for device in ("toaster", "cuda:x", "cpu:1", "cuda:77"):
        with pytest.raises(DeviceError):
            Restorer(device=device)
    with pytest.raises(DeviceError):
        Restorer(precision="int3")


# -- which faces ---------------------------------------------------------------------------------


def test_no_face_is_a_result() -> None:
    outcome = Restorer().restore(np.full((64, 80, 3), 90, np.uint8))
    assert outcome.patches == [] and outcome.faces == []
    assert any("No face" in note for note in outcome.notes)


def test_a_smallest_picture() -> None:
    assert Restorer().restore(natural_photo(16, 16)).patches is not None


def test_faces_given_are_not_searched(photo: np.ndarray) -> None:
    network = Identity(64)
    restorer = Restorer(network=network)
    assert restorer.restore(photo, []).patches == [] and network.calls == 0
    one = face()
    target = FaceTarget(tuple(one.box), tuple(map(tuple, one.landmarks)), one.score, 0.5)
    outcome = restorer.restore(photo, [one, target])
    assert outcome.detector == "" and network.calls == 2
    assert np.array_equal(outcome.patches[0].rgb, outcome.patches[1].rgb)
    assert [p.strength for p in outcome.patches] == [1.0, 0.5]


def test_strengths(photo: np.ndarray) -> None:
    """A face's own strength comes before the option's; at 0 the network need not run."""
    network = Apply(lambda x: -x, 64)
    own = Face(face().box, 1.0, face().landmarks, strength=0.25)
    none = Face(face().box, 1.0, face().landmarks, strength=0.0)
    options = RestoreOptions(strength=0.75)
    outcome = Restorer(network=network).restore(photo, [own, face(), none], options=options)
    assert [p.strength for p in outcome.patches] == [0.25, 0.75]
    assert len(outcome.faces) == 3 and network.calls == 2


def test_impossible_faces_are_told_and_the_others_restored(photo: np.ndarray) -> None:
    nowhere = face(80, 5000, 5000)
    point = Face(face().box, 1.0, np.full((5, 2), 9.0))
    broken = Face(face().box, 1.0, np.full((5, 2), np.nan))
    outcome = Restorer(network=Identity(64)).restore(photo, [nowhere, point, broken, face()])
    assert len(outcome.patches) == 1 and len(outcome.faces) == 4
    told = [note for note in outcome.notes if "left alone" in note]
    assert len(told) == 3
    assert {note.split()[1] for note in told} == {"1", "2", "3"}


def test_detect_takes_options_and_selection() -> None:
    data = pytest.importorskip("skimage.data")
    picture = data.astronaut()
    restorer = Restorer()
    assert restorer.detect(picture, DetectOptions(only_largest=True))
    selection = np.zeros(picture.shape[:2], np.uint8)
    selection[400:, :100] = 255
    assert restorer.detect(picture, selection=selection) == []
    outcome = restorer.restore(picture, selection=selection)
    assert outcome.patches == []


# -- aligned pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(128, 128), (100, 100), (300, 300), (90, 140), (400, 260)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_an_aligned_picture_goes_straight_through(shape: tuple[int, int], dtype: str) -> None:
    picture = natural_photo(*shape, dtype)
    full = 1 if dtype == "float32" else np.iinfo(dtype).max
    options = RestoreOptions(aligned=True, strength=0.5)
    outcome = Restorer(network=Identity(128)).restore(picture, options=options)
    patch = outcome.patches[0]
    assert (patch.x, patch.y) == (0, 0) and patch.mask.shape == shape
    assert (patch.mask == 1).all() and patch.strength == 0.5
    assert psnr(composite(picture, [patch]), picture, full) > 45
    assert patch.matrix[0, 0] == patch.matrix[1, 1] and patch.matrix[0, 1] == 0


def test_an_aligned_picture_of_the_crops_size_is_not_resampled() -> None:
    picture = natural_photo(128, 128)
    wanted = np.clip(1 - picture / 255, 0, 1)
    options = RestoreOptions(aligned=True, keep_colour=False)
    patch = Restorer(network=Apply(lambda x: -x, 128)).restore(picture, options=options).patches[0]
    assert np.abs(patch.rgb - wanted).max() < 1e-6
    assert np.array_equal(patch.matrix, np.eye(2, 3))


# -- progress and cancelling ---------------------------------------------------------------------


def test_cancelled_before_the_next_face(photo: np.ndarray) -> None:
    network = Identity(64)
    faces = [face(), face(60), face(50)]
    with pytest.raises(Cancelled) as caught:
        Restorer(network=network).restore(photo, faces, cancelled=lambda: network.calls >= 2)
    assert network.calls == 2 and caught.value.code == "cancelled"


def test_progress_counts_faces(photo: np.ndarray) -> None:
    steps: list[tuple[str, int, int, float]] = []
    Restorer(network=Identity(64)).restore(
        photo, [face(), face(60)], progress=lambda *step: steps.append(step)
    )
    assert [s[1:3] for s in steps if s[0] == "restoring"] == [(1, 2), (2, 2)]
    assert [s[3] for s in steps] == sorted(s[3] for s in steps) and steps[-1][3] == 1


# -- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (np.zeros((15, 40, 3), np.uint8), "too-small"),
        (np.zeros((1, 1, 3), np.uint8), "too-small"),
        (np.broadcast_to(np.uint8(0), (30000, 30000, 3)), "too-large"),
        (np.zeros((64, 64, 4), np.uint8), "image-form"),
        (np.zeros((64, 64, 3, 1), np.uint8), "image-form"),
        (np.zeros((64, 64, 3), np.float64), "image-form"),
        (np.zeros((64, 64, 3), np.int16), "image-form"),
        (np.zeros((64,), np.uint8), "image-form"),
        ([[0, 0], [0, 0]], "image-form"),
        (np.full((64, 64, 3), np.nan, np.float32), "not-finite"),
        (np.full((64, 64), np.inf, np.float32), "not-finite"),
        (np.full((64, 64, 3), 100, np.float32), "image-form"),
    ],
)
def test_unusable_pictures_are_refused(picture: Any, code: str) -> None:
    restorer = Restorer(network=Identity(64))
    with pytest.raises(ImageError) as caught:
        restorer.restore(picture, [face()])
    assert caught.value.code == code and caught.value.message


def test_one_bad_value_is_found_and_its_row_told() -> None:
    picture = natural_photo(200, 100, "float32")
    picture[123, 45, 1] = np.nan
    with pytest.raises(ImageError, match="row 123"):
        Restorer(network=Identity(64)).restore(picture, [face()])


def test_views_and_foreign_byte_order(photo: np.ndarray) -> None:
    """Flipped, transposed, read-only, big-endian: the values count, and inputs stay."""
    restorer = Restorer(network=Apply(lambda x: -x, 64))
    plain = natural_photo(220, 220, "uint16")
    wanted = composite(plain, restorer.restore(plain, [face()]).patches)
    flipped = np.ascontiguousarray(plain[::-1, ::-1])[::-1, ::-1]
    swapped = plain.astype(">u2")
    fortran = np.asfortranarray(plain)
    frozen = plain.copy()
    frozen.setflags(write=False)
    for same in (flipped, swapped, fortran, frozen):
        got = composite(same, restorer.restore(same, [face()]).patches)
        assert np.array_equal(got, wanted)
    before = photo.copy()
    restorer.restore(photo, [face()])
    assert np.array_equal(photo, before)


def test_patches_lie_inside_the_picture_and_are_tight(photo: np.ndarray) -> None:
    height, width = photo.shape[:2]
    corners = [(0, 0), (width, 0), (0, height), (width, height), (200, 150)]
    faces = [face(90, x, y) for x, y in corners]
    for patch in Restorer(network=Identity(128)).restore(photo, faces).patches:
        h, w = patch.mask.shape
        assert patch.rgb.shape == (h, w, 3) and patch.rgb.dtype == np.float32
        assert patch.mask.dtype == np.float32 and 0 <= patch.mask.min() <= patch.mask.max() <= 1
        assert patch.x >= 0 and patch.x + w <= width and patch.y >= 0 and patch.y + h <= height
        for edge in (patch.mask[0], patch.mask[-1], patch.mask[:, 0], patch.mask[:, -1]):
            assert edge.any()


def test_aligned_crops_come_back_when_asked(photo: np.ndarray) -> None:
    restorer = Restorer(network=Apply(lambda x: -x, 64))
    assert restorer.restore(photo, [face()]).patches[0].aligned_input is None
    for picture in (photo, photo[..., 0]):
        options = RestoreOptions(return_aligned=True, keep_colour=False)
        patch = restorer.restore(picture, [face()], options=options).patches[0]
        assert patch.aligned_input is not None and patch.aligned_output is not None
        assert patch.aligned_input.shape == patch.aligned_output.shape == (64, 64, 3)
        assert np.allclose(patch.aligned_output, 1 - patch.aligned_input, atol=1e-5)


# -- masks by a parser ---------------------------------------------------------------------------


class Labels(torch.nn.Module):
    """In ParseNet's place: class 1 inside a disc, background elsewhere."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        grid = torch.arange(512.0) - 255.5
        inside = (grid[:, None] ** 2 + grid[None] ** 2) < self.radius**2
        logits = torch.zeros(len(x), 19, 512, 512)
        logits[:, 0] = torch.where(inside, -20.0, 20.0)
        logits[:, 1] = torch.where(inside, 20.0, -20.0)
        return logits, None


def with_parser(radius: float, size: int) -> Restorer:
    restorer = Restorer(network=Identity(size))
    restorer._models._parser = FaceParser(Labels(radius))
    restorer._models._parser_known = True
    return restorer


@pytest.mark.parametrize("size", [256, 1024])
def test_the_parsers_mask_is_used(size: int, photo: np.ndarray) -> None:
    one = place_face(145, 0, 200, 150)  # one pixel of the photograph is two of 512
    mask = with_parser(160, size).restore(photo, [one]).patches[0].mask
    shown = (mask > 0.5).sum()
    assert shown == pytest.approx(np.pi * 80**2, rel=0.03)
    oval = RestoreOptions(mask="oval")
    other = with_parser(160, size).restore(photo, [one], options=oval).patches[0].mask
    assert (other > 0.5).sum() != shown


def test_an_unrecognised_face_gets_an_oval_and_a_note(photo: np.ndarray) -> None:
    outcome = with_parser(20, 256).restore(photo, [face()])
    plain = Restorer(network=Identity(256)).restore(photo, [face()])
    assert any("oval" in note for note in outcome.notes)
    assert np.array_equal(outcome.patches[0].mask, plain.patches[0].mask)


def test_asking_for_the_parser_without_it_is_an_error(photo: np.ndarray) -> None:
    with pytest.raises(ModelError, match="download parsenet"):
        Restorer(network=Identity(64)).restore(
            photo, [face()], options=RestoreOptions(mask="parse")
        )
