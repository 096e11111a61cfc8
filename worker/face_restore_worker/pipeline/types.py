"""What the pipeline passes around: faces found, patches to paste, the outcome of a picture.

Two coordinate conventions meet here, both in pixels of the photograph:

* pixel-edge: the picture spans [0, width] x [0, height]; a box of one pixel is (0, 0, 1, 1);
* pixel-centre: the centre of the first pixel is (0, 0); equal to pixel-edge minus one half.

Boxes are pixel-edge; landmarks and similarity transforms are pixel-centre.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ImageArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photograph.

    box: (4,) float64, x0, y0, x1, y1, pixel-edge. It may reach past the picture's border.
    score: confidence of the detector, 0 to 1.
    landmarks: (5, 2) float64, pixel-centre: left eye, right eye, nose, left and right mouth corner
        ("left" as the viewer sees an upright face).
    strength: 0 to 1 to restore this face by, None to use the option's.
    """

    box: FloatArray
    score: float
    landmarks: FloatArray
    strength: float | None = None

    def __post_init__(self) -> None:
        box = np.asarray(self.box, dtype=np.float64)
        landmarks = np.asarray(self.landmarks, dtype=np.float64)
        if box.shape != (4,):
            raise ValueError(f"a face's box has shape (4,), not {box.shape}")
        if landmarks.shape != (5, 2):
            raise ValueError(f"a face's landmarks have shape (5, 2), not {landmarks.shape}")
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "landmarks", landmarks)
        object.__setattr__(self, "score", float(self.score))

    @property
    def width(self) -> float:
        """Width of the box in pixels."""
        return float(self.box[2] - self.box[0])

    @property
    def height(self) -> float:
        """Height of the box in pixels."""
        return float(self.box[3] - self.box[1])

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, pixel-edge."""
        return float(self.box[0] + self.box[2]) / 2, float(self.box[1] + self.box[3]) / 2


@dataclass(eq=False)
class Patch:
    """A restored face at the photograph's scale, ready to be composited.

    face: the face it restores.
    matrix: (2, 3) float64, photograph to aligned crop, pixel-centre on both sides.
    crop_size: side of the aligned crop in pixels.
    x, y: the photograph's pixel under the patch's first pixel; the patch lies inside the picture.
    rgb: (h, w, 3) float32, [0, 1], sRGB-encoded; not clipped to the photograph's own range.
    mask: (h, w) float32, [0, 1]: how much of `rgb` shows at strength 1.
    strength: 0 to 1, multiplies the mask.
    note: one sentence for the user when something about this face went differently, else None.
    aligned_input, aligned_output: (S, S, 3) float32, [0, 1], when they were asked for.
    """

    face: Face
    matrix: FloatArray
    crop_size: int
    x: int
    y: int
    rgb: ImageArray
    mask: ImageArray
    strength: float = 1.0
    note: str | None = None
    aligned_input: ImageArray | None = None
    aligned_output: ImageArray | None = None


@dataclass(eq=False)
class RestoreOutcome:
    """Everything a restored picture comes with; compositing the patches is the caller's.

    patches: one for each face restored, in the order to paste them.
    faces: all faces found, also those not restored.
    model_id, model_name: the catalogue's id, and the name to show ("built-in, not GPEN").
    detector: the name of the detector, "" where none ran.
    device: the name of the device the network ran on.
    notes: sentences for the user.
    timings: seconds by stage.
    """

    patches: list[Patch] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)
    model_id: str = ""
    model_name: str = ""
    detector: str = ""
    device: str = ""
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
