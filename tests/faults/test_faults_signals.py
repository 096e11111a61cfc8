"""kill -9, SIGTERM, SIGSTOP and SIGCONT at every stage of a worker's life.

Clients get an answer or an error soon; the next job works; nothing stays behind.
"""

from __future__ import annotations

import collections
import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from harness import PICTURE, Client, FaultHome, Tell, eventually, in_time, send, stop_for

SIGNALS = ["SIGKILL", "SIGTERM", "SIGSTOP"]
STAGES = ["start", "load", "queue", "inference", "reply"]
LARGE = np.zeros((6000, 5000, 3), np.uint8)
# A job gets its answer from a new worker, but for two errors that are told at once: the worker
# ended or was stopped while it started, or it was stopped already when the client came.
ERRORS = {"start": {"worker-start"}, "SIGSTOP": {"worker-not-answering"}}


def one(home: FaultHome, name: str, stage: str, stopped: float) -> tuple[list[str], float]:
    """One fault: what became of the clients' jobs, and how late the last of them knew.

    stopped: seconds from SIGSTOP to SIGCONT.
    """
    number = getattr(signal, name)
    sent: list[float] = []

    def strike(pid: int) -> None:
        sent.append(send(pid, number))
        if name == "SIGSTOP":
            stop_for(pid, stopped)

    home.trace_file.unlink(missing_ok=True)
    if stage == "start":
        clients = _while_it_starts(home, strike)
    else:
        delay = "1.0" if stage == "load" else "0"
        worker = home.worker(FAKE_ENGINE_START_DELAY=delay)
        clients = _while_it_works(home, stage, lambda: strike(worker.pid))
    for client in clients:
        client.end()
    late = max(client.told for client in clients) - sent[0]
    if (name, stage) != ("SIGSTOP", "start"):  # that holds the lock until it goes on
        home.check_next_job()
    if name == "SIGSTOP":
        time.sleep(max(0.0, sent[0] + stopped + 0.1 - time.monotonic()))
        home.check_next_job()
    home.stop_and_check_nothing_stays()
    for client in clients:
        if client.outcome != "answer":
            print(f"{name} during {stage}: {client.error}")
    return [client.outcome for client in clients], late


def _while_it_starts(home: FaultHome, strike: Callable[[int], None]) -> list[Client]:
    os.environ["FAULT_HOLD"] = "locked"
    try:
        client = Client("faces=1")
        eventually(lambda: "held locked" in home.trace, "it starts")
    finally:
        del os.environ["FAULT_HOLD"]
    strike(int(home.trace.split()[-1]))
    return [client]


def _while_it_works(home: FaultHome, stage: str, strike: Callable[[], None]) -> list[Client]:
    struck: list[bool] = []

    def at_reply(seen: str) -> None:
        if seen == "sending" and stage == "reply" and not struck:
            struck.append(True)
            strike()

    big = stage == "reply"
    script = "faces=1;echo=1" if big else "faces=4;delay=0.15"
    clients = [Client(script, LARGE if big else PICTURE, at_reply)]
    if stage == "load":
        time.sleep(0.2)
    else:
        eventually(lambda: clients[0].stages, "the first job is under way")
    clients.append(Client("faces=1"))
    if stage == "queue":
        eventually(lambda: clients[1].stages, "the second job waits")
    if stage != "reply":
        strike()
    else:
        eventually(lambda: struck, "the reply is sent")
    return clients


def trials(home: FaultHome, name: str, stage: str, count: int, stopped: float) -> str:
    """Several faults of a kind; asserts what must hold, and returns a row's text."""
    seen: collections.Counter[str] = collections.Counter()
    latest = 0.0
    for _ in range(count):
        outcomes, late = one(home, name, stage, stopped)
        seen.update(outcomes)
        latest = max(latest, late)
        allowed = {"answer"} | ERRORS.get(stage, set()) | ERRORS.get(name, set())
        assert set(outcomes) <= allowed, outcomes
        assert in_time(late), f"told after {late:.1f} s"
    what = ", ".join(f"{number} x {outcome}" for outcome, number in sorted(seen.items()))
    return f"{what}; told within {latest:.1f} s"


def through_the_command(home: FaultHome, name: str, stage: str, stopped: float) -> str:
    """One fault while the command line waits for its picture; how the command ended."""
    home.trace_file.unlink(missing_ok=True)
    number = getattr(signal, name)
    source = home.picture(size=(5000, 4000) if stage == "reply" else (48, 40))
    target = home.folder / "out.png"
    script = "faces=1;echo=1" if stage == "reply" else "faces=4;delay=0.3"
    options = ("restore", source, "-o", target, "--overwrite", "--model", script)
    other = None
    if stage == "start":
        command = home.cli(*options, FAULT_HOLD="locked")
        eventually(lambda: "held locked" in home.trace, "it starts")
        pid = int(home.trace.split()[-1])
    else:
        pid = home.worker(FAKE_ENGINE_START_DELAY="3" if stage == "load" else "0").pid
        if stage == "queue":
            other = Client("faces=9;delay=0.4")
            eventually(lambda: "face 1" in home.trace, "another job runs")
        jobs = home.log.count("restore job")
        command = home.cli(*options)
        reached = {
            "load": lambda: True,
            "queue": lambda: home.waiting() == 1,
            "inference": lambda: "face 2" in home.trace,
            "reply": lambda: home.log.count("restore job") > jobs,
        }[stage]
        eventually(reached, "the stage is reached")
    struck = send(pid, number)
    if name == "SIGSTOP":
        stop_for(pid, stopped)
    _, said = command.communicate(timeout=120)
    took = time.monotonic() - struck
    assert "Traceback" not in said, said
    assert command.returncode in (0, 3), said
    assert (command.returncode == 0) == target.exists(), said
    assert command.returncode == 0 or stage == "start" or name == "SIGSTOP", said
    target.unlink(missing_ok=True)
    assert in_time(took), f"ended after {took:.1f} s"
    if other is not None:
        other.end()
    if name == "SIGSTOP":
        time.sleep(max(0.0, struck + stopped + 0.1 - time.monotonic()))
    assert home.run_cli("restore", source, "-o", target, "--model", "faces=1").returncode == 0
    target.unlink()
    home.stop_and_check_nothing_stays()
    return f"exit status {command.returncode} after {took:.1f} s"


@pytest.mark.parametrize(("name", "stage"), [("SIGKILL", "start"), ("SIGTERM", "queue")])
def test_a_signal(home: FaultHome, tell: Tell, name: str, stage: str) -> None:
    tell(f"{name} during {stage}", 1, trials(home, name, stage, 1, 3.0))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_at_every_stage(home: FaultHome, tell: Tell, name: str, stage: str) -> None:
    count, stopped = (3, 30.0) if name == "SIGSTOP" else (8, 0.0)
    tell(f"{name} during {stage}", count, trials(home, name, stage, count, stopped))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_through_the_command(
    home: FaultHome, tell: Tell, name: str, stage: str
) -> None:
    ends = [through_the_command(home, name, stage, 8.0) for _ in range(2)]
    tell(f"{name} during {stage} (command line)", len(ends), "; ".join(ends))
