"""Inside a GIMP with a window: shows a picture and tells what layers there are, until told to
stop; then GIMP ends, as it does for a user, without asking about what was not saved."""

import json
import os
import time
from pathlib import Path

import gi

gi.require_version("Gimp", "3.0")
from gi.repository import Gimp, Gio  # noqa: E402

FOLDER = Path(os.environ["FACE_RESTORE_SUITE"])


def layers(image):
    found = []
    for layer in image.get_layers():
        mask = layer.get_mask() is not None
        found.append([layer.get_name(), layer.get_opacity(), mask])
    return found


def main():
    file = Gio.File.new_for_path(str(FOLDER / os.environ["FACE_RESTORE_PICTURE"]))
    image = Gimp.file_load(Gimp.RunMode.NONINTERACTIVE, file)
    Gimp.Display.new(image)
    state = FOLDER / "layers.json"
    while not (FOLDER / "stop").exists():
        part = state.with_suffix(".part")
        part.write_text(json.dumps(layers(image)))
        part.rename(state)
        time.sleep(0.2)
    quit_gimp = Gimp.get_pdb().lookup_procedure("gimp-quit")
    config = quit_gimp.create_config()
    config.set_property("force", True)
    quit_gimp.run(config)


main()
