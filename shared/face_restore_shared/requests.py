"""The two requests that carry a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from face_restore_shared import fields as check
from face_restore_shared.options import (
    MAX_FACES,
    DetectOptions,
    FaceTarget,
    ImageSpec,
    RestoreOptions,
    field_names,
)


def request_buffers(image: ImageSpec, selection: bool) -> list[int]:
    """Bytes of each buffer that follows: the picture, then the (H, W) uint8 selection if any."""
    return [image.nbytes] + ([image.width * image.height] if selection else [])


@dataclass(frozen=True)
class DetectRequest:
    """Find the faces, restore nothing.

    selection: a second buffer follows, (height, width) uint8; a face counts when its centre lies
        on a value of 128 or more.
    """

    image: ImageSpec
    selection: bool = False
    detect: DetectOptions = field(default_factory=DetectOptions)

    def __post_init__(self) -> None:
        check.boolean("selection", self.selection)

    @property
    def buffers(self) -> list[int]:
        """Bytes of each buffer that follows the header."""
        return request_buffers(self.image, self.selection)

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {
            "image": self.image.to_wire(),
            "selection": self.selection,
            "detect": self.detect.to_wire(),
        }

    @classmethod
    def from_wire(cls, data: object) -> DetectRequest:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("A detect request", data, field_names(cls), strict=True)
        check.need("A detect request", values, "image")
        return cls(
            image=ImageSpec.from_wire(values["image"]),
            selection=values.get("selection", False),
            detect=DetectOptions.from_wire(values.get("detect", {})),
        )


@dataclass(frozen=True)
class RestoreRequest:
    """Restore faces: those listed, or all that `detect` finds when `faces` is None."""

    image: ImageSpec
    selection: bool = False
    detect: DetectOptions = field(default_factory=DetectOptions)
    restore: RestoreOptions = field(default_factory=RestoreOptions)
    faces: tuple[FaceTarget, ...] | None = None

    def __post_init__(self) -> None:
        check.boolean("selection", self.selection)
        if self.faces is not None:
            items = check.sequence("faces", self.faces, 0, MAX_FACES)
            object.__setattr__(self, "faces", tuple(items))

    @property
    def buffers(self) -> list[int]:
        """Bytes of each buffer that follows the header."""
        return request_buffers(self.image, self.selection)

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {
            "image": self.image.to_wire(),
            "selection": self.selection,
            "detect": self.detect.to_wire(),
            "restore": self.restore.to_wire(),
            "faces": None if self.faces is None else [face.to_wire() for face in self.faces],
        }

    @classmethod
    def from_wire(cls, data: object) -> RestoreRequest:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("A restore request", data, field_names(cls), strict=True)
        check.need("A restore request", values, "image")
        faces = values.get("faces")
        if faces is not None:
            items = check.sequence("faces", faces, 0, MAX_FACES)
            faces = tuple(FaceTarget.from_wire(item) for item in items)
        return cls(
            image=ImageSpec.from_wire(values["image"]),
            selection=values.get("selection", False),
            detect=DetectOptions.from_wire(values.get("detect", {})),
            restore=RestoreOptions.from_wire(values.get("restore", {})),
            faces=faces,
        )
