"""The schema: what is right goes round unchanged, what is wrong is named, nothing crashes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from face_restore_shared import schema
from face_restore_shared.errors import FaceRestoreError, SchemaError
from face_restore_shared.schema import (
    DetectOptions,
    DetectRequest,
    DetectResult,
    FaceReport,
    FaceTarget,
    ImageSpec,
    PatchSpec,
    RestoreOptions,
    RestoreRequest,
    RestoreResult,
    StatusReply,
)
from hypothesis import given
from hypothesis import strategies as st

coordinates = st.floats(-1e5, 1e5)
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30
)
units = st.floats(0, 1)
images = st.builds(
    ImageSpec,
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
)
regions = st.tuples(
    st.integers(0, 9999), st.integers(0, 9999), st.integers(1, 9999), st.integers(1, 9999)
)
detects = st.builds(
    DetectOptions,
    detector=names,
    threshold=st.none() | units,
    min_face=st.floats(0, 1000),
    max_faces=st.integers(0, 1000),
    rotations=st.booleans(),
    only_largest=st.booleans(),
    region=st.none() | regions,
    previews=st.integers(0, 512),
)
restores = st.builds(
    RestoreOptions,
    model=names,
    strength=units,
    template=st.sampled_from(schema.TEMPLATES),
    keep_colour=st.booleans(),
    mask=st.sampled_from(schema.MASKS),
    mask_softness=st.floats(0, 4),
    aligned=st.booleans(),
    precision=st.sampled_from(schema.PRECISIONS),
    patch_dtype=st.sampled_from(schema.PATCH_DTYPES),
    return_aligned=st.booleans(),
)
boxes = st.tuples(coordinates, coordinates, st.floats(1, 1e4), st.floats(1, 1e4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
landmarks = st.tuples(*[st.tuples(coordinates, coordinates)] * 5)
targets = st.builds(
    FaceTarget, box=boxes, landmarks=landmarks, score=units, strength=st.none() | units
)
patches = st.builds(
    PatchSpec,
    x=st.integers(0, 9999),
    y=st.integers(0, 9999),
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    dtype=st.sampled_from(schema.PATCH_DTYPES),
)
matrices = st.tuples(*[st.tuples(coordinates, coordinates, coordinates)] * 2)
unrestored = st.builds(FaceReport, box=boxes, landmarks=landmarks, score=units)
restored = st.builds(
    FaceReport,
    box=boxes,
    landmarks=landmarks,
    score=units,
    matrix=matrices,
    crop_size=st.integers(1, 2048),
    patch=patches,
    aligned=st.sampled_from([0, 64]),
    strength=units,
    note=st.none() | names,
)
requests = st.one_of(
    st.builds(DetectRequest, image=images, selection=st.booleans(), detect=detects),
    st.builds(
        RestoreRequest,
        image=images,
        selection=st.booleans(),
        detect=detects,
        restore=restores,
        faces=st.none() | st.lists(targets, max_size=4).map(tuple),
    ),
)
results = st.one_of(
    st.builds(DetectResult, faces=st.lists(unrestored, max_size=3).map(tuple), detector=names),
    st.builds(
        RestoreResult,
        faces=st.lists(restored | unrestored, max_size=3).map(tuple),
        model=names,
        model_id=names,
        notes=st.lists(names, max_size=3).map(tuple),
        timings=st.dictionaries(names, st.floats(0, 1e6), max_size=3),
    ),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=20,
)
CLASSES = [
    schema.ImageSpec,
    schema.DetectOptions,
    schema.RestoreOptions,
    schema.FaceTarget,
    schema.DetectRequest,
    schema.RestoreRequest,
    schema.FaceReport,
    schema.PatchSpec,
    schema.DetectResult,
    schema.RestoreResult,
    schema.StatusReply,
    schema.DeviceInfo,
    schema.ModelInfo,
    schema.ModelsReply,
    schema.Hello,
    schema.HelloReply,
    schema.CancelRequest,
    schema.Accepted,
    schema.Progress,
    schema.ErrorReply,
]


@given(requests | results)
def test_round_trip(message: Any) -> None:
    assert type(message).from_wire(message.to_wire()) == message


@given(st.sampled_from(CLASSES), anything)
def test_anything_is_taken_or_refused_by_name(cls: Any, data: Any) -> None:
    try:
        made = cls.from_wire(data)
    except SchemaError as error:
        assert error.message.endswith(".")
        assert error.code in ("bad-request", "too-large")
    else:
        assert cls.from_wire(made.to_wire()) == made


@given(requests, st.data())
def test_a_damaged_field_is_refused_or_still_valid(request_: Any, data: st.DataObject) -> None:
    wire = request_.to_wire()
    part = data.draw(st.sampled_from(["image", "detect"]))
    key = data.draw(st.sampled_from(sorted(wire[part])))
    wire[part][key] = data.draw(anything)
    try:
        made = type(request_).from_wire(wire)
    except SchemaError as error:
        assert part in error.message or "picture" in error.message
    else:
        assert type(request_).from_wire(made.to_wire()) == made


@pytest.mark.parametrize(
    ("cls", "data", "named"),
    [
        (ImageSpec, {"width": 0, "height": 1, "channels": 3, "dtype": "uint8"}, "image.width"),
        (ImageSpec, {"width": 1, "height": 1, "channels": 4, "dtype": "uint8"}, "image.channels"),
        (ImageSpec, {"width": 1, "height": 1, "channels": 3, "dtype": "f8"}, "image.dtype"),
        (ImageSpec, {"width": True, "height": 1, "channels": 3, "dtype": "uint8"}, "image.width"),
        (ImageSpec, {"width": 1}, "height"),
        (DetectOptions, {"threshold": float("nan")}, "detect.threshold"),
        (DetectOptions, {"region": [0, 0, 0, 5]}, "detect.region.width"),
        (DetectOptions, {"treshold": 0.5}, "treshold"),
        (RestoreOptions, {"strength": 1.5}, "restore.strength"),
        (RestoreOptions, {"model": ""}, "restore.model"),
        (RestoreOptions, {"model": "a\0b"}, "restore.model"),
        (RestoreOptions, {"aligned": 1}, "restore.aligned"),
        (FaceTarget, {"box": [5, 0, 4, 1], "landmarks": [[0, 0]] * 5}, "face.box"),
        (FaceTarget, {"box": [0, 0, 4, 1], "landmarks": [[0, 0]] * 4}, "face.landmarks"),
        (FaceTarget, {"box": [0, 0, float("inf"), 1], "landmarks": [[0, 0]] * 5}, "face.box"),
    ],
)
def test_what_is_wrong_is_named(cls: Any, data: dict[str, Any], named: str) -> None:
    with pytest.raises(SchemaError, match=named.replace(".", r"\.")) as caught:
        cls.from_wire(data)
    assert caught.value.code == "bad-request"


def test_a_picture_beyond_the_limit_is_refused() -> None:
    with pytest.raises(SchemaError, match="megapixels") as caught:
        ImageSpec(30_000, 30_000)
    assert caught.value.code == "too-large"
    for width, height in ((schema.MAX_SIDE + 1, 30), (30, 70_000)):  # panoramas of few megapixels
        with pytest.raises(SchemaError, match="65536 pixels a side") as caught:
            ImageSpec(width, height)
        assert caught.value.code == "too-large"


def test_python_callers_are_checked_alike() -> None:
    with pytest.raises(SchemaError, match="strength"):
        RestoreOptions(strength=2)
    with pytest.raises(SchemaError, match="region"):
        DetectOptions(region=(0, 0, -1, 1))


def test_replies_may_say_more_than_this_version_knows() -> None:
    status = {
        "version": "9",
        "protocol": 1,
        "pid": 1,
        "uptime": 1,
        "state": "ready",
        "device": {"kind": "cpu", "new": 1},
        "new": [],
    }
    reply = StatusReply.from_wire(status)
    assert reply.device.kind == "cpu"
    assert (reply.jobs_failed, reply.jobs_cancelled) == (0, 0)  # an older worker's has neither


@given(st.text(), st.text(), st.text())
def test_any_exception_becomes_an_error_reply(code: str, message: str, hint: str) -> None:
    error = FaceRestoreError(message, hint=hint, code=code or None)
    reply = schema.ErrorReply.of(error, "1")
    assert schema.ErrorReply.from_wire(reply.to_wire()) == reply
    assert schema.ErrorReply.of(ValueError("x")).code == "internal"


def test_the_shared_package_needs_the_standard_library_and_msgpack_only() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import face_restore_shared.wire, face_restore_shared.connection\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'face_restore_shared', 'msgpack'}\n"
        "      - {m for m in new if 'cython' in m}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_protocol_page_names_every_field_and_type() -> None:
    page = Path(schema.__file__).with_name("PROTOCOL.md").read_text(encoding="utf-8")
    for cls in CLASSES:
        for field in dataclasses.fields(cls):
            assert f"`{field.name}`" in page or f"| {field.name} |" in page, (cls, field.name)
    for name in (*schema.REQUEST_TYPES, *schema.REPLY_TYPES):
        assert f"| {name} |" in page, name
    for stage in schema.STAGES:
        assert f"`{stage}`" in page, stage
