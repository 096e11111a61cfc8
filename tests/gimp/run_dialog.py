"""The plug-in's dialog in a real window: opened, a value changed, run, the layer seen, undone.

    python tests/gimp/run_dialog.py [--gimp 3.0|3.2] [--screenshots FOLDER] [--language de]

GIMP runs under Xvfb in the system that run_suite.py uses, driven with xdotool.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import run_suite

SECONDS = 120.0
MAIN = "layers?\\) .*GIMP$"
DISPLAY_SIZE = "1280x960x24"
GIMPRC = """(show-welcome-dialog no)
(check-updates no)
"""


class Failed(Exception):
    """What was to be seen did not come."""


class Screen:
    """An X server in the other system, and the windows on it."""

    def __init__(self, root: Path, outside: Path, inside: Path) -> None:
        self._root, self._outside, self._inside = root, outside, inside
        self.name = f":{90 + os.getpid() % 400}"
        # As for run_suite.gimp: an environment of its own.
        need_window_manager(root)
        self._server = self.start(
            "Xvfb", self.name, "-screen", "0", DISPLAY_SIZE, "-nolisten", "tcp"
        )

        time.sleep(2)
        # Without a window manager no window gets the keyboard.
        self._manager = self.start("openbox")

    def start(self, *command: str, **extra: str) -> subprocess.Popen[bytes]:
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self._inside),
            "DISPLAY": self.name,
            "LC_ALL": "C.UTF-8",
            **extra,
        }
        out = (self._outside / "screen.out").open("ab")
        settings = [f"{name}={value}" for name, value in env.items()]
        return subprocess.Popen(
            ["chroot", str(self._root), "env", "-i", *settings, *command],
            stdout=out,
            stderr=out,
        )  # fmt: skip

    def ask(self, *command: str) -> str:
        """The output of a command on this screen; "" when it fails."""
        done = subprocess.run(
            ["chroot", str(self._root), "env", f"DISPLAY={self.name}", *command],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def window(self, title: str, seconds: float = SECONDS) -> str:
        """The visible window whose title matches, waited for."""

        def find() -> str:
            return self.ask("xdotool", "search", "--onlyvisible", "--name", title)

        return eventually(find, f"a window {title!r}", seconds).splitlines()[-1]

    def keys(self, window: str, *keys: str) -> None:
        self.ask("xdotool", "windowactivate", "--sync", window)
        self.ask("xdotool", "key", "--delay", "60", *keys)

    def type(self, text: str) -> None:
        self.ask("xdotool", "type", "--delay", "40", text)

    def screenshot(self, name: str) -> None:
        self.ask("import", "-window", "root", str(self._inside / f"{name}.png"))

    def close(self) -> None:
        for process in (self._manager, self._server):
            process.terminate()
            process.wait()


def need_window_manager(root: Path) -> None:
    """Install one in the other system where it is missing; GIMP itself does not need it."""
    if not (root / "usr/bin/openbox").exists():
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "openbox"]
        env = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
        subprocess.run(["chroot", str(root), *env, *install], check=True, capture_output=True)


def eventually(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.3)
    raise Failed(f"not within {seconds:.0f} s: {what}")


def save_photo(outside: Path) -> None:
    from PIL import Image
    from skimage import data

    Image.fromarray(data.astronaut()).save(outside / "face.png")


@contextlib.contextmanager
def session(version: str, keep: bool, language: str) -> Iterator[tuple[Screen, Path, Path]]:
    """GIMP with the photograph open, on a screen, with a worker."""
    import gimp_root

    root = gimp_root.ensure(version)
    outside = Path(tempfile.mkdtemp(prefix="face-restore-dialog-", dir=root / "tmp"))
    inside = Path("/") / outside.relative_to(root)
    (outside / "home").mkdir(mode=0o700)
    workers = screen = process = None
    try:
        run_suite.prepare(outside, inside)
        save_photo(outside)
        (outside / "profile" / "gimprc").write_text(GIMPRC)
        workers = run_suite.Workers(outside / "home", outside / "start-worker")
        run_suite.wait_until(
            (outside / "home" / "state" / "worker.json").exists, run_suite.START_SECONDS
        )
        screen = Screen(root, outside, inside)
        time.sleep(1)
        process = screen.start(
            f"gimp-{version}", "-n", "-s", "--batch-interpreter=python-fu-eval",
            "-b", f"exec(open({str(inside / 'window.py')!r}).read())",
            GIMP3_DIRECTORY=str(inside / "profile"),
            FACE_RESTORE_HOME=str(inside / "home"),
            FACE_RESTORE_SUITE=str(inside),
            LANGUAGE=language,
        )  # fmt: skip
        yield screen, outside, inside
    finally:
        (outside / "stop").touch()
        for one in (process, screen, workers):
            if isinstance(one, subprocess.Popen):
                time.sleep(1)
                one.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.wait(10)
                one.kill()
            elif one is not None:
                one.close()
        if keep:
            print(f"kept: {outside}")
        else:
            shutil.rmtree(outside, ignore_errors=True)


def layers(outside: Path) -> list[Any]:
    file = outside / "layers.json"
    return json.loads(file.read_text()) if file.exists() else []


def say(text: str) -> None:
    print(f"ok {text}", flush=True)


def drive(screen: Screen, outside: Path, language: str) -> None:
    """The whole way of a user; raises Failed."""
    title, strength, restore, menu = {
        "en": ("^Restore Faces$", "alt+g", "alt+o", "f"),
        "de": ("^Gesichter wiederherstellen$", "alt+k", "alt+w", "g"),
    }[language]
    eventually(lambda: len(layers(outside)) == 1, "the photograph")
    time.sleep(6)
    with contextlib.suppress(Failed):
        screen.keys(screen.window("^Welcome", 3), "Escape")
    screen.keys(screen.window(MAIN), "alt+r")  # the menu Filters, then Enhance
    time.sleep(2)
    screen.ask("xdotool", "key", "h")
    time.sleep(2)
    screen.screenshot("menu")
    screen.ask("xdotool", "key", menu)
    dialog = screen.window(title)
    say("opened from GIMP's menus")
    if "duplicate mnemonic" in (outside / "screen.out").read_text(errors="replace"):
        raise Failed("two of the dialog's mnemonics are the same")
    time.sleep(4)
    screen.screenshot("dialog-at-first")
    # The strength's mnemonic puts the cursor into its number.
    screen.keys(dialog, strength)
    screen.ask("xdotool", "key", "ctrl+a")
    screen.type("70")
    screen.ask("xdotool", "key", "Tab")
    time.sleep(1)
    screen.screenshot("dialog")
    screen.keys(dialog, restore)
    for number in range(4):
        time.sleep(0.4)
        screen.screenshot(f"progress-{number}")
    eventually(lambda: len(layers(outside)) == 2, "the new layer")
    name, opacity, mask = layers(outside)[0]
    if not (name.startswith(("Restored faces · ", "Wiederhergestellte")) and mask):
        raise Failed(f"the new layer is {name!r}, mask {mask}")
    if abs(opacity - 70) > 0.5:
        raise Failed(f"its opacity is {opacity}, not the 70 typed")
    say(f"run with a changed value: {name!r} at {opacity:.0f} %")
    time.sleep(3)
    screen.screenshot("result")
    screen.keys(screen.window(MAIN), "ctrl+z")
    eventually(lambda: len(layers(outside)) == 1, "one layer after one undo", 20)
    time.sleep(1)
    if len(layers(outside)) != 1:
        raise Failed("undone more than once")
    say("one undo step removes it")
    screen.keys(screen.window(MAIN), "ctrl+y")
    eventually(lambda: len(layers(outside)) == 2, "two layers after redo", 20)
    say("redo brings it back")
    screen.keys(screen.window(MAIN), "ctrl+f")
    eventually(lambda: len(layers(outside)) == 3, "a third layer after Repeat")
    say(f"Repeat uses the last values: {layers(outside)[0][1]:.0f} %")
    if abs(layers(outside)[0][1] - 70) > 0.5:
        raise Failed("Repeat did not use the last strength")


def run(version: str, keep: bool, shots: Path | None, language: str) -> bool:
    """Run it; whether all was as it should be."""
    with session(version, keep, language) as (screen, outside, _inside):
        try:
            drive(screen, outside, language)
            good = True
        except Failed as error:
            screen.screenshot("failed")
            print(f"FAILED {error}")
            print((outside / "screen.out").read_text(errors="replace")[-3000:])
            good = False
        if shots is not None:
            shots.mkdir(parents=True, exist_ok=True)
            for file in outside.glob("*.png"):
                shutil.copy(file, shots)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gimp", default="3.0", choices=["3.0", "3.2"])
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--language", default="en", choices=["en", "de"])
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    good = run(options.gimp, options.keep, options.screenshots, options.language)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
