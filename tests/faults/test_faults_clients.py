"""Clients that are killed, that flood, or that do not read: the others never notice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from face_restore_shared import connection
from face_restore_shared.schema import StatusReply
from harness import FaultHome, Tell, eventually
from worker_process import RawClient

# Sends jobs of 24 MB each, reads the answers, and says what it has come to.
VICTIM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from face_restore_shared import connection
from worker_process import RawClient
client = RawClient(connection.read(Path({file!r})))
print("connected", flush=True)
while True:
    for job in "ab":
        client.restore(job, "faces=3;delay=0.05;echo=1", width=4000, height=2000)
        print("sent", flush=True)
    for job in "ab":
        client.receive_final()
        print("answered", flush=True)
"""
MEMORY_SECONDS = 2.0


def connect(home: FaultHome, room: int = 1000) -> RawClient:
    """A client; room: messages its socket takes in before the program reads them."""
    found = connection.read(home.file)
    assert found is not None
    return RawClient(found, room=room)


def victim(home: FaultHome) -> subprocess.Popen[str]:
    code = VICTIM.format(tests=str(Path(__file__).parents[1]), file=str(home.file))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    home.processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


class Bystander(threading.Thread):
    """A second client, one small job after the other; `errors` must stay empty."""

    def __init__(self, home: FaultHome) -> None:
        super().__init__(daemon=True)
        self.home, self.done, self.errors = home, 0, []
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        with connect(self.home) as client:
            while not self.ended.is_set():
                client.restore(f"j{self.done}", "faces=1")
                header, _ = client.receive_final(60)
                if (header.type, header.id) != ("result", f"j{self.done}"):
                    self.errors.append((header.type, header.id, header.body))
                self.done += 1
                time.sleep(0.01)

    def end(self) -> None:
        self.ended.set()
        self.join(60)
        assert not self.is_alive()
        assert not self.errors, self.errors[:3]


def kill_clients(home: FaultHome, count: int, longest: float) -> tuple[float, float, int]:
    """Kill a client at `count` random moments of its jobs.

    Returns the longest time until the memory was back, the worker's growth over all of it in
    bytes, and the jobs a second client had done meanwhile.
    """
    worker = psutil.Process(home.worker().pid)
    randomly = random.Random(5)
    with connect(home) as client:  # once round, so that everything is loaded and allocated
        client.restore("w", "faces=1;echo=1", width=4000, height=2000)
        client.receive_final()
    bystander = Bystander(home)
    time.sleep(0.5)
    base, slowest = worker.memory_info().rss, 0.0
    first = base
    for _ in range(count):
        process = victim(home)
        time.sleep(randomly.uniform(0.0, longest))
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        process.wait()
        while worker.memory_info().rss > base + 20e6:
            assert time.monotonic() < killed + 30, f"{worker.memory_info().rss - base} bytes stay"
            time.sleep(0.02)
        slowest = max(slowest, time.monotonic() - killed)
        assert process.stdout is not None
        process.stdout.close()
    bystander.end()
    with connect(home) as client:
        status = StatusReply.from_wire(client.ask("status").body)
        assert (status.queue, status.state) == (0, "ready")
    return slowest, worker.memory_info().rss - first, bystander.done


def test_killed_clients(home: FaultHome, tell: Tell) -> None:
    slowest, growth, done = kill_clients(home, 3, 0.5)
    said = f"memory back within {slowest:.2f} s, {growth / 1e6:+.1f} MB; {done} other jobs in order"
    tell("client killed at a random moment", 3, said)
    home.stop_and_check_nothing_stays()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_two_hundred_killed_clients(home: FaultHome, tell: Tell) -> None:
    slowest, growth, done = kill_clients(home, 200, 1.2)
    said = f"memory back within {slowest:.2f} s, {growth / 1e6:+.1f} MB; {done} other jobs in order"
    tell("client killed at a random moment", 200, said)
    home.stop_and_check_nothing_stays()


def test_results_left_unread_are_limited(home: FaultHome, tell: Tell) -> None:
    """A client that sends jobs and reads nothing is refused; others go on."""
    worker = psutil.Process(home.worker().pid)
    with connect(home, room=1) as deaf, connect(home) as other:
        sent = 70
        for number in range(sent):
            deaf.restore(f"j{number}", "faces=1;echo=1", width=1000, height=700)
            if number % 16 == 15:
                other.restore("o", "faces=1")
                assert other.receive_final()[0].type == "result"
        most = worker.memory_info().rss
        kinds = [deaf.receive_final()[0] for _ in range(sent)]
        codes = [header.body.get("code") for header in kinds if header.type == "error"]
        assert set(codes) == {"busy"}
        assert len({header.id for header in kinds}) == sent
        said = f"{codes.count('busy')} jobs refused as busy, worker at most {most >> 20} MiB"
        tell(f"client that reads no results ({sent} jobs of 2 MB)", 1, said)
        deaf.restore("again", "faces=1")
        assert deaf.receive_final()[0].type == "result"
    eventually(lambda: worker.memory_info().rss < 150e6, "the memory is back")


@pytest.mark.slow
def test_refusals_left_unread_are_limited(home: FaultHome, tell: Tell) -> None:
    """A client that sends nonsense and reads nothing costs little, and is told in the end."""
    worker = psutil.Process(home.worker().pid)
    with connect(home, room=1) as flood, connect(home) as other:
        before = worker.memory_info().rss
        for _ in range(25_000):
            flood.send("x" * 64, "i" * 64, {})
        eventually(lambda: "listened to no longer" in home.log, "it is given up")
        other.restore("o", "faces=1")
        assert other.receive_final()[0].type == "result"
        grown = worker.memory_info().rss - before
        assert grown < 60e6
        last = [""]
        while "unread" not in last[-1]:
            last.append(flood.receive(20)[0].body["message"])
        answers = len(last) - 1
    tell(
        "client that sends nonsense and reads nothing (25,000 messages)",
        1,
        f"given up after {answers} answers, {grown / 1e6:.0f} MB; others go on",
    )
