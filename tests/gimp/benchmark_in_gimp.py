"""Inside GIMP: seconds for each part of a click, and for GEGL's bare read and write."""

import json
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
    """One click, part by part, as run.restore does it."""
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


def measure(megapixels, faces):
    image, layer = scene(megapixels, faces)
    best = {}
    found = 0
    for _run in range(3):
        with Session(Worker(), lambda *_: None) as session:
            session.open()
            times, last = {}, [time.perf_counter()]

            def clock(name, times=times, last=last):
                now = time.perf_counter()
                times[name], last[0] = now - last[0], now

            done = click(image, layer, session, clock)
        times["whole"] = sum(times.values())
        times.update({f"  {stage}": seconds for stage, seconds in done.timings.items()})
        found = len(done.patches)
        if not best or times["whole"] < best["whole"]:
            best = times
    best["bare read and write"] = bare(image, layer, done.patches)
    image.delete()
    return {"megapixels": megapixels, "faces": found, "asked": faces, "seconds": best}


def bare(image, layer, patches):
    """GEGL's own time to read the layer as R'G'B' u8 and to write the patches as floats."""
    best = 1e9
    for _run in range(3):
        start = time.perf_counter()
        suite.whole(layer, "R'G'B' u8")
        for patch in patches:
            width, height = patch.rect.width, patch.rect.height
            kind = Gimp.ImageType.RGBA_IMAGE
            new = Gimp.Layer.new(image, "bare", width, height, kind, 100, Gimp.LayerMode.NORMAL)
            area = suite.rect(0, 0, width, height)
            new.get_buffer().set(area, "R'G'B' float", patch.rgb.tobytes())
            new.get_buffer().flush()
            new.delete()
        best = min(best, time.perf_counter() - start)
    return best


def main():
    Gegl.init(None)
    for megapixels in SIZES:
        for faces in (1, 5):
            suite.say("BENCH " + json.dumps(measure(megapixels, faces)))
    suite.say("END")


main()
