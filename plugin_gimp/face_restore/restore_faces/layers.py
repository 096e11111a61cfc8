"""The result: new layers above the source, with masks, strength and a note of what was done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from face_restore_shared.version import __version__
from gi.repository import Gimp

from restore_faces.blend import Patch, interleaved, settle_overlaps
from restore_faces.geometry import Rect, union
from restore_faces.i18n import _
from restore_faces.options import Settings
from restore_faces.pixels import Source, put

PARASITE = "face-restore"


@dataclass
class Result:
    """What is to be written for one layer; patches in the layer's coordinates."""

    source: Source
    patches: list[Patch]
    model: str
    model_id: str
    device: str
    notes: Sequence[str]


def write(image: Gimp.Image, results: Sequence[Result], settings: Settings) -> list[Gimp.Layer]:
    """Insert the new layers, in one undo step. Returns them: one, or one group, a result.

    What was selected stays so, as with GIMP's own filters that add layers: Filters > Repeat then
    restores the source again and not the faces just restored.
    """
    built = [_build(image, result, settings) for result in results]
    selected = image.get_selected_layers()
    image.undo_group_start()
    try:
        for result, (top, faces) in zip(results, built, strict=True):
            layer = result.source.layer
            image.insert_layer(top, layer.get_parent(), _position(image, layer))
            for position, face in enumerate(faces):
                image.insert_layer(face, top, position)
        if selected:
            image.set_selected_layers(selected)
    finally:
        image.undo_group_end()
    return [top for top, _faces in built]


def _position(image: Gimp.Image, layer: Gimp.Layer) -> int:
    """Where a new layer lies above the layer, and above what earlier runs put there: the newest
    is seen."""
    parent, position = layer.get_parent(), image.get_item_position(layer)
    siblings = image.get_layers() if parent is None else parent.get_children()
    while position > 0 and siblings[position - 1].get_parasite(PARASITE) is not None:
        position -= 1
    return position


def _build(
    image: Gimp.Image, result: Result, settings: Settings
) -> tuple[Gimp.Layer, list[Gimp.Layer]]:
    """A layer and no more, or a group and its layers; none of them is in the image yet."""
    title = _("Restored faces") + " · " + result.model
    if not settings.layer_per_face:
        settle_overlaps(result.patches)
        return _layer(image, title, result, result.patches, settings), []
    group = Gimp.GroupLayer.new(image, title)
    _attach(group, image, result, result.patches, settings)
    faces = []
    for number, patch in enumerate(from_left(result.patches), 1):
        name = _("Face {number}").format(number=number)
        faces.append(_layer(image, name, result, [patch], settings))
    return group, faces


def from_left(patches: Sequence[Patch]) -> list[Patch]:
    """The patches by their face's centre, left to right."""
    return sorted(patches, key=lambda patch: patch.box[0] + patch.box[2])


def _layer(
    image: Gimp.Image, name: str, result: Result, patches: Sequence[Patch], settings: Settings
) -> Gimp.Layer:
    """A layer just large enough for the patches, transparent beside them, masked by theirs.

    Where the masks are to be its alpha they are written so: applying a layer mask, which GIMP does
    for inserted layers only, is refused inside of a locked group.
    """
    frame = union([patch.rect for patch in patches])
    kind = Gimp.ImageType.GRAYA_IMAGE if result.source.gray else Gimp.ImageType.RGBA_IMAGE
    layer = Gimp.Layer.new(
        image, name, frame.width, frame.height, kind, settings.strength, Gimp.LayerMode.NORMAL
    )
    place = result.source.place
    layer.set_offsets(place.x + frame.x, place.y + frame.y)
    mask = None
    if settings.mask != "alpha":
        mask = layer.create_mask(Gimp.AddMaskType.BLACK)
        layer.add_mask(mask)
        layer.set_edit_mask(False)
    for patch in patches:
        own = patch.rect.shifted(-frame.x, -frame.y)
        if mask is None:
            put(layer, own, "R'G'B'A float", interleaved(patch.rgb, patch.mask))
        else:
            put(layer, own, "R'G'B' float", patch.rgb)
            # Masks are linear: as Y' a half would become 0.21.
            put(mask, own, "Y float", patch.mask)
    _attach(layer, image, result, patches, settings)
    return layer


def _attach(
    layer: Gimp.Layer,
    image: Gimp.Image,
    result: Result,
    patches: Sequence[Patch],
    settings: Settings,
) -> None:
    """Note what was done, as JSON in a parasite that is saved with the image."""
    note = record(result, patches, settings)
    flags = Gimp.PARASITE_PERSISTENT | Gimp.PARASITE_UNDOABLE
    data = json.dumps(note, ensure_ascii=False).encode()
    layer.attach_parasite(Gimp.Parasite.new(PARASITE, flags, list(data)))


def record(result: Result, patches: Sequence[Patch], settings: Settings) -> dict[str, object]:
    """The parasite's content; boxes x0, y0, x1, y1 in pixels of the image, left to right."""
    place: Rect = result.source.place
    faces = []
    for patch in from_left(patches):
        x0, y0, x1, y1 = (round(v, 2) for v in patch.box)
        box = [x0 + place.x, y0 + place.y, x1 + place.x, y1 + place.y]
        faces.append({"box": box, "score": round(patch.score, 4), "note": patch.note})
    return {
        "version": __version__,
        "model": result.model,
        "model_id": result.model_id,
        "device": result.device,
        "strength": settings.strength,
        "faces": faces,
        "notes": list(result.notes),
    }
