"""The frame of the checks inside GIMP: registration, images, runs of the plug-in, comparisons."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from array import array
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import gi

gi.require_version("Gimp", "3.0")
gi.require_version("Gegl", "0.4")
from gi.repository import Babl, Gegl, Gimp  # noqa: E402

FOLDER = Path(os.environ["FACE_RESTORE_SUITE"])
PLUGIN = FOLDER / "profile" / "plug-ins" / "face_restore"
sys.path.insert(0, str(PLUGIN))
from restore_faces import bundled  # noqa: E402

bundled.prepare(PLUGIN)
from face_restore_shared import connection, paths, wire  # noqa: E402
from face_restore_shared.schema import RestoreRequest, RestoreResult  # noqa: E402
from restore_faces import job  # noqa: E402
from restore_faces.job import Restored  # noqa: E402
from restore_faces.worker import Worker  # noqa: E402

CHECKS = []
P = Gimp.Precision
RGB, GRAY = Gimp.ImageBaseType.RGB, Gimp.ImageBaseType.GRAY


def check(function):
    """Register a check; it fails by raising."""
    CHECKS.append(function)
    return function


def say(line):
    """One line of the report; the host reads what begins with CHECK."""
    with (FOLDER / "report").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def main():
    Gegl.init(None)
    wanted = os.environ.get("FACE_RESTORE_ONLY", "")
    for function in CHECKS:
        name = function.__name__
        if wanted and wanted not in name:
            continue
        start = time.monotonic()
        try:
            detail = function() or ""
            outcome = "ok"
        except Exception as error:
            traceback.print_exc()
            outcome, detail = "FAILED", f"{type(error).__name__}: {error}"
        for image in Gimp.get_images():
            image.delete()
        took = time.monotonic() - start
        detail = str(detail).replace("\n", " | ")
        say(f"CHECK {outcome} {name} ({took:.1f} s) {detail}".rstrip())
    say("END")


def equal(got, wanted, what="value"):
    if got != wanted:
        raise AssertionError(f"{what}: {got!r}, expected {wanted!r}")


def true(value, what):
    if not value:
        raise AssertionError(what)


# -- pictures and images ------------------------------------------------------------------------


def picture(name):
    """Width, height and R'G'B' u8 bytes of a picture the host has put here."""
    head, data = (FOLDER / f"{name}.rgb").read_bytes().split(b"\n", 1)
    width, height = map(int, head.split())
    return width, height, data


def rect(x, y, width, height):
    return Gegl.Rectangle.new(x, y, width, height)


def get(drawable, x, y, width, height, form):
    area = rect(x, y, width, height)
    return drawable.get_buffer().get(area, 1.0, form, Gegl.AbyssPolicy.NONE)


def whole(drawable, form=None):
    form = form or native(drawable)
    return get(drawable, 0, 0, drawable.get_width(), drawable.get_height(), form)


def native(drawable):
    return Babl.get_name(drawable.get_format())


def floats(data):
    values = array("f")
    values.frombytes(data)
    return values


def new_image(width, height, precision=P.U8_NON_LINEAR, base=RGB, profile=None):
    image = Gimp.Image.new_with_precision(width, height, base, precision)
    if profile is not None:
        image.set_color_profile(profile)
    return image


def new_layer(image, width, height, data, alpha=False, name="photo", form="R'G'B' u8", at=(0, 0)):
    gray = image.get_base_type() == GRAY
    kinds = Gimp.ImageType
    kind = (kinds.GRAYA_IMAGE if alpha else kinds.GRAY_IMAGE) if gray else (
        kinds.RGBA_IMAGE if alpha else kinds.RGB_IMAGE)  # fmt: skip
    layer = Gimp.Layer.new(image, name, width, height, kind, 100, Gimp.LayerMode.NORMAL)
    layer.set_offsets(*at)
    image.insert_layer(layer, None, 0)
    layer.get_buffer().set(rect(0, 0, width, height), form, data)
    return layer


def photo(name="face", precision=P.U8_NON_LINEAR, base=RGB, profile=None, alpha=False):
    """An image with one layer that holds the picture."""
    width, height, data = picture(name)
    image = new_image(width, height, precision, base, profile)
    return image, new_layer(image, width, height, data, alpha)


def new_group(image, name="group", parent=None):
    group = Gimp.GroupLayer.new(image, name)
    image.insert_layer(group, parent, 0)
    return group


def grouped(inverted=False):
    """An image, its one group, and the layer in it that holds the face; or its negative."""
    width, height, data = picture("face")
    image = new_image(width, height)
    group = new_group(image)
    data = bytes(255 - value for value in data) if inverted else data
    layer = new_layer(image, width, height, data)
    image.reorder_item(layer, group, 0)
    return image, group, layer


def add_filter(drawable, name, **values):
    """A non-destructive filter, above the drawable's others."""
    effect = Gimp.DrawableFilter.new(drawable, name, name)
    for key, value in values.items():
        effect.get_config().set_property(key, value)
    drawable.append_filter(effect)
    return effect


# -- running ------------------------------------------------------------------------------------


class Outcome:
    def __init__(self, status, layers, message):
        self.status, self.layers, self.message = status, layers, message

    @property
    def good(self):
        return self.status == "SUCCESS"


def run(image, layers, **options):
    """Run the plug-in without a dialog."""
    procedure = Gimp.get_pdb().lookup_procedure("plug-in-face-restore")
    true(procedure, "plug-in-face-restore is not registered")
    config = procedure.create_config()
    config.set_property("run-mode", Gimp.RunMode.NONINTERACTIVE)
    config.set_property("image", image)
    config.set_core_object_array("drawables", list(layers))
    for name, value in options.items():
        config.set_property(name.replace("_", "-"), value)
    before = image.get_layers() if image.is_valid() else []
    result = procedure.run(config)
    status = Gimp.PDBStatusType(int(result.index(0))).value_nick.upper().replace("-", "_")
    message = Gimp.get_pdb().get_last_error() if status != "SUCCESS" else ""
    made = []
    if status == "SUCCESS" and result.length() > 1:
        made = list(result.get_core_object_array(1))
    del before
    return Outcome(status, made, message)


def restored(image, layers, **options):
    """As run, which must succeed with one new layer for each given."""
    outcome = run(image, layers, **options)
    true(outcome.good, f"{outcome.status}: {outcome.message}")
    equal(len(outcome.layers), len(layers), "new layers")
    return outcome.layers


def worker_status():
    procedure = Gimp.get_pdb().lookup_procedure("plug-in-face-restore-status")
    text = procedure.run(procedure.create_config()).index(1)
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


@dataclass
class Exchange:
    """What the worker was sent and what it answered, as recording_worker.py saw it.

    picture: (height, width, channels) values in [0, 1], flat.
    """

    request: RestoreRequest
    picture: array
    answer: Restored


def exchange():
    """The plug-in's last exchange with the worker: the checks compare with this very answer.

    Asking the worker again would not do. babl chooses among its conversions by timing them, so
    two processes may read one layer with 16-bit values that differ by one, and the face is then
    found a hundredth of a pixel beside.
    """
    file = FOLDER / "home" / "suite" / "last.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    data = memoryview(file.with_suffix(".bin").read_bytes())
    file.unlink()  # of this run, never of an earlier one
    views, start = [], 0
    for size in told["sent"] + told["answered"]:
        views.append(data[start : start + size])
        start += size
    request = RestoreRequest.from_wire(told["request"])
    result = RestoreResult.from_wire(told["result"])
    answered = [wire.Buffer([view], view.nbytes) for view in views[len(told["sent"]) :]]
    picture = job.floats(wire.Buffer(views[:1], views[0].nbytes), request.image.dtype)
    return Exchange(request, picture, job.restored(result, answered))


def offsets(item):
    _ok, x, y = item.get_offsets()
    return x, y


def parasite(layer):
    return json.loads(bytes(layer.get_parasite("face-restore").get_data()))


def looks_like_the_face(new):
    """The new layer's middle is about as bright as the picture there; its negative is not."""
    width, _height, data = picture("face")
    x, y = offsets(new)
    cx, cy = new.get_width() // 2, new.get_height() // 2
    got = get(new, cx, cy, 1, 1, "R'G'B' u8")
    at = 3 * ((y + cy) * width + x + cx)
    far = max(abs(a - b) for a, b in zip(got, data[at : at + 3], strict=True))
    true(far < 60, f"the middle of the face is {list(got)}, {far} away from the picture's")


def alpha_is_the_mask_of(baked, masked):
    """One layer's alpha is what the other has as a mask, to 1/255."""
    true(baked.get_mask() is None, "there is a mask")
    soft = floats(whole(masked.get_mask(), "Y float"))
    alpha = floats(whole(baked, "A float"))
    equal(len(alpha), len(soft), "size")
    worst = max(abs(a - b) for a, b in zip(alpha, soft, strict=True))
    true(worst < 1 / 255, f"alpha differs from the mask by {worst}")


# -- the worker ---------------------------------------------------------------------------------


def worker_connection():
    return connection.read(paths.connection_file())


def wait_for(condition, what, seconds=90.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def state():
    """The worker's status, asked for directly; None when none answers."""
    from restore_faces import status

    answer = status.query(Worker())
    return answer[0] if answer else None


def kill_worker():
    """Kill the worker with SIGKILL; returns when it has ended (its parent may not have noticed)."""
    pid = worker_connection().pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: ended(pid), "the worker's end")
    return pid


def ended(pid):
    """Whether the process is gone, or is left only as a status for its parent to ask for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"


@contextmanager
def switch(name):
    """A switch of recording_worker.py ("hold", "instant"), on within the block."""
    file = FOLDER / "home" / "suite" / name
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


TRACE = FOLDER / "home" / "suite" / "trace"


def traced(word):
    """The lines of recording_worker.py's trace that begin with this, since it was emptied."""
    lines = TRACE.read_text().splitlines() if TRACE.exists() else []
    return [line for line in lines if line.startswith(word)]


def faces_begun():
    """The faces that the worker has begun; none from now on."""
    lines = traced("face")
    TRACE.unlink(missing_ok=True)
    return lines


@contextmanager
def installed_with(text=None, **values):
    """The plug-in with another settings file, or with other values in it, within the block."""
    file = PLUGIN / bundled.PATHS_FILE
    right = file.read_bytes()
    file.write_text(json.dumps({**json.loads(right), **values}) if text is None else text)
    try:
        yield
    finally:
        file.write_bytes(right)


@contextmanager
def connection_with(**values):
    """The plug-in finding a connection file with other values, within the block.

    It lies in a folder of its own: the worker mends its file when somebody changes it.
    """
    folder = FOLDER / "elsewhere"
    folder.mkdir(mode=0o700, exist_ok=True)
    connection.write(folder / "worker.json", replace(worker_connection(), **values))
    with installed_with(state_dir=str(folder)):
        yield


class Meanwhile:
    """Does something in a thread while the plug-in runs; its failure fails the check."""

    def __init__(self, action):
        self._action, self._error = action, None
        self._thread = threading.Thread(target=self._go, daemon=True)

    def _go(self):
        try:
            self._action()
        except Exception as error:
            self._error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._thread.join(120)
        if exc[0] is None:
            true(not self._thread.is_alive(), "what was to be done meanwhile goes on")
        if self._error is not None and exc[0] is None:
            raise self._error
