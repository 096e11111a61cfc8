"""The fuzzing targets themselves: their seeds pass, and each reaches the code it is to attack."""

from __future__ import annotations

import random
import subprocess
import sys

import fuzz_common as common
import image_target
import model_targets
import port_target
import pytest
import wire_targets
from face_restore_shared import wire, zmtp_frames
from worker_process import eventually

TARGETS = [
    *wire_targets.TARGETS,
    *port_target.TARGETS,
    *model_targets.TARGETS,
    *image_target.TARGETS,
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_seeds_and_changed_seeds_are_harmless(target: common.Target) -> None:
    rng = random.Random(4)
    seeds = list(target.seeds())
    assert len(seeds) >= 5
    for seed in seeds:
        target.check(seed)
        for _ in range(3 if target.mutate else 0):
            assert target.mutate is not None
            target.check(target.mutate(seed, rng))


def test_the_watch_sees_memory_and_programs() -> None:
    """The other tests prove something only if their alarms can go off."""
    if common.peak_memory() is not None:
        with pytest.raises(common.Finding, match="took"), common.at_most(8 * common.MB):
            bytearray(b"x") * (64 * common.MB)
    with pytest.raises(common.Finding, match="Popen"), common.no_side_effects():
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_the_port_seeds_reach_the_program() -> None:
    """If logging in failed, only the handshake would be attacked."""
    (hello, status, *_) = wire_targets.message_seeds()
    frame = wire_targets.cut_frames(status)[0]
    port_target.check_port(b"\2" + hello)
    port = port_target._port
    assert port is not None
    # Each time the other client's status is one message more.
    for data, messages in [
        (b"\2" + status, 3),  # the message, and the probe behind it
        (b"\1" + zmtp_frames.encode_header(len(frame)) + frame, 2),
        (b"\0" + status, 1),
    ]:
        wanted = port.server.messages + messages
        port_target.check_port(data)
        eventually(lambda wanted=wanted: port.server.messages == wanted, f"mode {data[0]}")


def test_examples_are_understood() -> None:
    for kind, body, buffers in wire_targets.EXAMPLES:
        header = wire.decode_header(bytes(wire.message(kind, "1", body, buffers)[0]))
        plain, _ = wire.take_sizes(header.body)
        kinds = wire_targets._KINDS.get(kind, ())
        understood = [k for k in kinds if wire_targets._same_again(k, plain) is not None]
        assert understood or not kinds or not plain, kind


def test_a_finding_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_targets.connection, "parse", lambda data, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wire_targets.check_connection(b"{}")
