"""Taking a user's file in: what is recognised, what is refused, what is left behind."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
from face_restore_worker.errors import CheckpointError, ModelError
from face_restore_worker.models import importer
from face_restore_worker.models.importer import content_digest, import_file, recognise
from face_restore_worker.models.store import ModelStore
from gpen_factory import random_state
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import MOBILE, OTHER, TINY, detector_state, gpen_state, make_catalogue, pack


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    builtin = tiny_models.make_builtin(tmp_path / "builtin")
    return ModelStore(tmp_path / "models", catalogue=make_catalogue(), builtin_dir=builtin)


def write(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pack(content))
    return path


def nothing_but_locks(store: ModelStore) -> bool:
    return not store.root.exists() or all(p.suffix == ".lock" for p in store.root.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        gpen_state(),
        {"g_ema": gpen_state()},
        {"params_ema": gpen_state()},
        {"module." + name: value for name, value in gpen_state().items()},
    ],
    ids=["raw", "g_ema", "params_ema", "module."],
)
def test_a_gpen_is_recognised_and_kept_as_safetensors(
    store: ModelStore, tmp_path: Path, content: Any
) -> None:
    file = write(tmp_path / "weights 😀.pth", content)
    before = file.read_bytes()
    notes: list[str] = []
    model = import_file(store, file, notify=notes.append)
    assert model.id == "gpen-bfr-2048"
    assert model.path == store.root / "gpen-bfr-2048.safetensors"
    loaded = load_file(model.path)
    for name, value in gpen_state().items():
        if name in loaded:  # FIR buffers may be left out: they are constants
            assert loaded[name].dtype == torch.float32
            assert bool((loaded[name] == value).all())
    assert {n for n in gpen_state() if not n.endswith("kernel")} <= set(loaded)
    assert file.read_bytes() == before
    record = model.record
    assert record is not None
    assert record.source == "import"
    assert record.origin == str(file)
    assert record.source_sha256 == tiny_models.digest(before)
    assert record.source_format == "torch"
    assert record.licence_accepted is None
    assert any("Licence: For tests only." in note for note in notes)
    assert store.verify("gpen-bfr-2048") == []
    assert recognise(model.path).size == 16


def test_a_gpen_as_safetensors(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(gpen_state(), file)
    model = import_file(store, str(file))
    assert model.id == "gpen-bfr-2048"
    assert model.record is not None
    assert model.record.source_format == "safetensors"


def test_a_gpen_out_of_onnx(store: ModelStore, tmp_path: Path) -> None:
    from face_restore_worker.network.gpen import build_gpen
    from onnx_exports import export_legacy

    state = random_state(TINY)
    file = tmp_path / "gpen.onnx"
    file.write_bytes(export_legacy(build_gpen(TINY, state), TINY.size).SerializeToString())
    model = import_file(store, file)
    assert model.id == "gpen-bfr-2048-onnx"
    assert model.record is not None
    assert model.record.source_format == "onnx"
    assert set(load_file(model.path)) == set(state)
    assert store.resolve_restorer().id == "gpen-bfr-2048-onnx"
    assert import_file(store, file, name="gpen-bfr-2048").id == "gpen-bfr-2048"


def test_tensors_that_share_memory(store: ModelStore, tmp_path: Path) -> None:
    state = detector_state(prefix="")
    first, second = "ssh1.conv3X3.1.bias", "ssh2.conv3X3.1.bias"
    state[second] = state[first]
    loaded = load_file(import_file(store, write(tmp_path / "x.pth", state)).path)
    assert bool((loaded[first] == state[first]).all())
    assert bool((loaded[second] == state[first]).all())


def test_half_precision_becomes_single(store: ModelStore, tmp_path: Path) -> None:
    halves = {name: value.half() for name, value in gpen_state().items()}
    model = import_file(store, write(tmp_path / "x.pth", halves))
    loaded = load_file(model.path)
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    name = "generator.input.input"
    assert bool((loaded[name] == halves[name].float()).all())


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_detector_is_recognised(store: ModelStore, tmp_path: Path, prefix: str) -> None:
    file = write(tmp_path / "detection.pth", detector_state(prefix=prefix))
    model = import_file(store, file)
    assert model.id == MOBILE
    assert store.resolve_detector().id == MOBILE
    from face_restore_worker.pipeline.facexlib_nets import load_retinaface

    load_retinaface(model.path)  # strict: every tensor has the network's name and shape


def test_a_parser_is_recognised(store: ModelStore, tmp_path: Path) -> None:
    from face_restore_worker.models.structure import load_structure

    state = {name: torch.zeros(shape) for name, shape in load_structure("parsenet").items()}
    assert import_file(store, write(tmp_path / "p.pth", state)).id == "parsenet"
    parser = store.resolve_parser()
    assert parser is not None
    from face_restore_worker.pipeline.facexlib_nets import load_parsenet

    load_parsenet(parser.path)


def test_as_says_which_model_it_has_to_be(store: ModelStore, tmp_path: Path) -> None:
    file = write(tmp_path / "x.pth", gpen_state())
    assert import_file(store, file, name="gpen-bfr-2048.onnx").id == "gpen-bfr-2048-onnx"
    with pytest.raises(CheckpointError, match=r"of size 16 .*, not GPEN-BFR-512"):
        import_file(store, file, name="gpen-bfr-512")
    with pytest.raises(CheckpointError, match="not BUILTIN-DETECTOR"):
        import_file(store, write(tmp_path / "d.pth", detector_state()), name="builtin-detector")
    with pytest.raises(ModelError, match="codeformer"):
        import_file(store, file, name="codeformer")


def test_a_gpen_of_another_size_is_no_known_model(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none of the known models") as caught:
        import_file(store, write(tmp_path / "x.pth", gpen_state(OTHER)))
    assert "path" in caught.value.hint
    assert nothing_but_locks(store)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_pickle_bomb_does_not_go_off(store: ModelStore, tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    for content in (
        pickle.dumps(_Bomb(fired)),
        pickle.dumps({"generator.input.input": _Bomb(fired)}),
        pack({"module.body.stage1.0.0.weight": _Bomb(fired)}),
        pack({"g_ema": gpen_state(), "args": _Bomb(fired)}),
    ):
        with pytest.raises(CheckpointError):
            import_file(store, write(tmp_path / "bomb.pth", content))
    assert not fired.exists()
    assert nothing_but_locks(store)


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


def _changed(state: dict[str, Any], name: str, value: torch.Tensor) -> dict[str, Any]:
    return state | {name: value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", None),
        (b"not a model at all, just some text that somebody renamed", None),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "(?i)html|web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "(?i)lfs"),
        (pack(gpen_state())[:-500], None),
        (pack([1, 2, 3]), None),
        (pack({"epoch": 3}), None),
        (_without(gpen_state(), "generator.conv1.conv.weight"), "generator.conv1.conv.weight"),
        (
            _changed(gpen_state(), "generator.conv1.conv.weight", torch.zeros(1, 8, 9, 3, 3)),
            "generator.conv1.conv.weight",
        ),
        (
            _without(detector_state(), "module.fpn.merge1.0.weight"),
            "fpn.merge1.0.weight is missing",
        ),
        (
            _changed(detector_state(), "module.fpn.merge1.0.weight", torch.zeros(2, 3)),
            "fpn.merge1.0.weight has the shape 2x3 instead of",
        ),
        (_changed(detector_state(), "module.extra", torch.zeros(1)), "extra is unknown"),
        (
            _changed(detector_state(), "module.body.stage1.0.1.num_batches_tracked", torch.ones(3)),
            "num_batches_tracked is not one number",
        ),
        (
            _changed(detector_state(), "module.extra", torch.zeros(3, dtype=torch.int8)),
            "int8",
        ),
        (
            _changed(gpen_state(), "generator.conv1.noise.weight", torch.tensor([torch.nan])),
            "generator.conv1.noise.weight",
        ),
        (
            _changed(detector_state(), "module.ssh1.conv3X3.1.bias", torch.full((32,), torch.inf)),
            "infinite in ssh1.conv3X3.1.bias",
        ),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_stays(
    store: ModelStore, tmp_path: Path, content: Any, message: str | None
) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_file(store, write(tmp_path / "wrong.pth", content))
    assert nothing_but_locks(store)


def test_the_built_in_network_is_not_importable(store: ModelStore) -> None:
    with pytest.raises(CheckpointError, match="cannot be imported"):
        import_file(store, store.path("builtin-restorer"))


def test_no_such_file_and_folders(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        import_file(store, tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        import_file(store, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_path_that_is_no_text(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    file = write(folder / "a.pth", gpen_state())
    with pytest.raises(CheckpointError, match="not valid UTF-8") as caught:
        import_file(store, file)
    assert "Rename" in caught.value.hint
    monkeypatch.chdir(folder)  # the name alone is text
    assert import_file(store, "a.pth").id == "gpen-bfr-2048"
    assert store.verify("gpen-bfr-2048") == []


def test_importing_again_replaces(store: ModelStore, tmp_path: Path) -> None:
    import_file(store, write(tmp_path / "a.pth", gpen_state(seed=1)))
    import_file(store, write(tmp_path / "b.pth", gpen_state(seed=2)))
    loaded = load_file(store.path("gpen-bfr-2048"))
    wanted = gpen_state(seed=2)
    assert content_digest(loaded) == content_digest({name: wanted[name] for name in loaded})
    assert store.verify("gpen-bfr-2048") == []


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_noticed_before_writing(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "x.pth", gpen_state())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**9, 10**9, 1000))
    with pytest.raises(ModelError, match="not enough room") as caught:
        import_file(store, file)
    assert caught.value.code == "disk-full"
    assert nothing_but_locks(store)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_an_error_while_writing_leaves_nothing(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = write(tmp_path / "x.pth", gpen_state())

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(importer.os, "fsync", fail)
    with pytest.raises(ModelError) as caught:
        import_file(store, file)
    assert caught.value.code in ("disk-full", "not-writable")
    assert nothing_but_locks(store)


_LIMITED = """
import resource, signal, sys
sys.dont_write_bytecode = True  # the limit would leave halves of compiled modules
from face_restore_worker.errors import ModelError
from face_restore_worker.models.importer import import_file
from face_restore_worker.models.store import ModelStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ModelStore(sys.argv[1], catalogue=sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    import_file(store, sys.argv[3])
except ModelError as error:
    print(error.code, error.message)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs file size limits")
@pytest.mark.slow
def test_no_room_in_the_middle_of_writing_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    """The system refuses to let the file grow: the same path as a disk that fills up."""
    catalogue = tiny_models.write_catalogue(tmp_path / "c.json", tiny_models.catalogue_data())
    file = write(tmp_path / "x.pth", gpen_state())
    assert file.stat().st_size > 30_000
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(store.root), str(catalogue), str(file)],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("storage ")
    assert "File too large" in done.stdout
    assert nothing_but_locks(store)


def test_what_safetensors_says_of_a_full_disk_is_understood(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library writes for itself and wraps the system's error in a text of this form."""
    import safetensors.torch

    def fail(*args: Any, **options: Any) -> None:
        raise SafetensorError(
            'Error while serializing: I/O error: No space left on device (os error 28) at path "x"'
        )

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(ModelError) as caught:
        import_file(store, write(tmp_path / "x.pth", gpen_state()))
    assert caught.value.code == "disk-full"
    assert nothing_but_locks(store)


def test_an_interrupted_import_leaves_nothing(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "x.pth", gpen_state())

    def interrupt(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelStore, "commit", lambda *args: interrupt(args[2]))
    with pytest.raises(KeyboardInterrupt):
        import_file(store, file)
    assert nothing_but_locks(store)


def test_a_read_only_folder_is_said_to_be_one(tmp_path: Path) -> None:
    """An immutable place even for root: /proc takes no files."""
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    store = ModelStore("/proc/self/models", catalogue=make_catalogue())
    with pytest.raises(ModelError, match="FACE_RESTORE_MODELS") as caught:
        import_file(store, write(tmp_path / "x.pth", gpen_state()))
    assert caught.value.code in ("storage", "not-writable")
