"""Inside GIMP: seconds for each part of a click, and for GEGL's bare read and write."""

import json
import os
import statistics
import time

import suite
from gi.repository import Gegl, Gimp
from restore_faces import blend, layers, pixels
from restore_faces.job import Session
from restore_faces.layers import Result
from restore_faces.options import Settings
from restore_faces.worker import Worker

SIZES = {2: (1600, 1250), 12: (4000, 3000), 24: (6000, 4000)}
PLACES = [(0.02, 0.05), (0.36, 0.05), (0.68, 0.05), (0.02, 0.55), (0.36, 0.55)]


def scene(megapixels, faces):
    """An image of a size with some copies of the photograph on gray."""
    width, height = SIZES[megapixels]
    w, h, data = suite.picture("face")
    image = suite.new_image(width, height)
    layer = suite.new_layer(image, width, height, b"\x60\x68\x70" * (width * height))
    for x, y in PLACES[:faces]:
        area = suite.rect(int(x * width), int(y * height), w, h)
        layer.get_buffer().set(area, "R'G'B' u8", data)
    layer.get_buffer().flush()
    return image, layer


def click(image, layer, session, clock):
    """One click, part by part, as run.restore does it; a large layer is read while it is sent."""
    settings = Settings()
    with pixels.opened(image, layer) as source:
        picture, _region = pixels.read(image, source, True)
        clock("read")
        done = session.restore(picture, settings.detect_options(), settings.restore_options())
        clock("worker and transfer")
        patches = []
        for patch in done.patches:
            patch = blend.trim(patch)
            pixels.finish(source, patch)
            patches.append(patch)
        clock("fit")
        result = Result(source, patches, done.model, done.model_id, done.device, done.notes)
        layers.write(image, [result], settings)
        clock("write")
    return done


def measure(megapixels, faces, runs):
    """Medians of some clicks; the bare read and write takes turns with them."""
    image, layer = scene(megapixels, faces)
    clicks, bares = [], []
    for run in range(runs + 1):  # the first one is not counted
        with Session(Worker(), lambda *_: None) as session:
            session.open()
            times, last = {}, [time.perf_counter()]

            def clock(name, times=times, last=last):
                now = time.perf_counter()
                times[name], last[0] = now - last[0], now

            done = click(image, layer, session, clock)
        times["whole"] = sum(times.values())
        # identity_worker.py adds "job"; its stages may overlap, so their sum says nothing.
        times["reading, transfer"] = times.pop("worker and transfer") - done.timings["job"]
        times.update({f"worker: {stage}": value for stage, value in done.timings.items()})
        times["whole but detecting"] = times["whole"] - done.timings["detecting"]
        bare_times = bare(image, layer, done.patches)
        if run:
            clicks.append(times)
            bares.append(bare_times)
        undo_all(image, layer)
    seconds = {name: statistics.median(one[name] for one in clicks) for name in clicks[0]}
    for name in bares[0]:
        seconds[name] = statistics.median(one[name] for one in bares)
    image.delete()
    return {
        "megapixels": megapixels, "faces": len(done.patches), "asked": faces, "seconds": seconds,
    }  # fmt: skip


def undo_all(image, layer):
    for other in image.get_layers():
        if other != layer:
            image.remove_layer(other)


def bare(image, layer, patches):
    """GEGL's own time to read the layer as R'G'B' u8 and to write the patches, or all of it."""
    start = time.perf_counter()
    data = suite.whole(layer, "R'G'B' u8")
    read = time.perf_counter() - start
    start = time.perf_counter()
    for patch in patches:
        size = patch.rect.width, patch.rect.height
        write(image, *size, "R'G'B' float", patch.rgb.tobytes())
    patches_written = time.perf_counter() - start
    start = time.perf_counter()
    write(image, layer.get_width(), layer.get_height(), "R'G'B' u8", data)
    all_written = time.perf_counter() - start
    return {
        "bare read": read,
        "bare read, write of the patches": read + patches_written,
        "bare read, write of all": read + all_written,
    }


def write(image, width, height, form, data):
    kind = Gimp.ImageType.RGBA_IMAGE
    new = Gimp.Layer.new(image, "bare", width, height, kind, 100, Gimp.LayerMode.NORMAL)
    new.get_buffer().set(suite.rect(0, 0, width, height), form, data)
    new.get_buffer().flush()
    new.delete()


def main():
    Gegl.init(None)
    runs = int(os.environ["FACE_RESTORE_RUNS"])
    for megapixels in map(int, os.environ["FACE_RESTORE_SIZES"].split(",")):
        for faces in (1, 5):
            suite.say("BENCH " + json.dumps(measure(megapixels, faces, runs)))
    suite.say("END")


main()
