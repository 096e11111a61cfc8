"""Model files: what loads, what is refused, and what is said about it."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from face_restore_worker import load_gpen
from face_restore_worker.checkpoints.gpen import read_gpen_state, write_gpen_safetensors
from face_restore_worker.errors import CheckpointError
from gpen_factory import faces, random_state, refused, tiny, with_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

TINY = tiny(16)
STATE = random_state(TINY)
FULL = with_kernels(STATE, TINY)


def loads(path: Path, wanted: dict[str, Tensor] = STATE) -> None:
    """Check that the file gives exactly the wanted tensors."""
    state, architecture = read_gpen_state(path)
    assert architecture == TINY
    assert list(state) == list(TINY.shapes())
    for name, value in state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted[name]), name


# --- what loads ------------------------------------------------------------------------------

NESTINGS: dict[str, Callable[[dict], Any]] = {
    "raw": lambda s: s,
    "ordered": OrderedDict,
    "g_ema": lambda s: {"g": {}, "d": {}, "g_ema": s},
    "params_ema": lambda s: {"params_ema": s, "params": {}},
    "params": lambda s: {"params": s},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "twice": lambda s: {"state_dict": {"params_ema": s}},
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "g_ema module": lambda s: {"g_ema": {f"module.{k}": v for k, v in s.items()}},
    "parameters": lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_torch_files(tmp_path: Path, nesting: str, legacy: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(NESTINGS[nesting](FULL), path, _use_new_zipfile_serialization=not legacy)
    loads(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_newer_pickle_protocols_are_named(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(FULL, path, pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
    refused(path, "format", "protocol 4")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_types_become_fp32(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    small = {name: value.to(dtype) for name, value in FULL.items()}
    save_file(small, path) if suffix == ".safetensors" else torch.save(small, path)
    loads(path, {name: value.float() for name, value in small.items()})


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    first, second = tmp_path / "model.pth", tmp_path / "model.safetensors"
    save_file(STATE, first)
    torch.save(STATE, second)
    loads(first)
    loads(second)


def test_odd_file_names(tmp_path: Path) -> None:
    path = tmp_path / "my face \N{GRINNING FACE}\nmodel.pth"
    torch.save(STATE, path)
    loads(path)


def test_load_gpen_takes_files_and_state_dicts_alike(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"g_ema": FULL}, path)
    picture = faces(TINY)
    wanted = load_gpen(STATE)(picture)
    for source in (path, str(path), FULL, {"params": FULL}):
        assert torch.equal(load_gpen(source)(picture), wanted)


def test_written_safetensors_come_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"older")
    write_gpen_safetensors(STATE, path)
    loads(path)
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"older")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_gpen_safetensors(STATE, path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


# --- files that are no models ----------------------------------------------------------------

NO_MODELS = {
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 285\n",
    "html": b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>",
    "empty": b"",
    "format": b"just some text that is longer than a header",
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
@pytest.mark.parametrize("code", NO_MODELS)
def test_files_that_are_no_models(tmp_path: Path, code: str, suffix: str) -> None:
    path = tmp_path / f"GPEN-BFR-2048{suffix}"
    path.write_bytes(NO_MODELS[code])
    refused(path, code)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG picture"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip"),
        (b'{"error": "not found"}', "JSON"),
    ],
)
def test_recognisable_wrong_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused(path, "format", words)


def test_zeros_are_a_broken_download(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(bytes(10_000))
    refused(path, "truncated", "zeros")


def test_missing_folder_and_null_byte(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.pth", "missing")
    refused(tmp_path, "folder")
    refused(tmp_path / "a\0b", "unreadable")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "format", "regular")


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, container: str, kept: float) -> None:
    path = tmp_path / "model"
    if container == "safetensors":
        save_file(FULL, path)
    else:
        torch.save(FULL, path, _use_new_zipfile_serialization=container == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refused(path, "truncated", "truncated")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), container=st.sampled_from(["zip", "legacy", "safetensors"]))
def test_any_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, container: str
) -> None:
    """Whatever bytes change: a checkpoint error, or tensors of the right shapes, all finite."""
    path = tmp_path_factory.getbasetemp() / f"damaged-{container}"
    buffer = io.BytesIO()
    if container == "safetensors":
        save_file(FULL, path)
        buffer.write(path.read_bytes())
    else:
        torch.save(FULL, buffer, _use_new_zipfile_serialization=container == "zip")
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers lie at the ends; damage between them changes only values.
        place = data.draw(
            st.one_of(
                st.integers(0, 6000),
                st.integers(len(content) - 6000, len(content) - 1),
                st.integers(0, len(content) - 1),
            )
        )
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        state, architecture = read_gpen_state(path)
    except CheckpointError as error:
        assert error.hint and str(path) in error.message
    else:
        assert {k: tuple(v.shape) for k, v in state.items()} == architecture.shapes()
        assert all(bool(torch.isfinite(value).all()) for value in state.values())


# --- other networks, missing tensors ---------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["stylegan_decoder.conv1.weight", "conv_body_first.weight"], "GFPGAN"),
        (["position_emb", "ft_layers.0.norm1.weight", "quantize.embedding.weight"], "CodeFormer"),
        (["BboxHead.0.weight", "ClassHead.0.weight", "LandmarkHead.0.weight"], "RetinaFace"),
        (["module.BboxHead.0.weight", "module.ClassHead.0.w", "module.LandmarkHead.0.w"], "Retina"),
        (["something.else"], "something.else"),
    ],
)
def test_another_network_is_named(tmp_path: Path, names: list[str], words: str) -> None:
    path = tmp_path / "gpen.pth"
    torch.save({name: torch.zeros(2, 2) for name in names}, path)
    refused(path, "not-gpen", "not a GPEN checkpoint", words)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {"a": torch.zeros(1)}}, torch.zeros(3)])
def test_no_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "gpen.pth"
    torch.save(content, path)
    refused(path, "not-gpen")


def test_missing_misshapen_and_unexpected_tensors_are_listed() -> None:
    state = dict(FULL)
    for i in range(6):
        del state[f"generator.convs.{i % 4}.{'noise.weight' if i < 4 else 'activate.bias'}"]
    state["ecd0.0.1.bias"] = torch.zeros(99)
    state["generator.noises.noise_0"] = torch.zeros(1)
    error = refused(state, "tensors", "6 missing", "and 2 more", "generator.convs.0.noise.weight")
    assert "1 misshapen (ecd0.0.1.bias 99 instead of 8)" in error.message
    assert "1 unexpected (generator.noises.noise_0)" in error.message


def test_another_fir_filter_is_refused() -> None:
    wrong = FULL | {"ecd1.0.0.kernel": torch.ones(4, 4) / 16}
    refused(wrong, "tensors", "ecd1.0.0.kernel")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["ecd0.0.0.weight", "generator.to_rgbs.0.bias"])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    bad = STATE[name].clone()
    bad.view(-1)[-1] = value
    refused(STATE | {name: bad}, "not-finite", name)


def test_fp64_beyond_fp32_is_refused() -> None:
    bad = STATE["ecd0.0.0.weight"].double() * 1e300
    refused(STATE | {"ecd0.0.0.weight": bad}, "not-finite", "ecd0.0.0.weight")


def test_integers_are_refused() -> None:
    refused(STATE | {"ecd0.0.1.bias": torch.zeros(8, dtype=torch.int64)}, "tensors", "int64")
