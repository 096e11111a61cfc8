"""The checks of ``face-restore doctor``: the machine, the packages, the folders."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"
INSTALL = "Run: python3 installer/bootstrap.py install"
_GIB = 1 << 30
_IMPORT_SECONDS = 180

# Distribution and module of everything that restoring a picture imports.
PACKAGES = (
    ("numpy", "numpy"),
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("opencv-python-headless", "cv2"),
    ("facexlib", "facexlib"),
    ("scipy", "scipy"),
    ("pyvips", "pyvips"),
    ("pyzmq", "zmq"),
    ("msgpack", "msgpack"),
    ("safetensors", "safetensors"),
    ("requests", "requests"),
    ("platformdirs", "platformdirs"),
    ("psutil", "psutil"),
    ("filelock", "filelock"),
    ("tqdm", "tqdm"),
)

_KERNELS = "face_restore_worker.cli.checks_kernels"

# Each module is imported in a process of its own, since a broken one may crash and not raise.
_PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        if name == "torchvision":
            # As the pipeline does: PyPI's build fits torch's CPU build but for its operators.
            from face_restore_worker.pipeline.facexlib_nets import import_torchvision
            import_torchvision()
        module = importlib.import_module(name)
        found = {"name": name, "version": str(getattr(module, "__version__", "")),
                 "file": getattr(module, "__file__", None)}
        if name == "torch":
            cuda = module.cuda.is_available()
            found["cuda"] = module.version.cuda or module.version.hip
            found["devices"] = [
                [module.cuda.get_device_name(i), module.cuda.get_device_properties(i).total_memory]
                for i in range(module.cuda.device_count())] if cuda else []
            found["mps"] = bool(module.backends.mps.is_available())
        if name == "pyvips":
            found["version"] = ".".join(str(module.version(i)) for i in range(3))
        if name.endswith(".checks_kernels"):
            found["finding"] = module.finding().as_json()
    except BaseException as error:
        found = {"name": name, "error": f"{type(error).__name__}: {error}"}
    print("PROBE " + json.dumps(found), flush=True)
"""


@dataclass(frozen=True)
class Finding:
    """What one check found. level: ok, warn or fail. mend: what to do about it."""

    level: str
    topic: str
    text: str
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


Check = Callable[[], Iterator[Finding]]


def all_checks(*, full: bool = False) -> list[Check]:
    """The checks in the order in which things should be mended."""
    from face_restore_worker.cli import checks_worker as worker

    checks: list[Check] = [
        check_python,
        check_packages,
        check_opencv,
        check_command,
        check_memory,
        check_folders,
        worker.check_models,
        check_loopback,
        worker.check_worker,
        check_gimp,
    ]
    return [*checks, worker.check_small_job] if full else checks


def carry_out(check: Check) -> Iterator[Finding]:
    """A check's findings; one that itself breaks is a finding too."""
    try:
        yield from check()
    except Exception as error:  # a doctor must not die of what it looks at
        topic = check.__name__.removeprefix("check_").replace("_", " ")
        text = f"could not be checked: {type(error).__name__}: {error}"
        yield Finding(FAIL, topic, text, "Please report this with the output of --format json.")


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.maxsize <= 2**32:
        yield Finding(FAIL, "python", "it is a 32 bit Python", "Install a 64 bit Python.")
    else:
        yield Finding(OK, "python", f"{version} in {sys.prefix}")
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8":
        yield Finding(
            WARN,
            "python",
            f"file names are taken as {sys.getfilesystemencoding()}",
            "Set PYTHONUTF8=1, or a UTF-8 locale such as LANG=C.UTF-8.",
        )


def probe(modules: list[str]) -> dict[str, dict[str, Any]]:
    """Import modules in another process; for each its version and file, or its error."""
    command = [sys.executable, "-P", "-c", _PROBE, *modules]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        raw = error.stdout or b""
        output, status = raw.decode() if isinstance(raw, bytes) else raw, None
    found = {}
    for line in output.splitlines():
        if line.startswith("PROBE "):
            values = json.loads(line.removeprefix("PROBE "))
            found[values["name"]] = values
    missing = [name for name in modules if name not in found]
    if missing:
        ended = "took too long" if status is None else f"ended the process with status {status}"
        found[missing[0]] = {"name": missing[0], "error": f"importing it {ended}"}
        if missing[1:]:
            found |= probe(missing[1:])
    return found


def check_packages() -> Iterator[Finding]:
    """Every package imports, from where it is installed; the devices torch sees; the kernels."""
    found = probe([*(module for _, module in PACKAGES), _KERNELS])
    broken = [
        (name, found[module]["error"]) for name, module in PACKAGES if "error" in found[module]
    ]
    for name, error in broken:
        yield Finding(FAIL, "packages", f"{name}: {error}", INSTALL)
    homes = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")]
    for name, module in PACKAGES:
        file = found[module].get("file")
        if file and not any(Path(file).resolve().is_relative_to(home) for home in homes):
            yield Finding(
                WARN,
                "packages",
                f"{name} comes from {Path(file).parent}, not from this environment",
                "Unset PYTHONPATH, or rename the file or folder that hides it.",
            )
    if not broken:
        main = ", ".join(f"{m} {found[m]['version']}" for m in ("torch", "torchvision", "pyvips"))
        yield Finding(OK, "packages", f"all {len(PACKAGES)} import ({main})")
    if "error" not in found["torch"]:
        yield from _devices(found["torch"])
        on_cpu = not (found["torch"]["devices"] or found["torch"]["mps"])
        yield _kernels(found[_KERNELS], on_cpu=on_cpu)


def _kernels(probed: dict[str, Any], *, on_cpu: bool) -> Finding:
    """Whether the compiled kernels are in use; with a GPU it does not matter much."""
    if "error" in probed:
        mend = "Set FACE_RESTORE_NATIVE=0, which turns them off, and please report this."
        return Finding(FAIL, "compiled kernels", probed["error"], mend)
    finding = Finding(**probed["finding"])
    return finding if on_cpu else replace(finding, level=OK)


def _devices(torch: dict[str, Any]) -> Iterator[Finding]:
    if torch["devices"]:
        for name, memory in torch["devices"]:
            yield Finding(OK, "device", f"{name}, {memory / _GIB:.0f} GiB (CUDA {torch['cuda']})")
    elif torch["mps"]:
        yield Finding(OK, "device", "Apple GPU (MPS)")
    elif _has_nvidia():
        why = "this torch is built without CUDA" if not torch["cuda"] else "torch cannot use it"
        yield Finding(
            WARN,
            "device",
            f"there is an NVIDIA GPU, but {why}: the CPU is used",
            "Update the driver, then: python3 installer/bootstrap.py install --torch cuda",
        )
    else:
        yield Finding(OK, "device", f"CPU with {os.cpu_count()} cores (no GPU found)")


def _has_nvidia() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout


def check_opencv() -> Iterator[Finding]:
    """Two OpenCV packages write over each other's files."""
    from importlib import metadata

    names = {str(d.metadata["Name"]).lower() for d in metadata.distributions() if d.metadata}
    installed = sorted(name for name in names if name.startswith("opencv-"))
    if len(installed) > 1:
        yield Finding(
            FAIL,
            "opencv",
            f"{' and '.join(installed)} are installed together and overwrite each other",
            "Remove all of them and install opencv-python-headless alone, or build the "
            f"environment anew. {INSTALL}",
        )
    elif installed:
        yield Finding(OK, "opencv", f"{installed[0]} alone")


def check_command() -> Iterator[Finding]:
    """The ``face-restore`` that a shell would start is this one."""
    found = shutil.which("face-restore")
    if found is None:
        yield Finding(
            WARN,
            "command",
            "face-restore is not on the PATH",
            f"Call it by its full name, or add {Path(sys.executable).parent} to PATH.",
        )
    elif Path(found).resolve().parent != Path(sys.executable).parent.resolve() and not (
        Path(found).resolve().is_relative_to(Path(sys.prefix).resolve())
    ):
        yield Finding(
            WARN,
            "command",
            f"a shell starts {found}, which is another installation than {sys.prefix}",
            "Remove the one that is not wanted.",
        )
    else:
        yield Finding(OK, "command", found)


def check_memory() -> Iterator[Finding]:
    """Enough memory for the largest model."""
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} GiB free"
    if memory.available < 1 * _GIB:
        yield Finding(FAIL, "memory", text, "Close other programs: at least 1 GiB is needed.")
    elif memory.available < 4 * _GIB:
        yield Finding(WARN, "memory", text, "GPEN-BFR-2048 needs about 4 GiB: close programs.")
    else:
        yield Finding(OK, "memory", text)


def check_folders() -> Iterator[Finding]:
    """The program's folders and the one for temporary files can be written, with room."""
    from face_restore_shared import paths

    overrides = [n for n in ("FACE_RESTORE_HOME", "FACE_RESTORE_MODELS") if os.environ.get(n)]
    for name in overrides:
        yield Finding(OK, "folders", f"{name} is set to {os.environ[name]}")
    folders = (
        ("data", paths.data_dir()),
        ("models", paths.models_dir()),
        ("state", paths.state_dir()),
        ("temporary files", Path(tempfile.gettempdir())),
    )
    for name, folder in folders:
        yield _folder(name, folder)


def _folder(name: str, folder: Path) -> Finding:
    topic = f"folder for {name}"
    # What is not there yet is made when needed: then the nearest parent counts.
    existing = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".face-restore-check-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding(
            FAIL,
            topic,
            f"{folder} cannot be written: {error.strerror or error}",
            "Give yourself permission, free space, or set FACE_RESTORE_HOME (temporary files: "
            "TMPDIR) to another folder.",
        )
    text = f"{folder}, {free / _GIB:.1f} GiB free"
    if name != "temporary files" and free < 2 * _GIB:
        return Finding(WARN, topic, text, "GPEN-BFR-2048 needs 1 GiB while it is installed.")
    return Finding(OK, topic, text)


def check_loopback() -> Iterator[Finding]:
    """Programs on this machine can talk to each other over 127.0.0.1."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            with socket.create_connection(address, timeout=5) as client:
                peer, _ = server.accept()
                with peer:
                    client.sendall(b"ping")
                    peer.settimeout(5)
                    answer = peer.recv(4)
    except OSError as error:
        answer = str(error).encode()
    if answer == b"ping":
        yield Finding(OK, "loopback", "connections to 127.0.0.1 work")
    else:
        yield Finding(
            FAIL,
            "loopback",
            f"connections to 127.0.0.1 do not work ({answer.decode()})",
            "Allow them in the firewall or sandbox; or use --no-worker.",
        )


def check_gimp() -> Iterator[Finding]:
    """Every GIMP of this machine, and whether the plug-in can go into it."""
    from face_restore_worker.gimp.programs import find_programs, has_snap
    from face_restore_worker.gimp.surroundings import Surroundings

    here = Surroundings.here()
    programs = find_programs(here)
    for program in programs:
        place = " ".join(program.command)
        if int(program.version.split(".")[0]) < 3:
            text = f"{program.name} is too old for the plug-in ({place})"
            yield Finding(WARN, "gimp", text, "Install GIMP 3; the command line works anyway.")
        else:
            yield Finding(OK, "gimp", f"{program.name} ({place})")
    if has_snap(here):
        text = "a GIMP from Snap cannot take the plug-in"
        yield Finding(WARN, "gimp", text, "Install GIMP as a package, a Flatpak or an AppImage.")
    elif not programs:
        tool = shutil.which("gimp")
        if tool is not None:
            yield Finding(WARN, "gimp", f"{tool} does not say its version", "Reinstall GIMP.")
        else:
            yield Finding(OK, "gimp", "not found (only the plug-in needs it)")
