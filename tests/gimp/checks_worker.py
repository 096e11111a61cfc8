"""The worker as seen from GIMP: missing, refused, killed in the middle; the plug-in killed."""

import contextlib
import os
import signal
from pathlib import Path

from suite import (
    PLUGIN,
    Meanwhile,
    check,
    connection_with,
    equal,
    faces_begun,
    installed_with,
    kill_worker,
    photo,
    restored,
    run,
    state,
    switch,
    traced,
    true,
    wait_for,
    worker_connection,
    worker_status,
)

MAY_GROW = 10.0  # MiB in 80 runs: GEGL takes its memory in blocks of 4; a lost layer a run is 60


def plugin_processes():
    """The plug-in's processes in this profile, by their command line."""
    script = str(PLUGIN / "face_restore.py").encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if script in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def idle():
    wait_for(
        lambda: (now := state()) is not None and now.state == "ready" and now.queue == 0,
        "the worker without work",
    )


@check
def the_status_as_text():
    text = worker_status()
    true(text["state"] in ("ready", "busy", "loading", "starting"), text)
    equal(text["pid"], str(worker_connection().pid), "pid")
    true("builtin-restorer" in text["models installed"], text)
    return text["message"]


@check
def the_worker_killed_in_the_middle():
    image, layer = photo("two")
    idle()
    first = worker_connection()
    faces_begun()
    with switch("hold") as hold:

        def kill():
            wait_for(lambda: traced("face"), "the first face")
            kill_worker()
            hold.unlink()

        with Meanwhile(kill):
            restored(image, [layer])
    second = worker_connection()
    true(second.pid != first.pid, "the worker was not replaced")
    equal(len(image.get_layers()), 2, "layers")


@check
def the_plugin_killed_in_the_middle():
    """As GIMP's Cancel does it: the image stays, the worker drops the job, the next run works."""
    image, layer = photo("two")
    idle()
    faces_begun()
    with switch("hold"):

        def kill():
            wait_for(lambda: traced("face"), "the first face")
            for pid in plugin_processes():
                os.kill(pid, signal.SIGKILL)

        with Meanwhile(kill):
            outcome = run(image, [layer])
        true(not outcome.good, "a killed plug-in succeeded")
        equal(len(image.get_layers()), 1, "layers")
        wait_for(lambda: traced("dropped"), "the worker's notice that nobody waits for the job")
    idle()
    equal(faces_begun(), ["face 1 of 2"], "faces begun for nobody")
    restored(image, [layer])
    equal(len(image.get_layers()), 2, "layers of the next run")
    equal(faces_begun(), ["face 1 of 2", "face 2 of 2"], "faces of the next run")
    return "dropped before its second face"


@check
def a_wrong_token():
    image, layer = photo()
    with connection_with(token="0" * 64):
        outcome = run(image, [layer])
        text = worker_status()
    equal(outcome.status, "EXECUTION_ERROR", "status")
    true("face-restore worker restart" in outcome.message, outcome.message)
    equal(text.get("code"), "wrong-token", "status text")
    equal(len(image.get_layers()), 1, "layers")
    return outcome.message


@check
def another_protocol_version():
    image, layer = photo()
    with connection_with(protocol=99):
        outcome = run(image, [layer])
    equal(outcome.status, "EXECUTION_ERROR", "status")
    true("99" in outcome.message and "pdate" in outcome.message, outcome.message)
    return outcome.message


@check
def a_missing_model():
    image, layer = photo()
    outcome = run(image, [layer], model="gpen-bfr-512")
    equal(outcome.status, "EXECUTION_ERROR", "status")
    true("model" in outcome.message, outcome.message)
    equal(len(image.get_layers()), 1, "layers")
    return outcome.message


@check
def the_worker_missing_is_started():
    image, layer = photo()
    first = kill_worker()
    equal(worker_status()["state"], "not running", "status")
    restored(image, [layer])
    true(worker_connection().pid != first, "no new worker")


@check
def the_worker_missing_and_not_startable():
    image, layer = photo()
    kill_worker()
    with installed_with(worker_command=["/bin/sh", "-c", "echo no torch >&2; exit 3"]):
        outcome = run(image, [layer])
    with installed_with("{"):
        broken = run(image, [layer])
    equal(outcome.status, "EXECUTION_ERROR", "status")
    for part in ("status 3", "no torch", "worker-output.log", "face-restore doctor"):
        true(part in outcome.message, f"{part} is not in: {outcome.message}")
    true("face-restore gimp install" in broken.message, broken.message)
    equal(len(image.get_layers()), 1, "layers")
    restored(image, [layer])
    return outcome.message


@check
def repeated_runs_do_not_grow():
    """A hundred runs in one GIMP process, with a worker that answers at once: GIMP's own memory
    after a fifth of them and after the last."""
    runs = int(os.environ["FACE_RESTORE_RUNS"])
    idle()
    sizes = []
    with switch("instant"):
        for _number in range(runs):
            image, layer = photo()
            restored(image, [layer])
            image.delete()
            sizes.append(memory_of_gimp())
    wait_for(lambda: not plugin_processes(), "the plug-in's processes gone")
    settled = sizes[len(sizes) // 5]
    true(sizes[-1] - settled < MAY_GROW, f"grown by {sizes[-1] - settled:.1f} MiB: {sizes}")
    return f"{runs} runs, {settled:.1f} MiB after a fifth of them, {sizes[-1]:.1f} MiB at the end"


def memory_of_gimp():
    """MiB that GIMP has for itself; this is its Python, a child of it."""
    process = Path(f"/proc/{os.getppid()}")
    name = (process / "comm").read_text()
    true(name.startswith("gimp-console"), f"the parent process is {name}")
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return sum(int(lines[field].split()[0]) for field in ("RssAnon", "VmSwap")) / 1024
