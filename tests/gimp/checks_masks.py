"""The source's own mask, and soft edges baked into alpha where GIMP would not bake them."""

from gi.repository import Gimp
from restore_faces import run as plugin
from restore_faces.errors import NothingToDo
from restore_faces.options import Settings
from restore_faces.worker import Worker
from suite import (
    add_filter,
    alpha_is_the_mask_of,
    check,
    equal,
    get,
    grouped,
    new_group,
    new_image,
    new_layer,
    offsets,
    photo,
    picture,
    rect,
    restored,
    true,
)

SEAM = 230  # through the middle of the face


def hide(layer, left, right):
    """Hide columns of the layer by a mask."""
    mask = layer.create_mask(Gimp.AddMaskType.WHITE)
    layer.add_mask(mask)
    height = layer.get_height()
    mask.get_buffer().set(
        rect(left, 0, right - left, height), "Y u8", bytes((right - left) * height)
    )


@check
def what_the_sources_mask_hides_stays_hidden():
    image, layer = photo()
    hide(layer, 0, SEAM)
    (new,) = restored(image, [layer])
    equal(offsets(new)[0], SEAM, "the new layer begins")
    seen = Gimp.Layer.new_from_visible(image, image, "visible")
    equal(max(get(seen, 0, 0, SEAM, layer.get_height(), "A u8")), 0, "alpha where it is hidden")


@check
def a_mask_that_is_off_hides_nothing():
    image, layer = photo()
    hide(layer, 0, SEAM)
    layer.set_apply_mask(False)
    (new,) = restored(image, [layer])
    true(offsets(new)[0] < SEAM - 30, f"the new layer begins at {offsets(new)[0]}")


@check
def the_mask_of_a_layer_that_a_filter_enlarges():
    """The filtered copy is larger than the layer and its mask."""
    width, height, data = picture("face")
    image = new_image(900, 800)
    layer = new_layer(image, width, height, data, at=(100, 80))
    hide(layer, 0, SEAM)
    add_filter(layer, "gegl:dropshadow", x=-60.0)
    (new,) = restored(image, [layer])
    equal(offsets(new)[0], 100 + SEAM, "the new layer begins")


@check
def faces_that_are_all_hidden_are_told():
    image, layer = photo()
    hide(layer, 0, layer.get_width())
    try:
        plugin.restore(image, [layer], Settings(), Worker())
    except NothingToDo as reason:
        true("hidden by its mask" in reason.message, str(reason))
    else:
        raise AssertionError("a layer was made")
    equal(len(image.get_layers()), 1, "layers")


@check
def alpha_in_a_locked_group():
    """GIMP applies no mask there."""
    image, group, layer = grouped()
    group.set_lock_content(True)
    (masked,) = restored(image, [layer])
    (baked,) = restored(image, [layer], mask="alpha")
    (faces,) = restored(image, [layer], mask="alpha", layer_per_face=True)
    for new in (baked, *faces.get_children()):
        alpha_is_the_mask_of(new, masked)


@check
def a_group_that_a_filter_in_it_enlarges():
    """GIMP tells the group's old size: reading its pixels as they are ends the plug-in."""
    width, height, data = picture("face")
    image = new_image(900, 800)
    outer = new_group(image, "outer")
    inner = new_group(image, "inner", outer)
    layer = new_layer(image, width, height, data, at=(100, 80))
    image.reorder_item(layer, inner, 0)
    (plain,) = restored(image, [outer])
    add_filter(layer, "gegl:dropshadow", x=60.0).update()
    (new,) = restored(image, [outer])
    equal(offsets(new), offsets(plain), "offsets")
    equal(len(layer.get_filters()), 1, "filters left on the source")
