"""What a client may ask for: the picture's form, how to look for faces, how to restore them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from face_restore_shared import fields as check
from face_restore_shared.errors import SchemaError

DTYPE_SIZES = {"uint8": 1, "uint16": 2, "float32": 4}
TEMPLATES = ("ffhq", "gpen")
MASKS = ("auto", "parse", "oval")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PATCH_DTYPES = ("float32", "uint16", "uint8")

MAX_SIDE = 65_536
MAX_PIXELS = 1 << 28  # 268 megapixels
MAX_FACES = 1000


def field_names(cls: type) -> list[str]:
    """The names of a dataclass's fields, in order."""
    return [f.name for f in fields(cls)]


def _set(obj: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(obj, name, value)


@dataclass(frozen=True)
class ImageSpec:
    """The picture in the first buffer: (height, width, channels), C order, sRGB-encoded.

    width, height: 1 to 65,536 pixels, together at most 2**28 pixels.
    channels: 3 (RGB) or 1 (gray).
    dtype: "uint8", "uint16" or "float32" (nominal range [0, 1]); little-endian.
    """

    width: int
    height: int
    channels: int = 3
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        _set(
            self,
            width=check.integer("image.width", self.width, 1, 1 << 31),
            height=check.integer("image.height", self.height, 1, 1 << 31),
            channels=check.choice("image.channels", self.channels, (1, 3)),
            dtype=check.choice("image.dtype", self.dtype, tuple(DTYPE_SIZES)),
        )
        if self.width * self.height > MAX_PIXELS or max(self.width, self.height) > MAX_SIDE:
            raise SchemaError(
                f"The picture of {self.width} x {self.height} pixels is larger than the worker "
                f"takes ({MAX_PIXELS // 10**6} megapixels, {MAX_SIDE} pixels a side).",
                hint="Restore a part of it, or scale it down.",
                code="too-large",
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the pixel buffer."""
        return self.width * self.height * self.channels * DTYPE_SIZES[self.dtype]

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {name: getattr(self, name) for name in field_names(ImageSpec)}

    @classmethod
    def from_wire(cls, data: object) -> ImageSpec:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("image", data, field_names(cls), strict=True)
        check.need("image", values, "width", "height", "channels", "dtype")
        return cls(**values)


@dataclass(frozen=True)
class DetectOptions:
    """How to look for faces.

    detector: a model's id, or "auto".
    threshold: smallest score, 0 to 1; None is the detector's own.
    min_face: smallest height of a face's box in pixels.
    max_faces: keep that many best faces; 0 is no limit.
    rotations: search at 90, 180 and 270 degrees too.
    only_largest: keep the largest face only.
    region: x, y, width, height in pixels; only faces whose centre lies in it. None: everywhere.
    previews: long side in pixels of a small picture of each face in a detect reply; 0 is none.
    """

    detector: str = "auto"
    threshold: float | None = None
    min_face: float = 12.0
    max_faces: int = 0
    rotations: bool = False
    only_largest: bool = False
    region: tuple[int, int, int, int] | None = None
    previews: int = 0

    def __post_init__(self) -> None:
        _set(
            self,
            detector=check.name_text("detect.detector", self.detector),
            threshold=check.optional("detect.threshold", self.threshold, check.number, 0.0, 1.0),
            min_face=check.number("detect.min_face", self.min_face, 0, MAX_SIDE),
            max_faces=check.integer("detect.max_faces", self.max_faces, 0, MAX_FACES),
            rotations=check.boolean("detect.rotations", self.rotations),
            only_largest=check.boolean("detect.only_largest", self.only_largest),
            region=check.optional("detect.region", self.region, _region),
            previews=check.integer("detect.previews", self.previews, 0, 512),
        )

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        values = {name: getattr(self, name) for name in field_names(DetectOptions)}
        values["region"] = None if self.region is None else list(self.region)
        return values

    @classmethod
    def from_wire(cls, data: object) -> DetectOptions:
        """Checked from a map (absent fields take their default); raises SchemaError."""
        return cls(**check.fields_of("detect", data, field_names(cls), strict=True))


def _region(name: str, value: object) -> tuple[int, int, int, int]:
    x, y, width, height = check.sequence(name, value, 4, 4)
    return (
        check.integer(f"{name}.x", x, 0, MAX_SIDE),
        check.integer(f"{name}.y", y, 0, MAX_SIDE),
        check.integer(f"{name}.width", width, 1, MAX_SIDE),
        check.integer(f"{name}.height", height, 1, MAX_SIDE),
    )


@dataclass(frozen=True)
class RestoreOptions:
    """How to restore.

    model: a model's id, the path of a checkpoint, or "auto".
    strength: 0 (nothing changes) to 1.
    template: landmarks the face is aligned to, "ffhq" or "gpen" (the authors').
    keep_colour: keep the original's low-frequency colour.
    mask: "parse" (needs ParseNet), "oval", or "auto" (parse where installed).
    mask_softness: factor on the feather's width, 0 to 4.
    aligned: the picture is one aligned face already; nothing is searched.
    precision: of the network; "auto" takes what the device does best.
    patch_dtype: how patches and masks are sent: "float32" in [0, 1], "uint16" or "uint8".
    return_aligned: send the aligned crops before and after as well.
    """

    model: str = "auto"
    strength: float = 1.0
    template: str = "ffhq"
    keep_colour: bool = True
    mask: str = "auto"
    mask_softness: float = 1.0
    aligned: bool = False
    precision: str = "auto"
    patch_dtype: str = "float32"
    return_aligned: bool = False

    def __post_init__(self) -> None:
        _set(
            self,
            model=check.name_text("restore.model", self.model),
            strength=check.number("restore.strength", self.strength, 0, 1),
            template=check.choice("restore.template", self.template, TEMPLATES),
            keep_colour=check.boolean("restore.keep_colour", self.keep_colour),
            mask=check.choice("restore.mask", self.mask, MASKS),
            mask_softness=check.number("restore.mask_softness", self.mask_softness, 0, 4),
            aligned=check.boolean("restore.aligned", self.aligned),
            precision=check.choice("restore.precision", self.precision, PRECISIONS),
            patch_dtype=check.choice("restore.patch_dtype", self.patch_dtype, PATCH_DTYPES),
            return_aligned=check.boolean("restore.return_aligned", self.return_aligned),
        )

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {name: getattr(self, name) for name in field_names(RestoreOptions)}

    @classmethod
    def from_wire(cls, data: object) -> RestoreOptions:
        """Checked from a map (absent fields take their default); raises SchemaError."""
        return cls(**check.fields_of("restore", data, field_names(cls), strict=True))


Box = tuple[float, float, float, float]
Landmarks = tuple[tuple[float, float], ...]


def face_box(name: str, value: object) -> Box:
    """x0, y0, x1, y1 in pixel-edge coordinates, x0 < x1 and y0 < y1."""
    x0, y0, x1, y1 = check.numbers(name, value, 4)
    if not (x0 < x1 and y0 < y1):
        raise check.fail(name, "a box x0, y0, x1, y1 with x0 < x1 and y0 < y1", value)
    return x0, y0, x1, y1


def face_landmarks(name: str, value: object) -> Landmarks:
    """Five points (x, y) in pixel-centre coordinates."""
    rows = enumerate(check.sequence(name, value, 5, 5))
    return tuple((x, y) for x, y in (check.numbers(f"{name}[{i}]", row, 2) for i, row in rows))


@dataclass(frozen=True)
class FaceTarget:
    """A face to restore, as taken from a detect reply.

    box: x0, y0, x1, y1, pixel-edge. landmarks: five (x, y), pixel-centre.
    score: 0 to 1. strength: for this face, None takes the option's.
    """

    box: Box
    landmarks: Landmarks
    score: float = 1.0
    strength: float | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            box=face_box("face.box", self.box),
            landmarks=face_landmarks("face.landmarks", self.landmarks),
            score=check.number("face.score", self.score, 0, 1),
            strength=check.optional("face.strength", self.strength, check.number, 0, 1),
        )

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {
            "box": list(self.box),
            "landmarks": [list(p) for p in self.landmarks],
            "score": self.score,
            "strength": self.strength,
        }

    @classmethod
    def from_wire(cls, data: object) -> FaceTarget:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("face", data, field_names(cls), strict=True)
        check.need("face", values, "box", "landmarks")
        return cls(**values)
