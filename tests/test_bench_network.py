"""Variants take turns, in processes of their own, and what cannot run is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from face_restore_shared.errors import FaceRestoreError
from face_restore_worker.bench import variants
from face_restore_worker.bench.children import Child, ChildFailed
from face_restore_worker.bench.network import NetworkBench, Row, needed, plan
from face_restore_worker.bench.variants import Variant, own, peers
from face_restore_worker.bench.weights import Weights, random_state
from face_restore_worker.checkpoints.gpen import write_gpen_safetensors
from face_restore_worker.network.architecture import GpenArchitecture


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    architecture = GpenArchitecture.from_parameters(32, 2, 1 / 32, 16, 2)
    write_gpen_safetensors(random_state(architecture), path)
    return Weights(path, "tiny", 32)


@pytest.mark.slow
def test_variants_take_turns_and_agree(tiny: Weights, tmp_path: Path) -> None:
    told: list[str] = []
    chosen, missing = variants.choose(["fp32"], ["eager"], "cpu")
    assert missing == []
    bench = NetworkBench(tiny, "cpu", 1, 2, tmp_path, told.append)
    rows, others = bench.run(chosen)
    ours, eager = rows
    assert [row.variant.key for row in rows] == ["fp32", "eager"]
    assert 0 <= others <= 1
    assert ours.error is not None and 0 < ours.error < 2e-6 and eager.error is None
    turns = [text.rpartition(": ")[2] for text in told if text.startswith("Round")]
    assert turns == [ours.variant.label, eager.variant.label] * 2
    for row in rows:
        assert row.why == "" and len(row.seconds) == 2 and min(row.seconds) > 0
        assert row.first > 0 and row.load > 0 and row.since_start > row.load
        assert 0.1 < row.peak_first <= row.peak < 4  # torch alone takes more than 0.1 GB
        assert row.as_json()["median"] == sum(row.seconds) / 2
    ratio = eager.ratio_to(ours)
    assert ratio is not None
    assert ratio == pytest.approx(sum(eager.seconds) / sum(ours.seconds))


@pytest.mark.slow
def test_a_variant_that_fails_is_said_and_does_not_stop_the_others(
    tiny: Weights, tmp_path: Path
) -> None:
    broken = Variant("onnxruntime", "broken", onnx="authors")
    told: list[str] = []
    bench = NetworkBench(tiny, "cpu", 1, 1, tmp_path, told.append)
    # As after an export that failed: nothing to read for this variant.
    bench._export = lambda form: None  # type: ignore[method-assign]
    rows, _ = bench.run([own("fp32"), broken])
    assert rows[0].why == "" and len(rows[0].seconds) == 1
    assert "could not be exported" in rows[1].why
    assert rows[1].as_json()["failed"] == rows[1].why
    assert any("broken" in text and "exported" in text for text in told)


@pytest.mark.slow
def test_what_ended_a_process_is_said(tmp_path: Path) -> None:
    job = {
        "key": "fp32",
        "weights": str(tmp_path / "none.safetensors"),
        "onnx": "",
        "device": "cpu",
        "threads": 1,
        "size": 32,
    }
    with (
        Child(job, tmp_path / "a.log") as child,
        pytest.raises(ChildFailed, match=r"none\.safetensors"),
    ):
        child.ready()
    with Child(job, tmp_path / "c.log") as child:
        child._process.kill()
        with pytest.raises(ChildFailed, match="lack of memory"):
            child.ready()


def test_batches_fit_into_memory_beside_our_own() -> None:
    chosen = [own("fp32"), own("bf16")]
    for name in ("onnxruntime", "openvino", "eager", "compile"):
        chosen += peers(name, "cpu")
    mine, batches = plan(chosen, 200, 2048)
    assert [v.key for v in mine] == ["fp32", "bf16"] and len(batches) == 1
    mine, batches = plan(chosen, 24, 2048)
    assert [v.key for v in mine] == ["fp32", "bf16"] and len(batches) > 1
    for batch in batches:
        assert needed([*mine, *batch], 2048) <= 24
    together = [v.key for batch in batches for v in batch]
    assert together == [v.key for v in chosen[2:]]
    # Where nothing fits, each is tried by itself; a small network always fits.
    assert [len(batch) for batch in plan(chosen, 1, 2048)[1]] == [1] * 5
    assert len(plan(chosen, 24, 256)[1]) == 1
    assert plan([own("fp32")], 24, 2048)[1] == [[]]
    # Only one computes at a time: what others keep counts, and the largest peak above that.
    first, second = Variant("a", "a", peak=5.0, kept=1.0), Variant("b", "b", peak=3.0, kept=2.0)
    assert needed([first, second], 2048) == pytest.approx(2 * 0.3 + 3 + 4)


def test_ratios_are_of_batches_that_were_shared() -> None:
    ours, peer = Row(own("fp32")), Row(peers("eager", "cpu")[0])
    assert peer.ratio_to(ours) is None
    ours.batches = {0: [1.0, 1.0, 1.0], 1: [2.0, 2.0, 9.0]}  # the machine was slower then
    peer.batches = {1: [8.0, 8.0, 8.0]}
    assert peer.ratio_to(ours) == 4.0
    assert ours.ratio_to(ours) == 1.0


def test_what_is_not_installed_is_named_with_a_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(variants.util, "find_spec", lambda name: None)
    monkeypatch.setattr(variants.shutil, "which", lambda name: None)
    chosen, missing = variants.choose(["fp32"], ["onnxruntime", "openvino", "compile"], "cpu")
    assert [v.key for v in chosen] == ["fp32"]
    assert [gap.label.partition(",")[0] for gap in missing] == [
        *("ONNX Runtime", "OpenVINO", "OpenVINO", "torch.compile of the reference")
    ]
    assert missing[0].why == "onnxruntime and onnxscript are not installed"
    assert missing[0].mend == "pip install onnxruntime onnxscript"
    assert "compiler" in missing[3].why
    with pytest.raises(FaceRestoreError, match="tensorrt"):
        variants.choose(["fp32"], ["tensorrt"], "cpu")
