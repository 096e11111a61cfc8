"""The procedure's arguments, and what of them goes to the worker."""

from __future__ import annotations

from dataclasses import dataclass

from face_restore_shared.schema import DetectOptions, RestoreOptions

FACES = ("selected", "all", "largest")
MASKS = ("layer-mask", "alpha")


@dataclass(frozen=True)
class Settings:
    """The dialog's values. strength: percent, becomes the layer's opacity.

    faces: "selected" (in the selection; all where there is none), "all" (selection ignored),
    "largest" (in the selection, where there is one). threshold: percent, 0 the detector's own.
    min_face: pixels. softness: percent of the usual feather.
    """

    model: str = "auto"
    strength: float = 100.0
    faces: str = "selected"
    threshold: float = 0.0
    min_face: int = 12
    softness: float = 100.0
    keep_colour: bool = True
    layer_per_face: bool = False
    mask: str = "layer-mask"

    @property
    def uses_selection(self) -> bool:
        """Whether the image's selection limits what is done."""
        return self.faces != "all"

    def detect_options(self) -> DetectOptions:
        """For the worker; raises SchemaError when a value is out of range."""
        return DetectOptions(
            threshold=self.threshold / 100 if self.threshold > 0 else None,
            min_face=float(self.min_face),
            only_largest=self.faces == "largest",
        )

    def restore_options(self) -> RestoreOptions:
        """For the worker. The strength is not its business: it is the new layer's opacity."""
        return RestoreOptions(
            model=self.model or "auto",
            keep_colour=self.keep_colour,
            mask_softness=self.softness / 100,
            patch_dtype="float32",
        )
