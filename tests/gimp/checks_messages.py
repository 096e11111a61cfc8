"""What a retoucher is told: what is wrong, with the right thing named, and what to do next."""

from contextlib import contextmanager
from dataclasses import replace

from gi.repository import Gimp
from restore_faces import job
from restore_faces import run as plugin
from restore_faces.errors import FaceRestoreError, sentence
from restore_faces.options import Settings
from restore_faces.worker import Worker
from suite import check, equal, new_image, new_layer, photo, switch, true


def told(image, layer):
    """The message of a run that makes no layer."""
    before = len(image.get_layers())
    try:
        plugin.restore(image, [layer], Settings(), Worker())
    except FaceRestoreError as error:
        true(len(image.get_layers()) == before, "a layer was made")
        return sentence(error)
    raise AssertionError("a layer was made")


def expect(text, *parts):
    for part in parts:
        true(part in text, f"{part!r} is not in: {text}")


@check
def a_selection_smaller_than_any_face():
    image, layer = photo()
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 230, 120, 1, 1)
    expect(told(image, layer), "The selection on", "Select the whole face")


@check
def a_selection_within_a_face():
    """The face's centre is selected, but what is searched holds no whole face."""
    image, layer = photo()
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 225, 115, 20, 20)
    expect(told(image, layer), "in the selection", "select whole faces")


@check
def a_layer_smaller_than_any_face():
    image = new_image(600, 600)
    layer = new_layer(image, 15, 500, bytes(3 * 15 * 500))
    expect(told(image, layer), "too few pixels", "15 × 500", "larger layer")


@check
def a_layer_wider_than_the_worker_takes():
    image = new_image(600, 600)
    layer = new_layer(image, 70_000, 20, bytes(3 * 70_000 * 20))
    expect(told(image, layer), "too many pixels", "70000 × 20", "Select the part with the faces")


@check
def a_floating_selection():
    image, layer = photo()
    Gimp.edit_copy([layer])
    floating = Gimp.edit_paste(layer, True)
    for one in (layer, *floating):
        expect(told(image, one), "floating selection", "Anchor Floating Layer or Mask")


@contextmanager
def worker_that_notes(*notes):
    """The worker's answers come with these notes besides its own."""
    own = job.Session.restore

    def restore(*arguments):
        answer = own(*arguments)
        return replace(answer, notes=(*notes, *answer.notes))

    job.Session.restore = restore
    try:
        yield
    finally:
        job.Session.restore = own


@check
def what_the_worker_notes_is_told():
    note = "Face 2 was left alone: it lies outside the picture."
    image, layer = photo()
    with switch("instant"), worker_that_notes(note, note):
        _made, messages = plugin.restore(image, [layer], Settings(), Worker())
    equal(messages, [note], "messages")
    image, layer = photo("none")
    with worker_that_notes("Faces from 40 pixels only."):
        expect(told(image, layer), "No face was found", "Faces from 40 pixels only.")
