"""Reading a layer for the model, in sRGB, and what of it the model cannot be shown."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from face_restore_shared.schema import MAX_PIXELS, MAX_SIDE
from gi.repository import Gegl, Gimp

from restore_faces.blend import Patch, keep_beyond, limit_to_alpha
from restore_faces.errors import NothingToDo, PluginError
from restore_faces.geometry import Rect, region_to_read
from restore_faces.i18n import _
from restore_faces.job import Picture
from restore_faces.sending import Strips

SMALLEST = 16  # pixels a side; the worker takes nothing smaller
STRIP_BYTES = 8 << 20
TILE = 128  # rows; GEGL keeps pixels in tiles, which a strip should hold whole
_EIGHT_BITS = (Gimp.Precision.U8_NON_LINEAR, Gimp.Precision.U8_PERCEPTUAL)


@dataclass
class Source:
    """A layer's pixels. drawable: where they are read, which may be a filtered copy.

    place: the drawable's rectangle in the image, own: the layer's, which filters may enlarge.
    eight_bits: sRGB-encoded 8 bits show all of it.
    """

    layer: Gimp.Layer
    drawable: Gimp.Drawable
    place: Rect
    own: Rect
    gray: bool
    alpha: bool
    eight_bits: bool


@contextmanager
def opened(image: Gimp.Image, layer: Gimp.Layer) -> Iterator[Source]:
    """The layer's pixels with its non-destructive filters; the image is left alone."""
    if not _is_filtered(layer):
        yield _source(image, layer, layer)
        return
    scratch = Gimp.Image.new_with_precision(
        image.get_width(), image.get_height(), image.get_base_type(), image.get_precision()
    )
    try:
        profile = image.get_color_profile()
        if profile is not None:
            scratch.set_color_profile(profile)
        copy = Gimp.Layer.new_from_drawable(layer, scratch)
        copy.set_lock_content(False)
        copy.set_lock_position(False)
        scratch.insert_layer(copy, None, 0)
        for effect in copy.get_filters():
            if not effect.get_visible():
                effect.delete()
        if copy.is_group():
            # A group has no pixels of its own to merge its filters into. The rest of what
            # merging would apply does not belong to the pixels.
            copy.set_opacity(100.0)
            copy.set_mode(Gimp.LayerMode.NORMAL)
            copy.set_visible(True)
            if copy.get_mask() is not None:
                copy.remove_mask(Gimp.MaskApplyMode.DISCARD)
            copy = copy.merge()
        else:
            copy.merge_filters()
        yield _source(image, layer, copy)
    finally:
        scratch.delete()


def _is_filtered(layer: Gimp.Layer) -> bool:
    """Whether a filter is at work on the layer or, in a group, on any layer in it.

    A filter that enlarges a layer enlarges its group, of which GIMP 3.0 tells plug-ins the old
    size: reading such a group's pixels ends the plug-in at once, without a word to the user.
    """
    if any(effect.get_visible() for effect in layer.get_filters()):
        return True
    return layer.is_group() and any(map(_is_filtered, layer.get_children()))


def _source(image: Gimp.Image, layer: Gimp.Layer, drawable: Gimp.Drawable) -> Source:
    return Source(
        layer,
        drawable,
        _place(drawable),
        _place(layer),
        drawable.is_gray(),
        drawable.has_alpha(),
        image.get_precision() in _EIGHT_BITS,
    )


def _place(drawable: Gimp.Drawable) -> Rect:
    _ok, x, y = drawable.get_offsets()
    return Rect(x, y, drawable.get_width(), drawable.get_height())


def follow(image: Gimp.Image, source: Source) -> None:
    """See what became of the layer meanwhile: GIMP lets the user go on working on the image.

    Where it was moved the result goes along. Raises PluginError when it cannot be told any more
    where the faces belong.
    """
    layer, own = source.layer, source.own
    there = image.is_valid() and layer.is_valid() and layer.get_image() == image
    now = _place(layer) if there else None
    if (
        now is None
        or (now.width, now.height) != (own.width, own.height)
        or (layer.is_gray(), layer.is_indexed()) != (source.gray, False)
    ):
        raise PluginError(
            _(
                "The layer was removed, resized or converted while its faces were being restored; "
                "nothing was inserted."
            ),
            hint=_("Run the filter again."),
        )
    source.place, source.own = source.place.shifted(now.x - own.x, now.y - own.y), now


def selection_bounds(image: Gimp.Image) -> Rect | None:
    """The selection's bounds in the image, None when nothing is selected."""
    _ok, non_empty, x1, y1, x2, y2 = Gimp.Selection.bounds(image)
    return Rect(x1, y1, x2 - x1, y2 - y1) if non_empty else None


def read(image: Gimp.Image, source: Source, use_selection: bool) -> tuple[Picture, Rect]:
    """The picture to send and which part of the layer it is, in the layer's coordinates.

    8-bit layers are read as `R'G'B' u8`, deeper ones as u16: GEGL clips both to sRGB, which is
    what the model can see; `finish` brings the rest back. Raises NothingToDo, PluginError.
    """
    name = source.layer.get_name()
    selected = selection_bounds(image) if use_selection else None
    region = region_to_read(source.place, selected)
    if region.empty:
        raise NothingToDo(
            _('The selection lies outside of the layer "{layer}".').format(layer=name),
            hint=_("Select a face on the layer, or select nothing."),
        )
    if min(region.width, region.height) < SMALLEST:
        raise _too_small(source, region)
    if region.width * region.height > MAX_PIXELS or max(region.width, region.height) > MAX_SIDE:
        raise PluginError(
            _('"{layer}" has too many pixels ({width} × {height}).').format(
                layer=name, width=region.width, height=region.height
            ),
            hint=_("Select the part with the faces and run the filter again."),
        )
    depth = "u8" if source.eight_bits else "u16"
    form = ("Y' " if source.gray else "R'G'B' ") + depth
    pixels = _pixels(source, region, form, (1 if source.gray else 3) * (1 if depth == "u8" else 2))
    mask = None
    if selected is not None:
        # The selection lies in image coordinates and is linear: as Y' 128 would become 188.
        mask = _get(image.get_selection(), region.shifted(source.place.x, source.place.y), "Y u8")
    picture = Picture(
        region.width,
        region.height,
        1 if source.gray else 3,
        "uint8" if depth == "u8" else "uint16",
        pixels,
        mask,
    )
    return picture, region


def _too_small(source: Source, region: Rect) -> NothingToDo:
    """That the layer, or what is selected of it, is smaller than any face."""
    text = _('"{layer}" has too few pixels for a face ({width} × {height}).')
    hint = _("Select a larger layer.")
    if min(source.place.width, source.place.height) >= SMALLEST:
        text = _('The selection on "{layer}" is too small for a face ({width} × {height} pixels).')
        hint = _("Select the whole face and a little around it.")
    name = source.layer.get_name()
    return NothingToDo(text.format(layer=name, width=region.width, height=region.height), hint=hint)


def _pixels(source: Source, region: Rect, form: str, pixel_bytes: int) -> bytes | Strips:
    """The region's bytes; of a large plain layer strips, read while they are sent.

    A group or a filtered copy is computed while it is read, which may take longer than the worker
    waits in the middle of a message: such a picture is read before.
    """
    nbytes = region.width * region.height * pixel_bytes
    plain = source.drawable == source.layer and not source.layer.is_group()
    if nbytes < 2 * STRIP_BYTES or not plain:
        return _get(source.drawable, region, form)
    rows = STRIP_BYTES // (region.width * pixel_bytes) // TILE * TILE or TILE

    def read_strips() -> Iterator[bytes]:
        for y in range(region.y, region.bottom, rows):
            height = min(rows, region.bottom - y)
            yield _get(source.drawable, Rect(region.x, y, region.width, height), form)

    return Strips(nbytes, read_strips)


def finish(source: Source, patch: Patch) -> None:
    """Fit a patch (in the layer's coordinates) to the layer, in place.

    Colours outside sRGB come back, and nothing is shown where the layer is transparent or hidden
    by its mask.
    """
    original = array("f")
    original.frombytes(_get(source.drawable, patch.rect, "R'G'B' float"))
    keep_beyond(patch.rgb, original)
    if source.alpha:
        patch.mask = limit_to_alpha(patch.mask, _get(source.drawable, patch.rect, "A u8"))
    mask = source.layer.get_mask()
    if mask is not None and source.layer.get_apply_mask():
        dx, dy = source.place.x - source.own.x, source.place.y - source.own.y
        shown = _get(mask, patch.rect.shifted(dx, dy), "Y u8")
        patch.mask = limit_to_alpha(patch.mask, shown)


def _get(drawable: Gimp.Drawable, rect: Rect, form: str) -> bytes:
    area = Gegl.Rectangle.new(rect.x, rect.y, rect.width, rect.height)
    return drawable.get_buffer().get(area, 1.0, form, Gegl.AbyssPolicy.NONE)


def put(drawable: Gimp.Drawable, rect: Rect, form: str, values: array[float]) -> None:
    """Write floats into a drawable of the plug-in's own; rect in the drawable's coordinates."""
    channels = {"Y": 1, "R'G'B'": 3, "R'G'B'A": 4}[form.split()[0]]
    wanted = rect.width * rect.height * channels
    if len(values) != wanted:  # GEGL would only mutter and leave the pixels as they are
        raise ValueError(f"{len(values)} values for {rect} as {form}, not {wanted}")
    area = Gegl.Rectangle.new(rect.x, rect.y, rect.width, rect.height)
    drawable.get_buffer().set(area, form, values.tobytes())
