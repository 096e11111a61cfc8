"""What the README shows for GIMP, run as it stands there."""

import re
import shutil
import subprocess

from gi.repository import Gimp, Gio
from suite import FOLDER, check, equal, photo, true


def block(language):
    """The README's code block in this language that is about GIMP."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (found,) = [one for one in blocks if "gimp" in one.lower()]
    return found


def save(name, path):
    image, _layer = photo(name)
    file = Gio.File.new_for_path(str(path))
    true(Gimp.file_save(Gimp.RunMode.NONINTERACTIVE, image, file, None), f"{path} is not saved")
    image.delete()


def layers_of(path):
    file = Gio.File.new_for_path(str(path))
    image = Gimp.file_load(Gimp.RunMode.NONINTERACTIVE, file)
    return image.get_layers()


@check
def the_readmes_script_over_a_folder():
    folder = FOLDER / "batch"
    (folder / "photos").mkdir(parents=True)
    save("face", folder / "photos" / "a portrait.jpg")
    save("none", folder / "photos" / "no face.jpg")
    (folder / "restore_folder.py").write_text(block("python"), encoding="utf-8")
    command = block("sh")
    series = "gimp-console-{}.{}".format(*Gimp.version().split(".")[:2])
    true(shutil.which(series), f"there is no {series}")
    command = command.replace("gimp-console-3.0", series)
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=300
    )
    equal(done.returncode, 0, f"status of {command}: {done.stdout[-500:]}{done.stderr[-500:]}")
    made = sorted(path.name for path in (folder / "photos").glob("*.xcf"))
    equal(made, ["a portrait.xcf", "no face.xcf"], "files made")
    top, _bottom = layers_of(folder / "photos" / "a portrait.xcf")
    true(top.get_name().startswith("Restored faces"), top.get_name())
    equal((round(top.get_opacity(), 3), top.get_mask() is not None), (80.0, True), "opacity, mask")
    equal(len(layers_of(folder / "photos" / "no face.xcf")), 1, "layers without a face")
    return ", ".join(made)
