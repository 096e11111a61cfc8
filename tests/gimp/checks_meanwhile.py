"""What a user does to the image while its faces are being restored: GIMP lets them."""

from contextlib import contextmanager

from gi.repository import Gimp
from restore_faces import job
from restore_faces import run as plugin
from restore_faces.errors import FaceRestoreError, sentence
from restore_faces.options import Settings
from restore_faces.worker import Worker
from suite import check, equal, new_layer, offsets, photo, switch, true


@contextmanager
def meanwhile(action):
    """The plug-in in this process; the action is taken when the worker has answered."""
    own = job.Session.restore

    def restore(*arguments):
        answer = own(*arguments)
        action()
        return answer

    job.Session.restore = restore
    try:
        with switch("instant"):
            yield
    finally:
        job.Session.restore = own


def place_after(action):
    """Where the new layer of a photograph lies when this was done to image and layer."""
    image, layer = photo()
    with meanwhile(lambda: action(image, layer)):
        (new,), _told = plugin.restore(image, [layer], Settings(), Worker())
    return offsets(new)


def refused_after(action):
    """What the user is told when this was done to image and layer; nothing is inserted."""
    image, layer = photo()
    new_layer(image, 8, 8, bytes(192), name="other")
    with meanwhile(lambda: action(image, layer)):
        try:
            plugin.restore(image, [layer], Settings(), Worker())
        except FaceRestoreError as error:
            text = sentence(error)
        else:
            raise AssertionError("it went on")
    true("nothing was inserted" in text and "again" in text, text)
    left = image.get_layers() if image.is_valid() else []
    true({one.get_name() for one in left} <= {"photo", "other"}, "a layer was inserted")
    return text


@check
def a_layer_moved_meanwhile():
    x, y = place_after(lambda image, layer: None)
    equal(place_after(lambda image, layer: layer.set_offsets(90, -30)), (x + 90, y - 30), "offsets")
    moved = place_after(lambda image, layer: image.resize(900, 800, 40, 70))
    equal(moved, (x + 40, y + 70), "offsets after the canvas grew")


@check
def a_layer_removed_meanwhile():
    return refused_after(lambda image, layer: image.remove_layer(layer))


@check
def an_image_closed_meanwhile():
    refused_after(lambda image, layer: image.delete())


@check
def an_image_scaled_or_cropped_meanwhile():
    refused_after(lambda image, layer: image.scale(256, 256))
    refused_after(lambda image, layer: image.crop(300, 300, 100, 100))


@check
def an_image_converted_meanwhile():
    def indexed(image, _layer):
        kind = Gimp.ConvertPaletteType.GENERATE
        image.convert_indexed(Gimp.ConvertDitherType.NONE, kind, 16, False, False, "")

    refused_after(indexed)
    refused_after(lambda image, layer: image.convert_grayscale())
