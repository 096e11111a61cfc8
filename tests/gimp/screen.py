"""A screen without a monitor for GIMP's windows: Xvfb with a window manager, keys and mouse."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 300.0  # for a hang; a busy machine starts GIMP in minutes
DISPLAY_SIZE = "1280x960x24"


class Failed(Exception):
    """What was to be seen did not come."""


class Screen:
    """An X server in the other system, and the windows on it."""

    def __init__(self, root: Path, outside: Path, inside: Path) -> None:
        self._root, self._outside, self._inside = root, outside, inside
        self.name = ""
        need_window_manager(root)
        # The server chooses a number that is free, and says it once it can be talked to.
        told, says = os.pipe()
        command = ("Xvfb", "-displayfd", str(says), "-screen", "0", DISPLAY_SIZE)
        # Without -noreset it forgets everybody when the first program that asked it leaves.
        self._server = self.start(*command, "-noreset", "-nolisten", "tcp", fds=(says,))
        os.close(says)
        with os.fdopen(told) as number:
            ready, _, _ = select.select([number], [], [], SECONDS)
            self.name = f":{number.readline().strip()}" if ready else ""
        if self.name in ("", ":"):
            self._server.kill()
            raise Failed("Xvfb did not start")
        # Without a window manager no window gets the keyboard.
        self._manager = self.start("openbox")
        eventually(lambda: self.ask("xdotool", "get_desktop"), "the window manager")

    def start(
        self, *command: str, fds: tuple[int, ...] = (), **extra: str
    ) -> subprocess.Popen[bytes]:
        """Start a program on this screen, in an environment of its own (as run_suite.gimp)."""
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
            pass_fds=fds,
        )

    def ask(self, *command: str) -> str:
        """The output of a command on this screen; "" when it fails or does not end."""
        line = ["chroot", str(self._root), "env", f"DISPLAY={self.name}", *command]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def window(self, title: str, seconds: float = SECONDS) -> str:
        """The visible window whose title matches, waited for."""

        def find() -> str:
            return self.ask("xdotool", "search", "--onlyvisible", "--name", title)

        return eventually(find, f"a window {title!r}", seconds).splitlines()[-1]

    def activate(self, window: str) -> None:
        """Give the window the keyboard, and wait until it has it."""

        def active() -> bool:
            self.ask("xdotool", "windowactivate", "--sync", window)
            return self.ask("xdotool", "getactivewindow") == window

        eventually(active, "the keyboard in the window")

    def keys(self, window: str, *keys: str) -> None:
        """Press the keys in this window, one after the other."""
        self.activate(window)
        self.ask("xdotool", "key", "--delay", "60", *keys)

    def type(self, text: str) -> None:
        self.ask("xdotool", "type", "--delay", "40", text)

    def screenshot(self, name: str) -> None:
        """The windows as they are, without the empty screen beside them."""
        file = str(self._inside / f"{name}.png")
        self.ask("import", "-window", "root", file)
        self.ask("convert", file, "-trim", "+repage", file)

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
