"""GPEN's architecture, inferred from names and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from face_restore_worker.network.architecture import (
    ArchitectureError,
    GpenArchitecture,
    infer_architecture,
)
from gpen_factory import tiny
from hypothesis import given, settings
from hypothesis import strategies as st


@given(
    levels=st.integers(1, 9),
    m=st.sampled_from([0.5, 1, 1.5, 2, 4]),
    n=st.sampled_from([1 / 64, 0.125, 0.25, 0.3, 0.5, 1, 1.5]),
    style=st.integers(1, 600),
    depth=st.integers(1, 12),
    kernels=st.booleans(),
)
def test_architecture_round_trip(
    levels: int, m: float, n: float, style: int, depth: int, kernels: bool
) -> None:
    size = 4 << levels
    if int(2048 * m * n / (size // 2)) < 1:
        return
    made = GpenArchitecture.from_parameters(size, m, n, style, depth)
    found = infer_architecture(made.shapes() | (made.kernel_shapes() if kernels else {}))
    assert found == made
    assert found.narrow == pytest.approx(n, abs=1 / 512)
    rebuilt = GpenArchitecture.from_parameters(
        size, found.channel_multiplier, found.narrow, style, depth
    )
    assert rebuilt == made
    if size >= 64 and n >= 0.125 and n != 0.3:
        assert found.channel_multiplier == pytest.approx(m)


@pytest.mark.parametrize("name", ["tiny-64", "bfr-256", "bfr-512", "bfr-2048"])
def test_published_shapes_are_inferred(name: str) -> None:
    config = json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())
    shapes = {key: tuple(shape) for key, shape in config["shapes"].items()}
    found = infer_architecture(shapes)
    assert found.size == config["out_size"]
    assert found.channel_multiplier == config["channel_multiplier"]
    assert found.narrow == config["narrow"]
    assert (found.style_dim, found.mapping_depth) == (512, 8)
    assert found.parameters() == config["parameters"]
    assert len(found.shapes()) + len(found.kernel_shapes()) == config["tensors"]


@settings(max_examples=60)
@given(st.data())
def test_a_bent_tensor_is_the_one_named(data: st.DataObject) -> None:
    architecture = tiny(32)
    shapes = architecture.shapes()
    name = data.draw(st.sampled_from(sorted(shapes)))
    shape = list(shapes[name])
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] += data.draw(st.integers(1, 9))
    with pytest.raises(ArchitectureError) as caught:
        infer_architecture(shapes | {name: tuple(shape)})
    assert caught.value.misshapen == [(name, tuple(shape), shapes[name])]
    assert not caught.value.missing and not caught.value.unexpected


@settings(max_examples=60)
@given(st.data())
def test_a_missing_tensor_is_named(data: st.DataObject) -> None:
    shapes = tiny(32).shapes()
    name = data.draw(st.sampled_from(sorted(shapes)))
    del shapes[name]
    with pytest.raises(ArchitectureError) as caught:
        infer_architecture(shapes)
    assert caught.value.missing == [name]
    assert not caught.value.misshapen and not caught.value.unexpected
