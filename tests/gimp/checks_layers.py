"""Where the new layers are, what they look like, and that nothing else changes."""

from gi.repository import Gimp, Gio
from suite import (
    FOLDER,
    P,
    add_filter,
    alpha_is_the_mask_of,
    check,
    equal,
    get,
    grouped,
    looks_like_the_face,
    new_group,
    new_image,
    new_layer,
    offsets,
    parasite,
    photo,
    picture,
    rect,
    restored,
    run,
    true,
    whole,
)


def names(image):
    return [layer.get_name() for layer in image.get_layers()]


@check
def above_the_source_and_small():
    image, layer = photo()
    width, height, data = picture("face")
    new_layer(image, width, height, data, name="on top")
    (new,) = restored(image, [layer], strength=60.0)
    equal(image.get_item_position(new) + 1, image.get_item_position(layer), "position")
    equal(names(image)[0], "on top", "first layer")
    equal(new.get_opacity(), 60.0, "opacity")
    true(new.get_width() * new.get_height() < 0.3 * width * height, "larger than the face needs")
    note = parasite(new)
    equal(note["strength"], 60.0, "parasite's strength")
    x0, y0, x1, y1 = note["faces"][0]["box"]
    true(170 < x0 < x1 < 290 and 50 < y0 < y1 < 220, f"the face's box is {x0, y0, x1, y1}")
    equal(note["version"].count("."), 2, "version")
    return f"{new.get_width()} x {new.get_height()} of {width} x {height}"


@check
def repeating_restores_the_source_again():
    """As GIMP's own filters that add layers: the source stays selected, and the newest is seen."""
    image, layer = photo()
    width, height, data = picture("face")
    top = new_layer(image, width, height, data, name="on top")
    for selected in ([layer], [top, layer]):
        image.set_selected_layers(selected)
        made = restored(image, [layer])
        equal(set(image.get_selected_layers()), set(selected), "selected layers")
    (first,) = restored(image, [layer], layer_per_face=True)
    (second,) = restored(image, [layer])
    above = image.get_layers()[:4]
    equal(above, [top, second, first, *made], "from the top")


@check
def offsets_of_the_layer_count():
    width, height, data = picture("face")
    image = new_image(900, 800)
    layer = new_layer(image, width, height, data)
    (first,) = restored(image, [layer])
    x, y = offsets(first)
    image.remove_layer(first)
    layer.set_offsets(123, -40)
    (second,) = restored(image, [layer])
    equal(offsets(second), (x + 123, y - 40), "offsets")


@check
def transparent_beside_the_mask_in_alpha():
    image, layer = photo()
    (masked,) = restored(image, [layer])
    (baked,) = restored(image, [layer], mask="alpha")
    alpha_is_the_mask_of(baked, masked)


@check
def the_rest_of_the_image_looks_as_before():
    image, layer = photo(precision=P.U16_NON_LINEAR)
    width, height = layer.get_width(), layer.get_height()
    before = whole(layer, "R'G'B' u16")
    (new,) = restored(image, [layer])
    flat = Gimp.Layer.new_from_visible(image, image, "visible")
    after = whole(flat, "R'G'B' u16")
    x, y = offsets(new)
    mask = whole(new.get_mask(), "Y u16")
    changed = outside = 0
    new_width, new_height = new.get_width(), new.get_height()
    for row in range(height):
        a, b = (data[6 * row * width : 6 * (row + 1) * width] for data in (before, after))
        if a == b:
            continue
        for column in range(width):
            if a[6 * column : 6 * column + 6] != b[6 * column : 6 * column + 6]:
                mx, my = column - x, row - y
                inside = 0 <= mx < new_width and 0 <= my < new_height
                at = 2 * (my * new_width + mx)
                covered = inside and mask[at : at + 2] != b"\0\0"
                changed, outside = changed + 1, outside + (not covered)
    true(changed > 1000, "nothing changed")
    equal(outside, 0, "pixels changed where the mask is zero")
    return f"{changed} pixels changed, none where the mask is zero"


@check
def one_layer_for_each_face():
    image, layer = photo("two")
    (group,) = restored(image, [layer], layer_per_face=True, strength=50.0)
    true(group.is_group(), "no group")
    faces = group.get_children()
    equal([face.get_name() for face in faces], ["Face 1", "Face 2"], "names")
    true(offsets(faces[0])[0] < offsets(faces[1])[0], "not from left to right")
    equal([face.get_opacity() for face in faces], [50.0, 50.0], "opacity")
    true(all(face.get_mask() for face in faces), "masks")
    equal(len(parasite(group)["faces"]), 2, "boxes")
    equal(len(parasite(faces[0])["faces"]), 1, "boxes of one")


@check
def two_faces_in_one_layer():
    image, layer = photo("two")
    (new,) = restored(image, [layer])
    equal(len(parasite(new)["faces"]), 2, "faces")
    clear = whole(new, "A u8").count(b"\0")
    true(clear > 0, "not transparent between the faces")
    (largest,) = restored(image, [layer], faces="largest")
    equal(len(parasite(largest)["faces"]), 1, "faces with only the largest")


@check
def a_selection_limits_the_faces():
    image, layer = photo("two")
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 640, 0, 384, 300)
    (new,) = restored(image, [layer])
    equal(len(parasite(new)["faces"]), 1, "faces")
    true(offsets(new)[0] > 600, f"the wrong face: {offsets(new)}")
    (everything,) = restored(image, [layer], faces="all")
    equal(len(parasite(everything)["faces"]), 2, "faces with the selection ignored")
    return f"at {offsets(new)}"


@check
def a_selection_beside_the_face():
    image, layer = photo()
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 0, 300, 120, 200)
    outcome = run(image, [layer])
    true(outcome.good, outcome.message)
    equal(len(image.get_layers()), 1, "layers")
    layer.set_offsets(200, 0)
    outcome = run(image, [layer])
    true(outcome.good, outcome.message)
    equal(len(image.get_layers()), 1, "layers with the selection outside of the layer")


@check
def a_soft_selection_is_linear():
    """A face selected by 40 % is not selected; as Y' it would count as 66 %."""
    image, layer = photo()
    width, height = layer.get_width(), layer.get_height()
    image.get_selection().get_buffer().set(
        rect(0, 0, width, height), "Y u8", bytes([102]) * (width * height)
    )
    equal(get(image.get_selection(), 5, 5, 1, 1, "Y u8"), bytes([102]), "selection")
    outcome = run(image, [layer])
    true(outcome.good, outcome.message)
    equal(len(image.get_layers()), 1, "layers")


@check
def several_layers_one_after_the_other():
    width, height, data = picture("face")
    image = new_image(1100, 900)
    first = new_layer(image, width, height, data, name="first", at=(10, 20))
    second = new_layer(image, width, height, data, name="second", at=(500, 300))
    new = restored(image, [first, second])
    order = [name.split(" #")[0] for name in names(image)]
    title = new[0].get_name().split(" #")[0]
    equal(order, [title, "second", title, "first"], "layers")
    a, b = sorted(map(offsets, new))
    equal((b[0] - a[0], b[1] - a[1]), (490, 280), "distance")


@check
def one_of_two_layers_without_a_face():
    image, layer = photo()
    width, height, data = picture("none")
    empty = new_layer(image, width, height, data, name="empty")
    outcome = run(image, [layer, empty])
    true(outcome.good, outcome.message)
    equal(len(image.get_layers()), 3, "layers")


@check
def a_group_is_read_as_its_composite():
    width, height, data = picture("face")
    image = new_image(width, height)
    group = new_group(image)
    for name, left, right in (("left", 0, 230), ("right", 230, width)):
        rows = [data[3 * (y * width + left) : 3 * (y * width + right)] for y in range(height)]
        part = new_layer(image, right - left, height, b"".join(rows), name=name, at=(left, 0))
        image.reorder_item(part, group, 0)
    (new,) = restored(image, [group])
    true(new.get_parent() is None, "inside the group")
    equal(image.get_item_position(new), 0, "position")
    (inner,) = (run(image, [group.get_children()[0]]).layers or [None]) or [None]
    true(inner is None or inner.get_parent() == group, "not beside its source in the group")


@check
def a_layer_in_a_group():
    image, group, layer = grouped()
    (new,) = restored(image, [layer])
    equal(new.get_parent(), group, "parent")
    equal([c.get_name() for c in group.get_children()], [new.get_name(), "photo"], "children")


@check
def non_destructive_filters_are_honoured():
    """The photograph upside down in brightness, put right by a filter: only so a face is found."""
    image, layer = photo()
    width, height, data = picture("face")
    flipped = bytes(255 - value for value in data)
    layer.get_buffer().set(rect(0, 0, width, height), "R'G'B' u8", flipped)
    add_filter(layer, "gegl:invert-gamma")
    (new,) = restored(image, [layer])
    equal(len(layer.get_filters()), 1, "filters left on the source")
    true(whole(layer, "R'G'B' u8") == flipped, "the source was changed")
    looks_like_the_face(new)
    equal(len(Gimp.get_images()), 1, "images left behind")


@check
def a_group_with_a_filter():
    image, group, _layer = grouped(inverted=True)
    add_filter(group, "gegl:invert-gamma")
    (new,) = restored(image, [group])
    looks_like_the_face(new)
    equal(len(group.get_children()), 1, "children")


@check
def locked_and_hidden_layers():
    image, layer = photo()
    layer.set_lock_content(True)
    layer.set_lock_position(True)
    layer.set_visible(False)
    before = whole(layer)
    (new,) = restored(image, [layer])
    true(whole(layer) == before and layer.get_lock_content(), "the source was changed")
    equal(len(image.get_layers()), 2, "layers")
    equal(new.get_lock_content(), False, "lock")


@check
def a_layer_in_a_locked_group():
    image, group, layer = grouped()
    group.set_lock_content(True)
    restored(image, [layer])
    equal(len(group.get_children()), 2, "children")


@check
def a_layer_mask_stands_for_its_layer():
    image, layer = photo()
    layer.add_mask(layer.create_mask(Gimp.AddMaskType.WHITE))
    (new,) = restored(image, [layer.get_mask()])
    equal(image.get_item_position(new), 0, "position")


@check
def a_text_layer_is_only_read():
    image, _layer = photo()
    font = Gimp.fonts_get_list("")[0]
    text = Gimp.TextLayer.new(image, "no face", font, 40.0, Gimp.Unit.pixel())
    image.insert_layer(text, None, 0)
    outcome = run(image, [text])
    true(outcome.good, outcome.message)
    true(text.is_text_layer(), "no longer a text layer")
    equal(len(image.get_layers()), 2, "layers")


def a_link_layer_is_only_read():
    source, _layer = photo()
    file = Gio.File.new_for_path(str(FOLDER / "linked.png"))
    true(Gimp.file_save(Gimp.RunMode.NONINTERACTIVE, source, file, None), "not saved")
    image = new_image(source.get_width(), source.get_height())
    link = Gimp.LinkLayer.new(image, file)
    image.insert_layer(link, None, 0)
    before = whole(link)
    (new,) = restored(image, [link])
    equal(names(image), [new.get_name(), link.get_name()], "layers")
    true(not isinstance(new, Gimp.LinkLayer), "the new layer is a link")
    equal(link.get_file().get_path(), file.get_path(), "the link's file")
    true(isinstance(image.get_layers()[1], Gimp.LinkLayer), "no longer a link")
    true(whole(link) == before, "the link layer was changed")
    return f"{new.get_width()} x {new.get_height()} above it"


def a_vector_layer_is_only_read():
    image, _layer = photo()
    path = Gimp.Path.new(image, "no face")
    corners = [(40.0, 40.0), (400.0, 60.0), (380.0, 420.0), (60.0, 390.0)]
    points = [value for corner in corners for value in corner * 3]
    path.stroke_new_from_points(Gimp.PathStrokeType.BEZIER, points, True)
    image.insert_path(path, None, 0)
    vector = Gimp.VectorLayer.new(image, path)
    image.insert_layer(vector, None, 0)
    before = whole(vector)
    true(any(before), "the vector layer shows nothing")
    outcome = run(image, [vector])
    true(outcome.good, outcome.message)
    equal(len(image.get_layers()), 2, "layers")
    true(isinstance(image.get_layers()[0], Gimp.VectorLayer), "no longer a vector layer")
    true(whole(vector) == before, "the vector layer was changed")


if hasattr(Gimp, "LinkLayer"):  # GIMP 3.2 has both, 3.0 neither
    check(a_link_layer_is_only_read)
    check(a_vector_layer_is_only_read)


@check
def no_face_no_layer():
    image, layer = photo("none")
    outcome = run(image, [layer])
    true(outcome.good, outcome.message)
    equal((len(outcome.layers), len(image.get_layers())), (0, 1), "new layers, layers")


@check
def layers_smaller_than_a_face():
    for size in (1, 7, 16, 40):
        image = new_image(64, 64)
        layer = new_layer(image, size, size, b"\x80\x70\x60" * size * size)
        outcome = run(image, [layer])
        true(outcome.good, f"{size}: {outcome.message}")
        equal(len(image.get_layers()), 1, f"layers at {size}")


@check
def an_indexed_image_is_refused():
    image, layer = photo()
    image.convert_indexed(
        Gimp.ConvertDitherType.NONE, Gimp.ConvertPaletteType.GENERATE, 16, False, False, ""
    )
    outcome = run(image, [layer])
    equal(outcome.status, "EXECUTION_ERROR", "status")
    true("Image > Mode > RGB" in outcome.message, outcome.message)


@check
def a_channel_is_refused():
    image, _layer = photo()
    channel = Gimp.Channel.new_from_component(image, Gimp.ChannelType.RED, "red")
    image.insert_channel(channel, None, 0)
    outcome = run(image, [channel])
    equal(outcome.status, "EXECUTION_ERROR", "status")
    true("Select a layer" in outcome.message, outcome.message)


@check
def a_layer_of_24_megapixels():
    width, height, data = picture("face")
    image = new_image(6000, 4000)
    big = bytearray(b"\x60\x68\x70") * (6000 * 4000)
    for y in range(height):
        start = 3 * ((3000 + y) * 6000 + 4500)
        big[start : start + 3 * width] = data[3 * y * width : 3 * (y + 1) * width]
    layer = new_layer(image, 6000, 4000, bytes(big))
    (new,) = restored(image, [layer])
    x, y = offsets(new)
    true(4600 < x < 4800 and 3000 <= y < 3150, f"at {x, y}")
    true(new.get_width() < 400 and new.get_height() < 400, "too large")
    return f"{new.get_width()} x {new.get_height()} at {x, y}"
