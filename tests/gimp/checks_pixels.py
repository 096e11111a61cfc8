"""Depths, colour models and profiles: the layer holds what the worker sent, to its precision."""

import functools
import operator

from gi.repository import Babl, Gimp
from suite import (
    GRAY,
    RGB,
    P,
    check,
    equal,
    exchange,
    floats,
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

# Steps of the format at its coarsest, as sRGB-encoded values; linear 8 bits are coarse in shadows.
STEP = {
    P.U8_NON_LINEAR: 1 / 255,
    P.U8_PERCEPTUAL: 1 / 255,
    P.U8_LINEAR: 13 / 255,
    P.U16_NON_LINEAR: 2e-5,
    P.U16_LINEAR: 3e-4,
    P.U32_NON_LINEAR: 1e-5,
    P.HALF_NON_LINEAR: 6e-4,
    P.HALF_LINEAR: 2e-3,
    P.FLOAT_NON_LINEAR: 1e-5,
    P.FLOAT_LINEAR: 1e-5,
    P.FLOAT_PERCEPTUAL: 1e-5,
    P.DOUBLE_LINEAR: 1e-5,
}
EIGHT = (P.U8_NON_LINEAR, P.U8_PERCEPTUAL)
FLOATS = (
    P.HALF_NON_LINEAR,
    P.HALF_LINEAR,
    P.FLOAT_NON_LINEAR,
    P.FLOAT_LINEAR,
    P.FLOAT_PERCEPTUAL,
    P.DOUBLE_LINEAR,
)


def compare(image, layer, precision, step=None):
    """Run the plug-in and compare the new layer with the worker's answer, pixel by pixel."""
    before = whole(layer)
    (new,) = restored(image, [layer])
    true(whole(layer) == before, "the source layer was changed")
    told = exchange()
    want = told.answer
    equal(told.request.image.dtype, "uint8" if precision in EIGHT else "uint16", "sent as")
    sent_off = compare_shown(layer, told)
    equal(len(want.patches), 1, "faces")
    equal(new.get_name(), "Restored faces · " + want.model, "name")
    patch = want.patches[0]
    x, y = offsets(new)
    x, y = x - patch.rect.x, y - patch.rect.y
    width, height = new.get_width(), new.get_height()
    true(x >= 0 and x + width <= patch.rect.width, "not within the worker's patch")
    got = floats(whole(new, "R'G'B' float"))
    mask = floats(whole(new.get_mask(), "Y float"))
    step = step or STEP[precision]
    worst = worst_mask = 0.0
    where = (0.0, 0.0)  # got and wanted where they differ most
    left_out = 0
    integers = precision not in FLOATS
    for row in range(height):
        start = (row + y) * patch.rect.width + x
        for i in range(width):
            worst_mask = max(worst_mask, abs(mask[row * width + i] - patch.mask[start + i]))
            theirs = patch.rgb[3 * (start + i) : 3 * (start + i) + 3]
            if integers and not (min(theirs) >= 0 and max(theirs) <= 1):
                left_out += 1  # integers end at 0 and 1
                continue
            ours = got[3 * (row * width + i) : 3 * (row * width + i) + 3]
            if layer.is_gray():
                ours, theirs = ours[:1], theirs[:1]
            for p, q in zip(ours, theirs, strict=True):
                if abs(p - q) > worst:
                    worst, where = abs(p - q), (p, q)
    true(left_out < 0.1 * width * height, f"{left_out} pixels beyond what integers hold")
    true(max(mask) > 0.9, "the mask shows nothing")
    true(worst_mask <= max(step, 1e-3), f"masks differ by {worst_mask}")
    true(worst <= step, f"pixels differ by {worst}, more than {step}: {where}")
    shown = sum(1 for m in patch.mask if m > step)
    true(sum(1 for m in mask if m > 0) >= shown > 1000, "a part of the mask is missing")
    true(parasite(new)["model"] == want.model, "parasite")
    return (
        f"pixels within {worst:.2g} (allowed {step:.2g}), mask within {worst_mask:.2g}, "
        f"shown to the model within {sent_off:.2g}"
    )


def compare_shown(layer, told):
    """What the model was shown is the layer in sRGB, to one step of what was sent."""
    own = floats(whole(layer, "Y' float" if layer.is_gray() else "R'G'B' float"))
    clipped = [min(1.0, max(0.0, value)) for value in own]
    equal(len(told.picture), len(clipped), "values sent")
    off = max(map(abs, map(operator.sub, told.picture, clipped)))
    allowed = 1.1 / (255 if told.request.image.dtype == "uint8" else 65535)
    true(off <= allowed, f"the model was shown the layer {off} off")
    return off


def depth(precision, base, alpha):
    image, layer = photo(precision=precision, base=base, alpha=alpha)
    return compare(image, layer, precision)


for _precision, _base, _alpha in (
    (P.U8_NON_LINEAR, RGB, False),
    (P.U8_NON_LINEAR, RGB, True),
    (P.U8_LINEAR, RGB, False),
    (P.U8_PERCEPTUAL, RGB, False),
    (P.U16_NON_LINEAR, RGB, False),
    (P.U16_LINEAR, RGB, True),
    (P.U32_NON_LINEAR, RGB, False),
    (P.HALF_NON_LINEAR, RGB, False),
    (P.HALF_LINEAR, RGB, False),
    (P.FLOAT_LINEAR, RGB, False),
    (P.FLOAT_NON_LINEAR, RGB, True),
    (P.FLOAT_PERCEPTUAL, RGB, False),
    (P.DOUBLE_LINEAR, RGB, False),
    (P.U8_NON_LINEAR, GRAY, False),
    (P.U8_NON_LINEAR, GRAY, True),
    (P.U16_NON_LINEAR, GRAY, False),
    (P.FLOAT_LINEAR, GRAY, False),
):
    _function = functools.partial(depth, _precision, _base, _alpha)
    _function.__name__ = "depth_{}_{}{}".format(
        _precision.value_nick, _base.value_nick, "_alpha" if _alpha else ""
    )
    check(_function)


def adobe(precision):
    image, layer = photo(precision=precision, profile=Gimp.ColorProfile.new_rgb_adobe())
    # babl approximates AdobeRGB's power curve; in the shadows it is off by less than 1e-3.
    return compare(image, layer, precision, max(1e-3, 2 * STEP[precision]))


@check
def adobe_rgb_8_bit():
    return adobe(P.U8_NON_LINEAR)


@check
def adobe_rgb_16_bit():
    return adobe(P.U16_NON_LINEAR)


@check
def adobe_rgb_float_linear():
    return adobe(P.FLOAT_LINEAR)


@check
def adobe_rgb_out_of_srgb_is_not_clipped():
    """The photograph's numbers taken for AdobeRGB: its reds and blues then lie outside sRGB."""
    width, height, data = picture("face")
    image = new_image(width, height, P.FLOAT_NON_LINEAR, RGB, Gimp.ColorProfile.new_rgb_adobe())
    # More saturated still: every second difference to green doubled, within the bytes' range.
    data = bytearray(data)
    red = [min(255, max(0, 2 * r - g)) for r, g in zip(data[0::3], data[1::3], strict=True)]
    data[0::3] = bytes(red)
    layer = new_layer(image, width, height, bytes(4 * 3 * width * height), form="R'G'B' float")
    native = layer.get_format()
    name = Babl.get_name(native)
    true("space" in name, f"no space in {name}")
    eight = name.replace("float", "u8")
    layer.get_buffer().set(rect(0, 0, width, height), eight, bytes(data))
    original = floats(whole(layer, "R'G'B' float"))
    true(max(original) > 1.02, "the test picture lies within sRGB")
    (new,) = restored(image, [layer])
    dx, dy = offsets(new)
    got = floats(whole(new, "R'G'B' float"))
    mask = floats(whole(new.get_mask(), "Y float"))
    own_space = floats(whole(new, name))
    beyond = kept = left_out = 0
    worst, where = 0.0, ()
    new_width = new.get_width()
    want = exchange().answer.patches[0]
    for i in range(new_width * new.get_height()):
        x, y = i % new_width + dx, i // new_width + dy
        if min(own_space[3 * i : 3 * i + 3]) <= 1e-4:
            # babl's power curve ends at 0, one of its ways at 4e-6: AdobeRGB holds no such colour.
            left_out += 1
            continue
        theirs = 3 * ((y - want.rect.y) * want.rect.width + x - want.rect.x)
        for c in range(3):
            own = original[3 * (y * width + x) + c]
            clipped = min(1.0, max(0.0, own))
            right = want.rgb[theirs + c] + own - clipped
            if abs(got[3 * i + c] - right) > worst:
                worst = abs(got[3 * i + c] - right)
                where = (got[3 * i + c], right, own, own_space[3 * i : 3 * i + 3])
            if own > 1.0 or own < 0.0:
                beyond += 1
                kept += (got[3 * i + c] > 1.0) if own > 1.0 else (got[3 * i + c] < 0.0)
    true(left_out < 0.3 * new_width * new.get_height(), f"{left_out} pixels outside AdobeRGB")
    true(beyond > 500, f"only {beyond} values outside sRGB under the patch")
    true(worst < 1e-3, f"differs by {worst} from restored + (original - clipped): {where}")
    true(max(mask) > 0.9, "mask")
    return f"{beyond} values outside sRGB under the patch, {kept} still outside, off by {worst:.2g}"


@check
def transparent_parts_stay_transparent():
    """A face cut out of its background: nothing appears where the layer is clear."""
    image, layer = photo(alpha=True)
    width, height, data = picture("face")
    rgba = bytearray(b"\xff") * (4 * width * height)
    for c in range(3):
        rgba[c::4] = data[c::3]
    for y in range(height):
        rgba[4 * y * width + 3 : 4 * (y * width + 215) : 4] = bytes(215)
    layer.get_buffer().set(rect(0, 0, width, height), "R'G'B'A u8", bytes(rgba))
    (new,) = restored(image, [layer])
    x, _y = offsets(new)
    true(x >= 215, f"the new layer begins at {x}, where the source is clear")
    true(x < width, "beside the picture")


@check
def an_erased_face_is_no_face():
    image, layer = photo(alpha=True)
    width, height = layer.get_width(), layer.get_height()
    _w, _h, data = picture("face")
    rgba = bytearray(4 * width * height)
    for c in range(3):
        rgba[c::4] = data[c::3]
    layer.get_buffer().set(rect(0, 0, width, height), "R'G'B'A u8", bytes(rgba))
    outcome = run(image, [layer])
    true(outcome.good, outcome.message)
    equal(len(image.get_layers()), 1, "layers")


@check
def gray_pixels_in_rgb_stay_neutral():
    width, height, data = picture("face")
    image = new_image(width, height, P.FLOAT_NON_LINEAR)
    gray = bytearray(len(data))
    for c in range(3):
        gray[c::3] = data[1::3]
    layer = new_layer(image, width, height, bytes(gray))
    (new,) = restored(image, [layer])
    got = floats(whole(new, "R'G'B' float"))
    spread = max(
        max(abs(r - g), abs(b - g)) for r, g, b in zip(got[0::3], got[1::3], got[2::3], strict=True)
    )
    true(spread < 1e-4, f"a tint of {spread}")
    return f"largest tint {spread:.2g}"
