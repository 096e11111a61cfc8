"""A real GIMP 3 for the tests: a Debian system with GIMP in a folder, run through chroot.

GIMP 3 is not in Debian 12. Where the machine's own GIMP is older, this builds Debian 13
(GIMP 3.0) or Debian's unstable suite (GIMP 3.2) in a cache folder. Needs root, debootstrap
and the machine's own package sources; takes about three minutes and 1.5 GB, once.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SUITES = {"3.0": "trixie", "3.2": "sid"}
PACKAGES = (
    "gimp",
    "python3-gi",
    "gir1.2-gimp-3.0",
    "xvfb",
    "xauth",
    "xdotool",
    "imagemagick",
    "gettext",
    "fonts-dejavu-core",
    "adwaita-icon-theme",
    "procps",
    "openbox",
)
DONE = "face-restore-gimp-root"  # written last: a folder without it is half built
MOUNTS = ("proc", "dev", "sys")
ATTEMPTS, PAUSE_SECONDS = 3, 20.0  # at what takes files from the network


class GimpRootError(Exception):
    """No GIMP can be had here; the text says why and what helps."""


def cache_dir() -> Path:
    """Where the built systems are kept between runs."""
    base = os.environ.get("FACE_RESTORE_GIMP_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "gimp-face-restore"


def debian_mirror() -> str:
    """The address the machine's own apt takes Debian from."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)"],
        capture_output=True,
        text=True,
    )
    for line in listing.stdout.splitlines():
        address, origin, label = line.split("|")
        if (origin, label) == ("Debian", "Debian"):
            return address.rstrip("/")
    raise GimpRootError("apt has no Debian package source that a system could be built from.")


def run(*command: str, **options: object) -> None:
    """Run a command; its output is shown only when it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        tail = (done.stdout + done.stderr)[-2500:]
        raise GimpRootError(f"`{' '.join(command[:4])} …` failed:\n{tail}")


def fetch(*command: str) -> None:
    """As run, for a command that needs the network: a fault that passes is not the end."""
    for left in reversed(range(ATTEMPTS)):
        try:
            return run(*command)
        except GimpRootError as error:
            if not left:
                raise
            print(f"trying again in {PAUSE_SECONDS:.0f} s: {error}", flush=True)
            time.sleep(PAUSE_SECONDS)


def need_tools() -> None:
    """Check for root and debootstrap, installing the latter where apt can."""
    if os.geteuid() != 0:
        raise GimpRootError("Building a system with GIMP needs root; run this as root once.")
    if shutil.which("debootstrap") is None:
        fetch("apt-get", "update", "-qq")
        fetch("apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap")


def ensure(version: str) -> Path:
    """Return the folder of a system with GIMP `version` ("3.0" or "3.2"), building it if needed.

    Raises:
        GimpRootError: it cannot be built here.
    """
    suite = SUITES[version]
    root = cache_dir() / f"gimp-{version}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"gimp-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / DONE).exists():
            need_tools()
            unmount(root)
            shutil.rmtree(root, ignore_errors=True)
            print(f"building Debian {suite} with GIMP {version} in {root}", flush=True)
            build(root, suite)
            (root / DONE).write_text(f"{suite}\n", encoding="utf-8")
    mount(root)
    return root


def build(root: Path, suite: str) -> None:
    """Debootstrap the suite and install GIMP and what drives a window in it."""
    mirror = debian_mirror()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    fetch(
        "debootstrap",
        "--variant=minbase",
        "--include=ca-certificates",
        f"--keyring={keyring}",
        suite,
        str(root),
        mirror,
    )
    for settings in Path("/etc/apt/apt.conf.d").iterdir():
        # The way out (a proxy, certificates) is the machine's; its package lists are not.
        if b"roxy" in settings.read_bytes() or b"Verify" in settings.read_bytes():
            shutil.copy(settings, root / "etc/apt/apt.conf.d")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    mount(root)
    try:
        # A mirror that lags behind has lists past their date; that matters little for tests.
        late = ("-o", "Acquire::Check-Valid-Until=false")
        fetch("chroot", str(root), "apt-get", *late, "update", "-qq")
        install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends")
        fetch("chroot", str(root), *install, *PACKAGES)
        run("chroot", str(root), "apt-get", "clean")
    finally:
        unmount(root)


def mounted(folder: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    return any(line.split()[1] == str(folder) for line in mounts.splitlines())


def mount(root: Path) -> None:
    """Give the system /proc, /dev and /sys."""
    for name in MOUNTS:
        if not mounted(root / name):
            run("mount", "--bind", f"/{name}", str(root / name))


def unmount(root: Path) -> None:
    """Take the mounts away again, so that the folder can be removed."""
    for name in MOUNTS:
        if mounted(root / name):
            run("umount", "-l", str(root / name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", nargs="?", default="3.0", choices=sorted(SUITES))
    try:
        print(ensure(parser.parse_args().version))
    except GimpRootError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
