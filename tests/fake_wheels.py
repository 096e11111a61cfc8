"""Small wheels for offline tests of the bundle: real files in pip's eyes, nothing in them."""

from __future__ import annotations

import base64
import hashlib
import shutil
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = "face_restore_worker/gimp/face_restore/face_restore.py"
# What bootstrap.py tries to import to see whether an environment is whole.
PARTS = ("cv2", "msgpack", "numpy", "onnx", "pyvips", "zmq", "facexlib", "torchvision")
COMMAND = """\
import os, pathlib, sys
def main():
    with open(os.environ["FAKE_COMMAND_LOG"], "a") as file:
        file.write(" ".join(sys.argv[1:]) + "\\n")
    return int(os.environ.get("FAKE_STATUS_" + sys.argv[1].upper(), "0"))
"""


def make_wheel(
    folder: Path, name: str, version: str, files: dict[str, str], scripts: str = ""
) -> Path:
    """A wheel py3-none-any. files: path to text. scripts: lines "command = module:function"."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    tags = "Root-Is-Purelib: true\nTag: py3-none-any\n"
    contents = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\n{tags}",
    }
    if scripts:
        contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}\n"
    rows = []
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{path},sha256={digest.decode()},{len(text.encode())}")
    contents[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return wheel


def project_wheel(folder: Path, version: str, has_plugin: bool = True) -> Path:
    """A wheel named as ours; its command writes down how it was called."""
    files = {"face_restore_worker/__init__.py": "", "face_restore_worker/command.py": COMMAND}
    if has_plugin:
        files[PLUGIN] = "# the plug-in\n"
    script = "face-restore = face_restore_worker.command:main"
    return make_wheel(folder, "gimp_face_restore", version, files, script)


def package_source(folder: Path) -> Path:
    """A folder of wheels for pip's --find-links: torch and one with all other parts."""
    make_wheel(folder, "torch", "2.13.0+cpu", {"torch/__init__.py": ""})
    make_wheel(folder, "parts", "1.0", {f"{part}/__init__.py": "" for part in PARTS})
    make_wheel(folder, "unwanted", "1.0", {"unwanted.py": ""})
    return folder


def installer(folder: Path) -> Path:
    """The real bootstrap.py with pins on those wheels."""
    (folder / "locks").mkdir(parents=True)
    for name in ("bootstrap.py", "pinned.py"):
        shutil.copyfile(ROOT / "installer" / name, folder / name)
    (folder / "locks" / "runtime.txt").write_text("# pins\nparts==1.0\n")
    for name in ("demo", "dev"):
        (folder / "locks" / f"{name}.txt").write_text("# none\n")
    return folder
