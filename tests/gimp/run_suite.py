"""Run the plug-in's checks inside a real GIMP 3, with a real worker and its built-in models.

    python tests/gimp/run_suite.py [--gimp 3.0|3.2] [--only NAME] [--keep]

Needs root and the development requirements; see installer/gimp_root.py for what is built. The
worker runs here, GIMP in the other system, which shares processes, network and a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT / "installer"), str(ROOT / "worker"), str(ROOT / "shared")]

START_SECONDS = 300.0  # for a hang
SUITE_SECONDS = 1800.0


class Workers:
    """Starts a worker here whenever the plug-in, inside the other system, asks for one."""

    def __init__(self, home: Path, request: Path) -> None:
        self._home, self._request = home, request
        self._processes: list[subprocess.Popen[bytes]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.start()
        self._thread.start()

    def start(self) -> None:
        env = {**os.environ, "FACE_RESTORE_HOME": str(self._home)}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "worker"), str(ROOT / "shared")])
        for name in ("FACE_RESTORE_MODELS", "FACE_RESTORE_CATALOGUE"):
            env.pop(name, None)
        command = [sys.executable, "-P", str(HERE / "recording_worker.py")]
        log = (self._home / "worker.out").open("ab")
        self._processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            if self._request.exists():
                self._request.unlink()
                self.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def pictures(folder: Path) -> None:
    """The test photograph, whole and twice side by side, and one without a face."""
    import numpy as np
    from skimage import data

    face = data.astronaut()
    two = np.concatenate([face, face[:, ::-1]], axis=1)
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    none = np.broadcast_to(ramp[None, :, None], (384, 512, 3))
    for name, array in {"face": face, "two": two, "none": none}.items():
        head = f"{array.shape[1]} {array.shape[0]}\n".encode()
        (folder / f"{name}.rgb").write_bytes(head + np.ascontiguousarray(array).tobytes())


def prepare(outside: Path, inside: Path) -> None:
    """Plug-in, pictures and checks in the folder both systems see."""
    from face_restore_worker.gimp.layout import install_plugin

    request = inside / "start-worker"
    command = ["/bin/sh", "-c", f"touch {request}; exec sleep 60"]
    install_plugin(outside / "profile" / "plug-ins", command)
    pictures(outside)
    for file in (*HERE.glob("*.py"), ROOT / "README.md"):
        shutil.copy(file, outside)


def gimp(root: Path, version: str, inside: Path, script: str, extra: dict[str, str]) -> list[str]:
    """The command that runs GIMP without a window in the other system."""
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(inside),
        "LC_ALL": "C.UTF-8",
        "GIMP3_DIRECTORY": str(inside / "profile"),
        "FACE_RESTORE_HOME": str(inside / "home"),
        "FACE_RESTORE_SUITE": str(inside),
        **extra,
    }
    code = f"import sys; sys.path.insert(0, {str(inside)!r}); exec(open({script!r}).read())"
    return [
        "chroot",
        str(root),
        "env",
        "-i",
        *(f"{name}={value}" for name, value in env.items()),
        f"gimp-console-{version}",
        "-n",
        "-i",
        "-d",
        "--quit",
        "--batch-interpreter=python-fu-eval",
        "-b",
        code,
    ]


def follow(process: subprocess.Popen[bytes], report: Path) -> list[str]:
    """Print the checks' lines as they come; returns all of them."""
    lines: list[str] = []
    deadline = time.monotonic() + SUITE_SECONDS
    while True:
        running = process.poll() is None
        text = report.read_text(encoding="utf-8") if report.exists() else ""
        complete = text[: text.rfind("\n") + 1].splitlines()
        for line in complete[len(lines) :]:
            if line.startswith("CHECK "):
                print(line[6:], flush=True)
        lines = complete
        if not running:
            return lines
        if time.monotonic() > deadline:
            process.kill()
            print(f"GIMP did not end within {SUITE_SECONDS:.0f} s", flush=True)
            return lines
        time.sleep(0.2)


def run(version: str, only: str = "", keep: bool = False) -> bool:
    """Run everything; whether all checks passed. Raises GimpRootError without a GIMP."""
    import gimp_root

    root = gimp_root.ensure(version)
    outside = Path(tempfile.mkdtemp(prefix="face-restore-suite-", dir=root / "tmp"))
    inside = Path("/") / outside.relative_to(root)
    home = outside / "home"
    home.mkdir(mode=0o700)
    workers = None
    try:
        prepare(outside, inside)
        workers = Workers(home, outside / "start-worker")
        wait_until((home / "state" / "worker.json").exists, START_SECONDS)
        command = gimp(root, version, inside, str(inside / "in_gimp.py"), {
            "FACE_RESTORE_ONLY": only,
            "FACE_RESTORE_RUNS": os.environ.get("FACE_RESTORE_RUNS", "100"),
        })  # fmt: skip
        with (outside / "gimp.out").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            lines = follow(process, outside / "report")
        return conclude(lines, outside, process.returncode)
    finally:
        if workers is not None:
            workers.close()
        if keep:
            print(f"kept: {outside}")
        else:
            shutil.rmtree(outside, ignore_errors=True)


def conclude(lines: list[str], outside: Path, status: int) -> bool:
    """Print the count, and GIMP's own output when something failed."""
    passed = sum(line.startswith("CHECK ok ") for line in lines)
    failed = sum(line.startswith("CHECK FAILED ") for line in lines)
    ended = "END" in lines
    good = failed == 0 and ended and passed > 0 and status == 0
    if not good:
        text = (outside / "gimp.out").read_text(encoding="utf-8", errors="replace")
        print("\n".join(text.splitlines()[-80:]))
    if not ended:
        print("GIMP ended before the checks did.")
    if status != 0:
        print(f"GIMP ended with status {status}.")
    print(f"{passed} passed, {failed} failed", flush=True)
    return good


def wait_until(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit("The worker did not start.")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gimp", default="3.0", choices=["3.0", "3.2"])
    parser.add_argument("--only", default="", help="checks whose name contains this")
    parser.add_argument("--keep", action="store_true", help="keep the folder to look at it")
    options = parser.parse_args()
    return 0 if run(options.gimp, options.only, options.keep) else 1


if __name__ == "__main__":
    sys.exit(main())
