"""The pinned packages: exactly what the locks name, put into an environment by its own pip.

Standard library only. Lies beside bootstrap.py, in an installed package and in a bundle too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LOCKS = Path(__file__).resolve().parent / "locks"
TORCH = "torch==2.13.0"
WINDOWS = os.name == "nt"
# Offered as source only. Built with what the locks brought, not with tools fetched unchecked.
FROM_SOURCE = ("pyvips",)


class SetupError(Exception):
    """A step cannot be done; the text says why and what helps."""


def say(text: str) -> None:
    print(f"[face-restore] {text}", flush=True)


def env_bin(env: Path, name: str) -> Path:
    return env / ("Scripts" if WINDOWS else "bin") / (name + (".exe" if WINDOWS else ""))


def has_nvidia_gpu() -> bool:
    """True when an NVIDIA driver answers."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    return bool(tool) and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def explain_pip(output: str) -> str:
    """What a failed pip run could not reach or find, in one sentence."""
    hosts = sorted(set(re.findall(r"host='([^']+)'", output)))
    missing = re.findall(r"No matching distribution found for ([^\s(]+)", output)
    if "DO NOT MATCH THE HASHES" in output:
        return (
            "A package is not the one that was locked: its source offers another file under the "
            "same name. Take another source, or look into it before you go on."
        )
    if "No space left on device" in output:
        return "The disk is full; the environment needs about 2 GB (6 GB with CUDA)."
    if hosts:
        what = f" while looking for {missing[0]}" if missing else ""
        return (
            f"Could not reach {', '.join(hosts)}{what}. Check the network, HTTPS_PROXY and "
            "pip's configuration, then run this again: what is there is kept."
        )
    if missing:
        return f"No package source that pip is set up with offers {missing[0]} for this Python."
    return "pip failed; its last words are above."


def pip(env: Path, *args: str, quiet_failure: bool = False) -> bool:
    """Run pip inside the environment; True when it succeeded.

    Raises:
        SetupError: pip failed and `quiet_failure` is not set.
    """
    command = [str(env_bin(env, "python")), "-m", "pip", "install", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-q", *args], capture_output=True, text=True)
    if done.returncode == 0:
        return True
    if quiet_failure:
        return False
    output = done.stdout + done.stderr
    print(output.strip()[-3000:], file=sys.stderr)
    raise SetupError(explain_pip(output))


def lock_entries(text: str) -> list[str]:
    """The pins in a lock's text, each with its markers and hashes in one line."""
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def plain_pins(text: str) -> str:
    """The pins in a lock's text without their hashes."""
    pins = (re.split(r"\s+--hash=", entry)[0] for entry in lock_entries(text))
    return "".join(f"{pin}\n" for pin in pins)


def install_locked(env: Path, groups: Sequence[str]) -> None:
    """Install exactly what the locks name; every file is checked against its hashes."""
    # Without resolving: facexlib would pull an OpenCV build that clashes with the headless one.
    texts = [(LOCKS / f"{group}.txt").read_text(encoding="utf-8") for group in groups]
    entries = [entry for text in texts for entry in lock_entries(text)]
    source = [entry for entry in entries if entry.split("==")[0] in FROM_SOURCE]
    # A bundle's locks have no hashes: it brings the wheels, and its manifest their digests.
    hashed = ["--require-hashes"] if any(" --hash=" in entry for entry in entries) else []
    with tempfile.TemporaryDirectory(prefix="face-restore-") as folder:
        file = Path(folder) / "requirements.txt"
        for chosen, option in (
            ([entry for entry in entries if entry not in source], "--only-binary=:all:"),
            (source, "--no-build-isolation"),
        ):
            if chosen:
                file.write_text("\n".join(chosen) + "\n", encoding="utf-8")
                pip(env, "--no-deps", option, *hashed, "-r", str(file))


def install_torch(env: Path, build: str, index: str | None) -> None:
    """Install the pinned torch: its CPU-only build where one is wanted and offered.

    Its hash is not checked: sources build the same version differently, and the CUDA build
    brings a dozen packages of its own. What else it needs, the locks have brought before.
    """
    extra = ["--extra-index-url", index] if index else []
    linux_cpu = build == "cpu" and sys.platform == "linux"
    with tempfile.TemporaryDirectory(prefix="face-restore-") as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text(plain_pins((LOCKS / "runtime.txt").read_text(encoding="utf-8")))
        held = [*extra, "-c", str(pins)]
        if linux_cpu and pip(env, f"{TORCH}+cpu", *held, quiet_failure=True):
            return
        if linux_cpu:
            say(
                "no CPU-only build of torch in pip's package sources: taking the general build, "
                "which runs on the CPU as well but is several GB larger "
                "(--torch-index URL names a source that has the CPU build)"
            )
        pip(env, TORCH, *held)
