"""What the worker answers with.

Replies are read leniently: a field this version does not know is skipped, so that a worker may
say more within one protocol version; a field it does know must be right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from face_restore_shared import fields as check
from face_restore_shared.options import (
    DTYPE_SIZES,
    MAX_FACES,
    MAX_SIDE,
    PATCH_DTYPES,
    Box,
    Landmarks,
    face_box,
    face_landmarks,
    field_names,
)

STATES = ("starting", "loading", "ready", "busy", "stopping")
MODEL_KINDS = ("restorer", "detector", "parser")
MAX_CROP = 8192
MAX_BYTES = 1 << 53


@dataclass(frozen=True)
class PatchSpec:
    """Where a patch lies in the photograph and how its two buffers are encoded.

    x, y: the photograph's pixel under the patch's first one. dtype: of rgb (height, width, 3) and
    mask (height, width); float32 in [0, 1], uint16 or uint8 over their full range.
    """

    x: int
    y: int
    width: int
    height: int
    dtype: str

    def __post_init__(self) -> None:
        check.integer("patch.x", self.x, 0, MAX_SIDE)
        check.integer("patch.y", self.y, 0, MAX_SIDE)
        check.integer("patch.width", self.width, 1, MAX_SIDE)
        check.integer("patch.height", self.height, 1, MAX_SIDE)
        check.choice("patch.dtype", self.dtype, PATCH_DTYPES)

    @property
    def buffers(self) -> list[int]:
        """Bytes of rgb and mask."""
        pixels = self.width * self.height * DTYPE_SIZES[self.dtype]
        return [3 * pixels, pixels]

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {name: getattr(self, name) for name in field_names(PatchSpec)}

    @classmethod
    def from_wire(cls, data: object) -> PatchSpec:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("patch", data, field_names(cls), strict=False)
        check.need("patch", values, *field_names(cls))
        return cls(**values)


@dataclass(frozen=True)
class FaceReport:
    """One face found.

    box, landmarks, score, strength: as in FaceTarget; strength is the one that was used.
    matrix: 2 x 3, photograph to aligned crop, pixel-centre on both sides; None where not aligned.
    crop_size: side of the aligned crop, 0 where there was none.
    patch: None for a face that was found but not restored.
    aligned: side in pixels of the aligned crops before and after, which follow the patch's
        buffers as (side, side, 3) of the patch's dtype; 0 when not sent.
    note: one sentence for the user when something went differently for this face.
    """

    box: Box
    landmarks: Landmarks
    score: float
    matrix: tuple[tuple[float, ...], ...] | None = None
    crop_size: int = 0
    patch: PatchSpec | None = None
    aligned: int = 0
    strength: float | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "box": face_box("face.box", self.box),
            "landmarks": face_landmarks("face.landmarks", self.landmarks),
            "score": check.number("face.score", self.score, 0, 1),
            "matrix": check.optional("face.matrix", self.matrix, _matrix),
            "crop_size": check.integer("face.crop_size", self.crop_size, 0, MAX_CROP),
            "aligned": check.integer("face.aligned", self.aligned, 0, MAX_CROP),
            "strength": check.optional("face.strength", self.strength, check.number, 0, 1),
            "note": check.optional("face.note", self.note, check.text),
        }
        if self.patch is None and self.aligned:
            raise check.fail("face.aligned", "0 without a patch", self.aligned)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def buffers(self) -> list[int]:
        """Bytes of this face's buffers: rgb, mask, aligned input, aligned output."""
        if self.patch is None:
            return []
        crop = self.aligned * self.aligned * 3 * DTYPE_SIZES[self.patch.dtype]
        return self.patch.buffers + ([crop, crop] if self.aligned else [])

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {
            "box": list(self.box),
            "landmarks": [list(p) for p in self.landmarks],
            "score": self.score,
            "matrix": None if self.matrix is None else [list(row) for row in self.matrix],
            "crop_size": self.crop_size,
            "patch": None if self.patch is None else self.patch.to_wire(),
            "aligned": self.aligned,
            "strength": self.strength,
            "note": self.note,
        }

    @classmethod
    def from_wire(cls, data: object) -> FaceReport:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("face", data, field_names(cls), strict=False)
        check.need("face", values, "box", "landmarks", "score")
        if values.get("patch") is not None:
            values["patch"] = PatchSpec.from_wire(values["patch"])
        return cls(**values)


def _matrix(name: str, value: object) -> tuple[tuple[float, ...], ...]:
    rows = check.sequence(name, value, 2, 2)
    return tuple(
        tuple(
            check.number(f"{name}[{i}][{j}]", v, -1e9, 1e9)
            for j, v in enumerate(check.sequence(f"{name}[{i}]", row, 3, 3))
        )
        for i, row in enumerate(rows)
    )


def _reports(data: object) -> tuple[FaceReport, ...]:
    items = check.sequence("faces", data, 0, MAX_FACES)
    return tuple(FaceReport.from_wire(item) for item in items)


@dataclass(frozen=True)
class DetectResult:
    """Faces found. previews: for each face width and height of its (height, width, 3) uint8
    preview, one buffer each in this order; empty when none were asked for. notes: for the user."""

    faces: tuple[FaceReport, ...] = ()
    detector: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    previews: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check.text("detector", self.detector)
        object.__setattr__(self, "notes", tuple(check.texts("notes", self.notes)))
        object.__setattr__(self, "timings", check.seconds("timings", self.timings))
        object.__setattr__(self, "previews", _previews(self.previews))
        if self.previews and len(self.previews) != len(self.faces):
            raise check.fail("previews", "one for each face", len(self.previews))

    @property
    def buffers(self) -> list[int]:
        """Bytes of each buffer that follows the header."""
        return [width * height * 3 for width, height in self.previews]

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {
            "faces": [face.to_wire() for face in self.faces],
            "detector": self.detector,
            "timings": dict(self.timings),
            "previews": [list(size) for size in self.previews],
            "notes": list(self.notes),
        }

    @classmethod
    def from_wire(cls, data: object) -> DetectResult:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("A detect result", data, field_names(cls), strict=False)
        check.need("A detect result", values, "faces")
        values["faces"] = _reports(values["faces"])
        return cls(**values)


def _previews(value: object) -> tuple[tuple[int, int], ...]:
    sizes = []
    for i, item in enumerate(check.sequence("previews", value, 0, MAX_FACES)):
        width, height = check.sequence(f"previews[{i}]", item, 2, 2)
        sizes.append(
            (
                check.integer(f"previews[{i}].width", width, 1, 512),
                check.integer(f"previews[{i}].height", height, 1, 512),
            )
        )
    return tuple(sizes)


@dataclass(frozen=True)
class RestoreResult:
    """A restored picture: patches first, in the order to paste them, then faces left alone.

    model: the name to show ("GPEN-BFR-2048", or "built-in, not GPEN"). notes: for the user.
    """

    faces: tuple[FaceReport, ...] = ()
    model: str = ""
    model_id: str = ""
    detector: str = ""
    device: str = ""
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("model", "model_id", "detector", "device"):
            check.text(name, getattr(self, name))
        object.__setattr__(self, "notes", tuple(check.texts("notes", self.notes)))
        object.__setattr__(self, "timings", check.seconds("timings", self.timings))

    @property
    def buffers(self) -> list[int]:
        """Bytes of each buffer that follows the header, face by face."""
        return [size for face in self.faces for size in face.buffers]

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {
            "faces": [face.to_wire() for face in self.faces],
            "model": self.model,
            "model_id": self.model_id,
            "detector": self.detector,
            "device": self.device,
            "notes": list(self.notes),
            "timings": dict(self.timings),
        }

    @classmethod
    def from_wire(cls, data: object) -> RestoreResult:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("A restore result", data, field_names(cls), strict=False)
        check.need("A restore result", values, "faces")
        values["faces"] = _reports(values["faces"])
        return cls(**values)


@dataclass(frozen=True)
class DeviceInfo:
    """Where the models run. memory_*: bytes, None where unknown. id: such as "cuda:1", or ""."""

    kind: str = ""
    name: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    id: str = ""

    def __post_init__(self) -> None:
        for name in ("kind", "name", "id"):
            check.text(f"device.{name}", getattr(self, name))
        for name in ("memory_total", "memory_free"):
            check.optional(f"device.{name}", getattr(self, name), check.integer, 0, MAX_BYTES)

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {name: getattr(self, name) for name in field_names(DeviceInfo)}

    @classmethod
    def from_wire(cls, data: object) -> DeviceInfo:
        """Checked from a map; raises SchemaError."""
        return cls(**check.fields_of("device", data, field_names(cls), strict=False))


@dataclass(frozen=True)
class StatusReply:
    """How the worker is.

    uptime: seconds. queue: jobs waiting, without the one running. rss: bytes of memory in use.
    jobs_*: ended since it started; cancelled also when the client went away.
    idle_unload: seconds without work after which models leave memory, None when they stay.
    problem: why no job can run at present, None when all is well. log: path of the log file.
    models_dir: the folder it takes models from, "" where it does not say.
    """

    version: str
    protocol: int
    pid: int
    uptime: float
    device: DeviceInfo
    state: str
    models_loaded: tuple[str, ...] = ()
    queue: int = 0
    jobs_done: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    rss: int = 0
    idle_unload: float | None = None
    problem: str | None = None
    log: str = ""
    models_dir: str = ""

    def __post_init__(self) -> None:
        check.text("version", self.version, 100)
        check.integer("protocol", self.protocol, 0, 1_000_000)
        check.integer("pid", self.pid, 1, MAX_BYTES)
        object.__setattr__(self, "uptime", check.number("uptime", self.uptime, 0, 1e12))
        check.choice("state", self.state, STATES)
        loaded = tuple(check.texts("models_loaded", self.models_loaded))
        object.__setattr__(self, "models_loaded", loaded)
        for name in ("queue", "jobs_done", "jobs_failed", "jobs_cancelled", "rss"):
            check.integer(name, getattr(self, name), 0, MAX_BYTES)
        idle = check.optional("idle_unload", self.idle_unload, check.number, 0, 1e12)
        object.__setattr__(self, "idle_unload", idle)
        check.optional("problem", self.problem, check.text)
        check.text("log", self.log)
        check.text("models_dir", self.models_dir)

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        values = {name: getattr(self, name) for name in field_names(StatusReply)}
        values["device"] = self.device.to_wire()
        values["models_loaded"] = list(self.models_loaded)
        return values

    @classmethod
    def from_wire(cls, data: object) -> StatusReply:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("A status reply", data, field_names(cls), strict=False)
        check.need(
            "A status reply", values, "version", "protocol", "pid", "uptime", "device", "state"
        )
        values["device"] = DeviceInfo.from_wire(values["device"])
        return cls(**values)


@dataclass(frozen=True)
class ModelInfo:
    """A model of the catalogue. size: bytes, None where unknown. default: used for "auto"."""

    id: str
    name: str
    kind: str
    installed: bool = False
    builtin: bool = False
    licence: str = ""
    size: int | None = None
    purpose: str = ""
    default: bool = False

    def __post_init__(self) -> None:
        check.name_text("model.id", self.id)
        check.choice("model.kind", self.kind, MODEL_KINDS)
        for name in ("name", "licence", "purpose"):
            check.text(f"model.{name}", getattr(self, name))
        for name in ("installed", "builtin", "default"):
            check.boolean(f"model.{name}", getattr(self, name))
        check.optional("model.size", self.size, check.integer, 0, MAX_BYTES)

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {name: getattr(self, name) for name in field_names(ModelInfo)}

    @classmethod
    def from_wire(cls, data: object) -> ModelInfo:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("model", data, field_names(cls), strict=False)
        check.need("model", values, "id", "name", "kind")
        return cls(**values)


@dataclass(frozen=True)
class ModelsReply:
    """The models the worker knows, installed or not."""

    models: tuple[ModelInfo, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {"models": [model.to_wire() for model in self.models]}

    @classmethod
    def from_wire(cls, data: object) -> ModelsReply:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("A models reply", data, ["models"], strict=False)
        check.need("A models reply", values, "models")
        items = check.sequence("models", values["models"], 0, 1000)
        return cls(tuple(ModelInfo.from_wire(item) for item in items))
