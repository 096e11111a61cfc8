"""The catalogue that ships, and which file a model's name stands for."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from face_restore_worker.errors import ModelError
from face_restore_worker.models.catalogue import ModelEntry, load_catalogue, parse_catalogue
from face_restore_worker.models.importer import Recognised, content_digest, install
from face_restore_worker.models.store import InstalledModel, ModelStore
from face_restore_worker.models.structure import check_structure, load_structure
from face_restore_worker.network.architecture import GpenArchitecture
from filelock import FileLock
from tiny_models import MOBILE, TINY, catalogue_data, detector_state, gpen_state, make_catalogue


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    builtin = tiny_models.make_builtin(tmp_path / "builtin")
    return ModelStore(tmp_path / "models", catalogue=make_catalogue(), builtin_dir=builtin)


def put(store: ModelStore, name: str, seed: int = 0) -> InstalledModel:
    """Install random weights under a name, as if they had been imported."""
    entry = store.catalogue.get(name)
    found = Recognised(gpen_state(seed=seed), "gpen", "torch", 16, TINY.channels)
    return install(store, entry, found, source="import", origin="/x.pth", digest="0" * 64, size=1)


# -- the catalogue that ships --------------------------------------------------------------------


def test_every_gpen_has_the_published_channels() -> None:
    for entry in load_catalogue():
        if entry.architecture == "gpen":
            narrow, multiplier = (0.5, 1) if entry.size == 256 else (1, 2)
            assert entry.size is not None
            expected = GpenArchitecture.from_parameters(entry.size, multiplier, narrow)
            assert entry.channels == expected.channels
            # A fp32 file of that network has about the catalogue's size.
            if entry.bytes is not None:
                assert 4 * expected.parameters() == pytest.approx(entry.bytes, rel=0.005)


def test_every_detector_and_parser_has_its_structure() -> None:
    sizes = {"retinaface-resnet50": 109497761, MOBILE: 1789735, "parsenet": 85331193}
    for name, size in (sizes | {"bisenet": 53289463}).items():
        entry = load_catalogue().get(name)
        assert entry.bytes == size
        values = sum(torch_size(shape) for shape in load_structure(entry.architecture).values())
        assert 4 * values == pytest.approx(size, rel=0.05)


def torch_size(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def test_structures_are_those_of_facexlib() -> None:
    from face_restore_worker.pipeline.facexlib_nets import build_parsenet, build_retinaface

    networks = {
        "retinaface-resnet50": build_retinaface("resnet50"),
        MOBILE: build_retinaface("mobile0.25"),
        "parsenet": build_parsenet(),
    }
    from facexlib.parsing.bisenet import BiSeNet

    networks["bisenet"] = BiSeNet(num_class=19)
    for name, network in networks.items():
        shapes = {
            key: tuple(value.shape)
            for key, value in network.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        assert shapes == load_structure(name)


def test_gpens_licence_tells_its_history() -> None:
    text = load_catalogue().get("gpen-bfr-2048").licence.text
    assert "academic and non-commercial use only" in text
    assert "March 2026" in text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gpen-bfr-2048.pth", "gpen-bfr-2048"),
        ("GPEN-BFR-2048.pt", "gpen-bfr-2048"),
        ("pytorch_model-2048.pt", "gpen-bfr-2048"),
        ("GPEN-BFR-2048", "gpen-bfr-2048"),
        ("gpen_bfr_2048.onnx", "gpen-bfr-2048-onnx"),
        ("detection_Resnet50_Final.pth", "retinaface-resnet50"),
        ("parsing_parsenet.pth", "parsenet"),
    ],
)
def test_community_names(name: str, wanted: str) -> None:
    assert load_catalogue().get(name).id == wanted


def test_no_alias_stands_for_two_models_of_a_kind() -> None:
    seen: dict[tuple[str, str], ModelEntry] = {}
    for entry in load_catalogue():
        for alias in (entry.id, *entry.aliases):
            key = (entry.kind, alias.casefold())
            assert key not in seen or seen[key] is entry
            seen[key] = entry


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="gpen-bfr-2048") as caught:
        load_catalogue().get("codeformer")
    assert caught.value.code == "model-unknown"


def _break(path: str, value: object) -> dict[str, object]:
    data = copy.deepcopy(catalogue_data())
    spot: object = data
    *way, last = path.split("/")
    for step in way:
        spot = spot[int(step)] if isinstance(spot, list) else spot[step]  # type: ignore[index]
    spot[int(last) if isinstance(spot, list) else last] = value  # type: ignore[index]
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "format is 2"),
        ("models/0/id", "../x", "cannot be an id"),
        ("models/0/kind", "dancer", "kind is 'dancer'"),
        ("models/0/licence", "none", "licence is 'none'"),
        ("models/0/size", "2048", "size is '2048'"),
        ("models/0/name", "", "name must be a text"),
        ("models/0/files", [], "files must be given"),
        ("models/0/files/0/urls/0", "http://models.invalid/x", "is not https"),
        ("models/0/files/0/urls/0", "file:///etc/passwd", "is not https"),
        ("models/0/files/0/sha256", "ABC", "not a SHA-256"),
        ("models/0/files/0/bytes", -1, "bytes is -1"),
        ("models/0/files/0/exact", True, "exact is True"),
        ("models/1/same_as", "nothing", "same_as names nothing"),
        ("models/1/id", "gpen-bfr-2048", "listed twice"),
    ],
)
def test_a_wrong_catalogue_says_what_is_wrong(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_catalogue(_break(path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "licences": 3}'])
def test_a_broken_catalogue_file_is_a_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file = tmp_path / "catalogue.json"
    file.write_text(text)
    monkeypatch.setenv("FACE_RESTORE_CATALOGUE", str(file))
    with pytest.raises(ModelError) as caught:
        load_catalogue()
    assert caught.value.code == "catalogue"
    assert str(file) in caught.value.message


# -- which one is meant --------------------------------------------------------------------------


def test_without_downloads_the_built_in_ones_are_meant(store: ModelStore) -> None:
    restorer = store.resolve_restorer()
    assert (restorer.id, restorer.name) == ("builtin-restorer", "built-in, not GPEN")
    assert restorer.builtin
    assert restorer.architecture == "local-restorer"
    assert "face-restore models download gpen-bfr-2048" in (restorer.note or "")
    assert "models import FILE" in (restorer.note or "")
    assert store.resolve_detector().id == "builtin-detector"
    assert store.resolve_detector().note is None
    assert store.resolve_parser() is None


def test_gpen_is_the_default_once_installed(store: ModelStore) -> None:
    put(store, "gpen-bfr-2048")
    restorer = store.resolve_restorer("auto")
    assert (restorer.id, restorer.name) == ("gpen-bfr-2048", "GPEN-BFR-2048")
    assert restorer.path == store.root / "gpen-bfr-2048.safetensors"
    assert restorer.note is None
    assert restorer.architecture == "gpen"
    assert [row["id"] for row in store.describe() if row["default"]] == [
        "gpen-bfr-2048",
        "builtin-detector",
    ]


def test_a_smaller_gpen_is_not_the_default(store: ModelStore) -> None:
    put(store, "gpen-bfr-512")
    assert store.resolve_restorer().id == "builtin-restorer"
    assert store.resolve_restorer("gpen-bfr-512").id == "gpen-bfr-512"


def test_the_onnx_form_stands_in_for_the_model(store: ModelStore) -> None:
    put(store, "gpen-bfr-2048-onnx")
    assert store.resolve_restorer().id == "gpen-bfr-2048-onnx"
    assert store.resolve_restorer("gpen-bfr-2048.pth").id == "gpen-bfr-2048-onnx"
    put(store, "gpen-bfr-2048")
    assert store.resolve_restorer().id == "gpen-bfr-2048"


def test_the_better_detector_is_meant(store: ModelStore) -> None:
    put(store, MOBILE)
    assert store.resolve_detector().id == MOBILE
    put(store, "retinaface-resnet50")
    assert store.resolve_detector("auto").id == "retinaface-resnet50"
    assert store.resolve_detector(MOBILE).id == MOBILE
    assert store.resolve_detector("builtin-detector").id == "builtin-detector"
    put(store, "parsenet")
    parser = store.resolve_parser()
    assert parser is not None
    assert parser.id == "parsenet"


def test_a_known_model_that_is_not_installed_says_how_to_get_it(store: ModelStore) -> None:
    with pytest.raises(ModelError, match="download gpen-bfr-512") as caught:
        store.resolve_restorer("gpen-bfr-512")
    assert caught.value.code == "model-missing"
    with pytest.raises(ModelError, match="no restorer called"):
        store.resolve_restorer(MOBILE)


def test_a_file_given_by_its_path(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "my own gpen.pth"
    file.write_bytes(tiny_models.pack(gpen_state()))
    for given in (file, str(file)):
        resolved = store.resolve_restorer(given)
        assert (resolved.id, resolved.name) == ("file", "my own gpen.pth")
        assert resolved.path == file
        assert resolved.architecture is None


def test_a_path_into_the_store_is_the_model(store: ModelStore) -> None:
    installed = put(store, "gpen-bfr-2048")
    assert store.resolve_restorer(installed.path).id == "gpen-bfr-2048"
    copy = installed.path.with_name("copy.safetensors")
    copy.write_bytes(installed.path.read_bytes())
    assert store.resolve_restorer(str(copy)).architecture == "gpen"


def test_a_missing_path_is_not_taken_for_a_name(store: ModelStore) -> None:
    """`--model_path weights/gpen-bfr-2048.pth` names a file: another one is never used silently."""
    with pytest.raises(ModelError, match="no model file") as caught:
        store.resolve_restorer("weights/gpen-bfr-2048.pth")
    assert "download gpen-bfr-2048" in caught.value.hint
    put(store, "gpen-bfr-2048")
    with pytest.raises(ModelError) as caught:
        store.resolve_restorer("weights/gpen-bfr-2048.pth")
    assert "`gpen-bfr-2048`" in caught.value.hint


# -- what lies in the folder ---------------------------------------------------------------------


def test_install_verify_remove(store: ModelStore) -> None:
    model = put(store, "gpen-bfr-2048")
    assert [m.id for m in store.installed()] == [
        "gpen-bfr-2048",
        "builtin-restorer",
        "builtin-detector",
    ]
    record = json.loads((store.root / "gpen-bfr-2048.json").read_text())
    assert record["sha256"] == tiny_models.digest(model.path.read_bytes())
    assert record["origin"] == "/x.pth"
    assert store.verify("gpen-bfr-2048") == []
    assert store.path("gpen-bfr-2048") == model.path
    assert set(store.remove("gpen-bfr-2048.pth")) == {
        model.path,
        store.root / "gpen-bfr-2048.json",
    }
    assert [p for p in store.root.iterdir() if not p.name.endswith(".lock")] == []
    with pytest.raises(ModelError, match="not installed"):
        store.verify("gpen-bfr-2048")
    with pytest.raises(ModelError, match="not installed"):
        store.remove("gpen-bfr-2048")


def test_the_installed_file_holds_the_very_tensors(store: ModelStore) -> None:
    from safetensors.torch import load_file

    state = gpen_state(seed=5)
    loaded = load_file(put(store, "gpen-bfr-2048", seed=5).path)
    assert set(loaded) == set(state)
    assert all(bool((loaded[name] == state[name]).all()) for name in state)
    assert content_digest(loaded) == content_digest(state)


@pytest.mark.parametrize("position", [3, 40, -1])
def test_verify_finds_one_flipped_bit(store: ModelStore, position: int) -> None:
    path = put(store, "gpen-bfr-2048").path
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert any("SHA-256" in problem for problem in store.verify("gpen-bfr-2048"))


def test_verify_finds_a_truncated_file_and_a_lost_record(store: ModelStore) -> None:
    path = put(store, "gpen-bfr-2048").path
    path.write_bytes(path.read_bytes()[:-4])
    problems = store.verify("gpen-bfr-2048")
    assert any("were installed" in p for p in problems)
    assert any("damaged" in p for p in problems)
    path.with_suffix(".json").unlink()
    assert any("is missing" in p for p in store.verify("gpen-bfr-2048"))
    assert store.resolve_restorer().id == "builtin-restorer"


def test_a_damaged_record_does_not_hide_other_models(store: ModelStore) -> None:
    put(store, "gpen-bfr-512")
    put(store, "gpen-bfr-2048").path.with_suffix(".json").write_text("{")
    assert next(m.id for m in store.installed()) == "gpen-bfr-512"
    with pytest.raises(ModelError, match="cannot be read"):
        store.resolve_restorer()  # never the built-in one in silence
    assert store.verify("gpen-bfr-2048") != []
    store.remove("gpen-bfr-2048")
    assert store.resolve_restorer().id == "builtin-restorer"


def test_verify_finds_a_changed_built_in_model(store: ModelStore) -> None:
    assert store.verify("builtin-restorer") == []
    path = store.path("builtin-restorer")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert any("SHA-256" in problem for problem in store.verify("builtin-restorer"))
    with pytest.raises(ModelError, match="part of the program"):
        store.remove("builtin-restorer")


def test_removing_one_model_leaves_the_parts_of_another(store: ModelStore) -> None:
    put(store, "gpen-bfr-2048")
    (store.root / ".gpen-bfr-2048~0123.part").write_bytes(b"x")
    (store.root / ".gpen-bfr-2048-onnx~0123.part").write_bytes(b"x")
    store.remove("gpen-bfr-2048")
    assert not (store.root / ".gpen-bfr-2048~0123.part").exists()
    assert (store.root / ".gpen-bfr-2048-onnx~0123.part").exists()


def test_the_store_is_locked_while_it_changes(store: ModelStore) -> None:
    store.make_root()
    with FileLock(store.root / ".store.lock"):
        with pytest.raises(ModelError) as caught, store.locked(timeout=0.1):
            pass
        assert caught.value.code == "model-busy"
    with store.locked(timeout=0.1):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = ModelStore(blocked / "models", catalogue=make_catalogue())
    with pytest.raises(ModelError, match="FACE_RESTORE_MODELS"):
        store.make_root()


def test_the_environment_moves_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACE_RESTORE_MODELS", str(tmp_path / "elsewhere"))
    assert ModelStore().root == tmp_path / "elsewhere"


def test_naming_models_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from face_restore_worker.models import ModelStore\n"
        "import face_restore_worker.cli.models\n"
        "ModelStore('/nowhere').describe()\n"
        "heavy = {'torch', 'numpy', 'cv2', 'requests', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- detectors and parsers -----------------------------------------------------------------------


def test_a_detectors_tensors_get_the_networks_names() -> None:
    state = detector_state(prefix="")
    checked = check_structure(state, MOBILE, Path("x.pth"))
    assert set(checked) == set(state)
    without = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert set(check_structure(without, MOBILE, Path("x.pth"))) == set(checked)
