"""facexlib's networks: no network access, strict loading, any torchvision, soft masks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from face_restore_worker.errors import CheckpointError
from face_restore_worker.pipeline.facexlib_nets import (
    build_parsenet,
    build_retinaface,
    load_parsenet,
    load_retinaface,
)
from face_restore_worker.pipeline.parsing import NOT_FACE, FaceParser
from safetensors.torch import save_file
from torch import nn

State = dict[str, torch.Tensor]


def random_state(network: nn.Module, seed: int = 0) -> State:
    """Small random weights of a network on the meta device, its norms harmless but not trivial."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
        elif name.endswith("running_var"):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.dim() > 1:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.rand(tensor.shape, generator=generator) * 0.2 + 0.4
    return state


@pytest.fixture(scope="module")
def light() -> State:
    return random_state(build_retinaface("mobile0.25"))


def plain(build: Any, state: State) -> nn.Module:
    """The network as facexlib runs it: nothing folded, no channels last."""
    network: nn.Module = build
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


@pytest.mark.parametrize("variant", ["mobile0.25", "resnet50"])
def test_folding_changes_nothing_but_rounding(variant: str) -> None:
    state = random_state(build_retinaface(variant))
    batch = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(1)) * 50
    ours = load_retinaface(dict(state))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    with torch.inference_mode():
        expected = plain(build_retinaface(variant), state)(batch)
        got = ours(batch)
    assert [tuple(t.shape) for t in got] == [(1, 252, 4), (1, 252, 2), (1, 252, 10)]
    for a, b in zip(got, expected, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, atol=2e-5 * scale, rtol=1e-4)


def test_parsenet_folds_and_loads() -> None:
    state = random_state(build_parsenet())
    batch = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = load_parsenet(dict(state))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    with torch.inference_mode():
        expected = plain(build_parsenet(), state)(batch)[0]
        got = ours(batch)[0]
    assert got.shape == (1, 19, 64, 64)
    torch.testing.assert_close(got, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("form", ["safetensors", "pth", "prefixed", "nested", "half", "old"])
def test_forms_of_files(form: str, light: State, tmp_path: Path) -> None:
    path = tmp_path / f"weights of {form}.pth"
    state: Any = dict(light)
    if form in ("prefixed", "nested"):
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if form == "nested":
        state = {"epoch": 3, "state_dict": state}
    if form == "half":
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    if form == "old":
        state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    if form == "safetensors":
        save_file(state, path)  # by content, whatever its name
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form != "old")
    batch = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 50
    with torch.inference_mode():
        expected = load_retinaface(dict(light))(batch)
        got = load_retinaface(path)(batch)
    tolerance = 0.05 if form == "half" else 0
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_what_does_not_fit_is_named(light: State, tmp_path: Path) -> None:
    missing = {n: t for n, t in light.items() if n != "fpn.output1.0.weight"}
    with pytest.raises(CheckpointError, match=r"missing \(fpn.output1.0.weight\)"):
        load_retinaface(missing)
    extra = light | {"something.else": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="do not belong to it"):
        load_retinaface(extra)
    wrong = light | {"ClassHead.0.conv1x1.bias": torch.zeros(7)}
    with pytest.raises(CheckpointError, match=r"\(7,\) instead of \(4,\)"):
        load_retinaface(wrong)
    with pytest.raises(CheckpointError, match="not a RetinaFace"):
        load_retinaface(light, variant="resnet50")
    with pytest.raises(CheckpointError, match="not a ParseNet"):
        load_parsenet(light)
    with pytest.raises(CheckpointError, match="no model file"):
        load_retinaface(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"resnet50 or mobile0\.25"):
        build_retinaface("resnet18")


class _Bomb:
    """Runs code when it is unpickled the careless way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_unreadable_files_run_no_code(light: State, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(light, whole)
    mark = tmp_path / "exploded"
    contents = {
        "empty": b"",
        "truncated": whole.read_bytes()[:100_000],
        "page": b"<!DOCTYPE html><html>not found</html>",
        "pickle": pickle.dumps(_Bomb(mark)),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_retinaface(path)
    bomb = tmp_path / "bomb.pth"
    torch.save({"weights": _Bomb(mark)}, bomb)
    with pytest.raises(CheckpointError, match="bomb"):
        load_retinaface(bomb)
    assert not mark.exists()
    numbers = tmp_path / "list.pth"
    torch.save([1, 2], numbers)
    with pytest.raises(CheckpointError, match="no tensors by name"):
        load_retinaface(numbers)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


NO_SOCKETS = """
import socket
def refused(*args, **kwargs):
    raise AssertionError('the network was touched')
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refused
socket.create_connection = socket.getaddrinfo = refused
"""


@pytest.mark.slow
def test_building_touches_no_network_and_needs_little() -> None:
    """Nothing is fetched, and the optional parts of facexlib's dependencies are not imported."""
    code = NO_SOCKETS + (
        "import sys\n"
        "for name in ('numba', 'filterpy', 'scipy', 'matplotlib', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
        "from face_restore_worker.pipeline.facexlib_nets import build_parsenet, build_retinaface\n"
        "build_retinaface('resnet50'); build_retinaface('mobile0.25'); build_parsenet()\n"
        "print('built')\n"
    )
    result = python(code)
    assert result.stdout == "built\n", result.stderr


def test_importing_the_module_is_cheap() -> None:
    code = (
        "import sys\n"
        "import face_restore_worker.pipeline.detect, face_restore_worker.pipeline.parsing\n"
        "import face_restore_worker.pipeline.facexlib_nets\n"
        "print([n for n in ('torch', 'torchvision', 'facexlib', 'cv2') if n in sys.modules])\n"
    )
    result = python(code)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.slow
def test_missing_operators_are_declared_only_where_they_are_missing() -> None:
    """A torchvision that imports by itself is left alone; one that does not is helped."""
    code = (
        "import torch\n"
        "try:\n"
        "    import torchvision\n"
        "    fits = True\n"
        "except RuntimeError:\n"
        "    fits = False\n"
        "    import sys\n"
        "    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:\n"
        "        del sys.modules[name]\n"
        "from face_restore_worker.pipeline import facexlib_nets\n"
        "facexlib_nets.import_torchvision()\n"
        "facexlib_nets.import_torchvision()\n"
        "import torchvision.models\n"
        "print(len(facexlib_nets._libraries) == (0 if fits else 2))\n"
    )
    result = python(code)
    assert result.stdout == "True\n", result.stderr


@pytest.mark.slow
def test_a_fitting_torchvision_is_not_touched() -> None:
    """The operators exist before the import: nothing may be declared a second time."""
    code = (
        "import torch\n"
        "own = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for name in ('nms', 'qnms'):\n"
        "    if not hasattr(torch.ops.torchvision, name):\n"
        "        own.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "from face_restore_worker.pipeline import facexlib_nets\n"
        "facexlib_nets.build_parsenet()\n"
        "print(len(facexlib_nets._libraries))\n"
    )
    result = python(code)
    assert result.stdout == "0\n", result.stderr


# --- parsing ------------------------------------------------------------------------------------


class _Classes(nn.Module):
    """Class 1 (skin) where red is bright, 17 (neck) elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(batch.clone())
        logits = torch.full((len(batch), 19, *batch.shape[2:]), -20.0)
        logits[:, 1] = batch[:, 0] * 10
        logits[:, 17] = -batch[:, 0] * 10
        return logits, batch


@pytest.mark.parametrize("side", [512, 64, 256, 2048])
def test_parser_marks_the_face(side: int) -> None:
    network = _Classes()
    crop = np.zeros((side, side, 3), np.float32)
    crop[side // 4 : side * 3 // 4, side // 8 : side // 2, 0] = 1
    mask = FaceParser(network)(crop)
    assert network.seen[0].shape == (1, 3, 512, 512)
    assert float(network.seen[0].min()) == -1
    assert float(network.seen[0].max()) == pytest.approx(1, abs=0.01)
    assert mask.shape == (side, side)
    assert mask.dtype == np.float32
    assert mask.min() >= 0
    assert mask.max() <= 1
    inside = crop[..., 0] > 0
    assert mask[inside].mean() > 0.95
    assert mask[~inside].mean() < 0.05
    ys, xs = np.nonzero(mask > 0.5)  # not shifted by the change of size
    assert abs(xs.mean() + 0.5 - side * 5 / 16) < 0.004 * side
    assert abs(ys.mean() + 0.5 - side / 2) < 0.004 * side


@pytest.mark.parametrize("label", range(19))
def test_parser_keeps_the_classes_of_a_face(label: int) -> None:
    class Only(nn.Module):
        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.zeros(len(batch), 19, *batch.shape[2:])
            logits[:, label] = 30
            return logits, batch

    mask = FaceParser(Only())(np.zeros((512, 512, 3), np.float32))
    expected = 0.0 if label in NOT_FACE else 1.0
    np.testing.assert_allclose(mask, expected, atol=1e-5)
    assert set(NOT_FACE) == {0, 14, 16, 17, 18}


@pytest.mark.slow
def test_parser_with_facexlibs_network() -> None:
    state = random_state(build_parsenet())
    crop = np.random.default_rng(0).random((128, 128, 3), np.float32)
    crop[0, 0] = np.nan
    parser = FaceParser(load_parsenet(state))
    mask = parser(crop)
    assert mask.shape == (128, 128)
    assert np.isfinite(mask).all()
    np.testing.assert_array_equal(parser(crop), mask)
    with pytest.raises(ValueError, match=r"\(S, S, 3\)"):
        parser(crop[:100])
