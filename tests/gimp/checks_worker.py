"""The worker as seen from GIMP: missing, refused, killed in the middle; the plug-in killed."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from suite import (
    FOLDER,
    Meanwhile,
    check,
    equal,
    paths,
    photo,
    restored,
    run,
    state,
    true,
    wait_for,
    worker_connection,
    worker_status,
)


def plugin_processes():
    """The plug-in's processes, by their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if b"/plug-ins/face_restore/face_restore.py" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def busy():
    """Wait until the worker has a job."""
    wait_for(lambda: (now := state()) is not None and now.state == "busy", "the worker at work")


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

    def kill():
        busy()
        os.kill(first.pid, signal.SIGKILL)

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
    done = state().jobs_done

    def kill():
        busy()
        for pid in plugin_processes():
            os.kill(pid, signal.SIGKILL)

    with Meanwhile(kill):
        outcome = run(image, [layer])
    true(not outcome.good, "a killed plug-in succeeded")
    equal(len(image.get_layers()), 1, "layers")
    start = time.monotonic()
    idle()
    dropped = time.monotonic() - start
    restored(image, [layer])
    equal(len(image.get_layers()), 2, "layers of the next run")
    return f"worker free after {dropped:.1f} s, {state().jobs_done - done} jobs done since"


@check
def a_wrong_token():
    image, layer = photo()
    file = paths.connection_file()
    right = file.read_bytes()
    wrong = json.dumps({**json.loads(right), "token": "0" * 64})
    try:
        # The worker mends its file every few seconds: each question gets the wrong one anew, and
        # is asked again where it was mended in between.
        for _attempt in range(8):
            file.write_text(wrong)
            outcome = run(image, [layer])
            if outcome.status != "SUCCESS":
                break
            for made in image.get_layers()[:-1]:
                image.remove_layer(made)
        for _attempt in range(8):
            file.write_text(wrong)
            text = worker_status()
            if "code" in text:
                break
    finally:
        file.write_bytes(right)
    equal(outcome.status, "EXECUTION_ERROR", "status")
    true("face-restore worker restart" in outcome.message, outcome.message)
    equal(text.get("code"), "wrong-token", "status text")
    equal(len(image.get_layers()), 1, "layers")
    return outcome.message


@check
def another_protocol_version():
    image, layer = photo()
    file = paths.connection_file()
    right = file.read_bytes()
    other = json.dumps({**json.loads(right), "protocol": 99})
    try:
        for _attempt in range(8):  # as above: the worker may mend the file in between
            file.write_text(other)
            outcome = run(image, [layer])
            if outcome.status != "SUCCESS":
                break
            for made in image.get_layers()[:-1]:
                image.remove_layer(made)
    finally:
        file.write_bytes(right)
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
    first = worker_connection()
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: state() is None, "the worker gone")
    equal(worker_status()["state"], "not running", "status")
    restored(image, [layer])
    true(worker_connection().pid != first.pid, "no new worker")


@check
def the_worker_missing_and_not_startable():
    image, layer = photo()
    first = worker_connection()
    settings = FOLDER / "profile" / "plug-ins" / "face_restore" / "face_restore_paths.json"
    right = settings.read_bytes()
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: state() is None, "the worker gone")
    try:
        settings.write_text('{"worker_command": ["/bin/sh", "-c", "echo no torch >&2; exit 3"]}')
        outcome = run(image, [layer])
        settings.write_text("{")
        broken = run(image, [layer])
    finally:
        settings.write_bytes(right)
    equal(outcome.status, "EXECUTION_ERROR", "status")
    for part in ("status 3", "no torch", "worker-output.log", "face-restore doctor"):
        true(part in outcome.message, f"{part} is not in: {outcome.message}")
    true("face-restore gimp install" in broken.message, broken.message)
    equal(len(image.get_layers()), 1, "layers")
    restored(image, [layer])
    return outcome.message


@check
def repeated_runs_do_not_grow():
    """Twenty runs in one GIMP process: GIMP's own memory after the fifth and after the last."""
    runs = int(os.environ.get("FACE_RESTORE_RUNS", "20"))
    gimp = os.getppid()  # this is GIMP's Python, a child of it
    sizes = []
    for _number in range(runs):
        image, layer = photo()
        restored(image, [layer])
        image.delete()
        status = Path(f"/proc/{gimp}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        sizes.append(int(line.split()[1]) / 1024)
    wait_for(lambda: not plugin_processes(), "the plug-in's processes gone", 20)
    grown = sizes[-1] - sizes[len(sizes) // 4]
    true(grown < 30, f"grown by {grown:.0f} MiB: {sizes}")
    return f"{runs} runs, {sizes[len(sizes) // 4]:.0f} MiB, then {sizes[-1]:.0f} MiB"
