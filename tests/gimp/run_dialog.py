"""The plug-in in a GIMP with windows, used with keys and mouse as a person does.

First GIMP: the dialog opened from the menu, a value changed, run, the layer seen, undone, Repeat,
Re-show. Second GIMP: the value is still there; GIMP's own Cancel during a run, and the next run.

    python tests/gimp/run_dialog.py [--gimp 3.0|3.2] [--screenshots FOLDER] [--language de]

GIMP runs under Xvfb in the system that run_suite.py uses, driven with xdotool.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import run_suite
from screen import SECONDS, Failed, Screen, eventually

MAIN = "layers?\\) .*GIMP$"
CANCEL_AT = (283, 22)  # the button, in pixels from the image window's right and lower edge
GIMPRC = """(show-welcome-dialog no)
(check-updates no)
"""


def save_photos(outside: Path) -> None:
    """The test photograph, and it twice side by side: for the worker's next face."""
    import numpy as np
    from PIL import Image
    from skimage import data

    face = data.astronaut()
    Image.fromarray(face).save(outside / "face.png")
    Image.fromarray(np.concatenate([face, face[:, ::-1]], axis=1)).save(outside / "two.png")


class Stage:
    """Worker, screen and GIMP's profile; GIMP can be started several times on it."""

    def __init__(self, version: str, language: str) -> None:
        import gimp_root

        root = gimp_root.ensure(version)
        self.language = language
        self.outside = Path(tempfile.mkdtemp(prefix="face-restore-dialog-", dir=root / "tmp"))
        self._inside = Path("/") / self.outside.relative_to(root)
        self._version = version
        self._gimp: subprocess.Popen[bytes] | None = None
        self._workers: run_suite.Workers | None = None
        self._screen: Screen | None = None
        home = self.outside / "home"
        home.mkdir(mode=0o700)
        try:
            run_suite.prepare(self.outside, self._inside)
            save_photos(self.outside)
            (self.outside / "profile" / "gimprc").write_text(GIMPRC)
            self._workers = run_suite.Workers(home, self.outside / "start-worker")
            run_suite.wait_until((home / "state/worker.json").exists, run_suite.START_SECONDS)
            self._screen = Screen(root, self.outside, self._inside)
        except BaseException:
            self.close(keep=False)
            raise

    @property
    def screen(self) -> Screen:
        assert self._screen is not None
        return self._screen

    def start(self, picture: str) -> None:
        """Start GIMP with a picture, and wait until both are seen."""
        (self.outside / "stop").unlink(missing_ok=True)
        (self.outside / "layers.json").unlink(missing_ok=True)
        self._gimp = self.screen.start(
            f"gimp-{self._version}", "-n", "-s", "--batch-interpreter=python-fu-eval",
            "-b", f"exec(open({str(self._inside / 'window.py')!r}).read())",
            GIMP3_DIRECTORY=str(self._inside / "profile"),
            FACE_RESTORE_HOME=str(self._inside / "home"),
            FACE_RESTORE_SUITE=str(self._inside),
            FACE_RESTORE_PICTURE=picture,
            LANGUAGE=self.language,
        )  # fmt: skip
        eventually(lambda: len(self.layers()) == 1, "the photograph")
        self.screen.window(MAIN)
        time.sleep(6)
        with contextlib.suppress(Failed):
            self.screen.keys(self.screen.window("^Welcome", 3), "Escape")

    def quit(self) -> None:
        """End GIMP, as a user does."""
        assert self._gimp is not None
        (self.outside / "stop").touch()
        try:
            self._gimp.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed("GIMP did not quit") from None

    def layers(self) -> list[Any]:
        """Name, opacity and whether there is a mask, of each layer from the top."""
        file = self.outside / "layers.json"
        return json.loads(file.read_text()) if file.exists() else []

    @contextlib.contextmanager
    def held_worker(self) -> Iterator[Path]:
        """The worker waits where it begins a face (recording_worker.py); gives its trace file."""
        folder = self.outside / "home" / "suite"
        (folder / "trace").unlink(missing_ok=True)
        (folder / "hold").touch()
        try:
            yield folder / "trace"
        finally:
            (folder / "hold").unlink(missing_ok=True)

    def plugin_runs(self) -> bool:
        """Whether there is a process of the plug-in."""
        script = f"{self.outside.name}/profile/plug-ins/face_restore/face_restore.py"
        return bool(processes(script))

    def output(self) -> str:
        """What GIMP and the screen wrote."""
        file = self.outside / "screen.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def close(self, keep: bool) -> None:
        if self._gimp is not None:
            self._gimp.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._gimp.wait(10)
            self._gimp.kill()
            self._gimp.wait()
        for one in (self._screen, self._workers):
            if one is not None:
                one.close()
        if keep:
            print(f"kept: {self.outside}")
        else:
            shutil.rmtree(self.outside, ignore_errors=True)


def say(text: str) -> None:
    print(f"ok {text}", flush=True)


TITLES = {"en": "^Restore Faces$", "de": "^Gesichter wiederherstellen$"}
# Mnemonics: of the strength, of the dialog's button, of the menu entry.
KEYS = {"en": ("alt+g", "alt+o", "f"), "de": ("alt+k", "alt+w", "g")}


# Mnemonics: of the switch for the detector's own threshold, of the threshold.
THRESHOLD_KEYS = {"en": ("alt+u", "alt+d"), "de": ("alt+v", "alt+n")}


def expect_threshold(stage: Stage, threshold: float | None) -> None:
    """What the worker was asked for last; None: the detector's own."""
    told = json.loads((stage.outside / "home/suite/last.json").read_text())
    found = told["request"]["detect"]["threshold"]
    if found != threshold:
        raise Failed(f"the detection threshold is {found}, not {threshold}")


def expect_layers(stage: Stage, count: int, what: str, opacity: float | None = None) -> None:
    """Wait for so many layers, the top one restored, of this opacity; and the plug-in's end."""

    def there() -> bool:
        found = stage.layers()
        if opacity is None or len(found) != count:
            return len(found) == count
        name, percent, mask = found[0]
        ours = name.startswith(("Restored faces · ", "Wiederhergestellte"))
        return ours and mask and abs(percent - opacity) <= 0.5

    try:
        eventually(there, what)
        eventually(lambda: not stage.plugin_runs(), f"{what}: the plug-in's end")
        time.sleep(1)  # for GIMP to notice it
    except Failed as error:
        raise Failed(f"{error}, {count} layers and {opacity} %: {stage.layers()}") from None
    if not there():
        raise Failed(f"{what}: it did not stay: {stage.layers()}")


def open_from_menu(stage: Stage) -> str:
    """Filters > Enhance > Restore Faces…; the dialog's window."""
    screen = stage.screen
    for patience in (SECONDS / 3, SECONDS):  # a busy GIMP may miss a key while a menu opens
        screen.keys(screen.window(MAIN), "alt+r")
        time.sleep(2)
        screen.ask("xdotool", "key", "h")
        time.sleep(2)
        screen.screenshot("menu")
        screen.ask("xdotool", "key", KEYS[stage.language][2])
        with contextlib.suppress(Failed):
            dialog = screen.window(TITLES[stage.language], patience)
            time.sleep(4)
            return dialog
        screen.ask("xdotool", "key", "--delay", "500", "Escape", "Escape", "Escape")
    raise Failed("the dialog did not open from the menu")


def run_with_changed_values(stage: Stage) -> None:
    """The dialog from the menu, two values changed by keys, and a run; raises Failed."""
    screen = stage.screen
    strength, restore, _entry = KEYS[stage.language]
    dialog = open_from_menu(stage)
    say("opened from GIMP's menus")
    for fault in ("duplicate mnemonic", "no mnemonic"):  # GIMP says so of its own dialogs
        if fault in stage.output():
            raise Failed(f"{fault} in the dialog")
    # The strength's mnemonic puts the cursor into its number.
    screen.keys(dialog, strength)
    screen.ask("xdotool", "key", "ctrl+a")
    screen.type("70")
    screen.ask("xdotool", "key", "Tab")
    time.sleep(1)
    screen.screenshot("dialog")
    switch, threshold = THRESHOLD_KEYS[stage.language]
    screen.keys(dialog, switch, threshold, "ctrl+a")
    screen.type("35")
    screen.ask("xdotool", "key", "Tab")
    time.sleep(1)
    screen.screenshot("threshold")
    with stage.held_worker() as trace:
        screen.keys(dialog, restore)
        eventually(trace.exists, "the first face")
        time.sleep(2)
        screen.screenshot("progress")
    expect_layers(stage, 2, "run with a changed value", 70)
    expect_threshold(stage, 0.35)
    say("run with changed values: a layer at 70 %, detected from 35 % on")


def first_gimp(stage: Stage) -> None:
    """Everything a user does in one sitting; raises Failed."""
    screen = stage.screen
    stage.start("face.png")
    run_with_changed_values(stage)
    time.sleep(3)
    screen.screenshot("result")
    screen.keys(screen.window(MAIN), "ctrl+z")
    expect_layers(stage, 1, "one undo")
    say("one undo step removes it")
    screen.keys(screen.window(MAIN), "ctrl+y")
    expect_layers(stage, 2, "redo", 70)
    say("redo brings it back")
    screen.keys(screen.window(MAIN), "ctrl+f")
    expect_layers(stage, 3, "Repeat", 70)
    say("Filters > Repeat: without a dialog, at the last 70 %")
    screen.keys(screen.window(MAIN), "ctrl+shift+f")
    dialog = screen.window(TITLES[stage.language])
    time.sleep(2)
    screen.screenshot("re-show")
    screen.keys(dialog, THRESHOLD_KEYS[stage.language][0])
    screen.keys(dialog, KEYS[stage.language][1])
    expect_layers(stage, 4, "Re-show", 70)
    expect_threshold(stage, None)
    say("Filters > Re-show: the dialog, with the last 70 %; the detector's own threshold again")
    stage.quit()


def second_gimp(stage: Stage) -> None:
    """GIMP started again: what it kept, and a run that is cancelled; raises Failed."""
    screen = stage.screen
    stage.start("two.png")
    dialog = open_from_menu(stage)
    screen.screenshot("second-start")
    screen.keys(dialog, KEYS[stage.language][1])
    expect_layers(stage, 2, "the first run after a new start", 70)
    say("after a new start of GIMP the dialog still has the 70 %")
    with stage.held_worker() as trace:
        screen.keys(screen.window(MAIN), "ctrl+f")
        eventually(trace.exists, "the first face")
        if not stage.plugin_runs():
            raise Failed("the plug-in's process is not found")
        eventually(lambda: cancelled(stage), "the plug-in's end")
        screen.screenshot("cancelled")
        # The worker waits where it began the first face: it ends the job there, or goes on later.
        eventually(lambda: "dropped" in trace.read_text(), "the worker's notice of it")
    eventually(lambda: "ended" in trace.read_text(), "the job's end")
    begun = trace.read_text().splitlines()
    if begun != ["face 1 of 2", "dropped", "ended"]:
        raise Failed(f"after Cancel the worker went on: {begun}")
    expect_layers(stage, 2, "after Cancel")
    say("GIMP's Cancel: the plug-in is gone, the image as before, no second face was begun")
    screen.keys(screen.window(MAIN), "ctrl+f")
    expect_layers(stage, 3, "the run after Cancel", 70)
    say("the next run works at once")
    stage.quit()


def cancelled(stage: Stage) -> bool:
    """Whether the plug-in is gone after a click at Cancel, which GIMP may be about to show only."""
    time.sleep(2)
    if stage.plugin_runs():
        press_cancel(stage.screen)
        time.sleep(2)
    return not stage.plugin_runs()


def press_cancel(screen: Screen) -> None:
    """Click the button Cancel at the right end of the status bar, left of the dialogs."""
    window = screen.window(MAIN)
    text = screen.ask("xdotool", "getwindowgeometry", "--shell", window)
    place = dict(line.split("=") for line in text.splitlines())
    x, y, width, height = (int(place[name]) for name in ("X", "Y", "WIDTH", "HEIGHT"))
    screen.activate(window)
    at = (str(x + width - CANCEL_AT[0]), str(y + height - CANCEL_AT[1]))
    screen.ask("xdotool", "mousemove", *at, "click", "1")


def processes(part: str) -> list[int]:
    """The processes with this in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if part.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def run(version: str, keep: bool, shots: Path | None, language: str) -> bool:
    """Run it; whether all was as it should be."""
    stage = Stage(version, language)
    good = True
    try:
        first_gimp(stage)
        second_gimp(stage)
    except Failed as error:
        stage.screen.screenshot("failed")
        print(f"FAILED {error}")
        print(stage.output()[-3000:])
        good = False
    finally:
        if shots is not None:
            shots.mkdir(parents=True, exist_ok=True)
            for file in stage.outside.glob("*.png"):
                shutil.copy(file, shots)
        stage.close(keep)
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
