"""Many jobs of mixed size from many clients that cancel and disconnect at random."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from face_restore_shared import connection
from harness import FaultHome, Tell, eventually
from worker_process import RawClient

SIZES = [(64, 48), (320, 240), (800, 600), (1600, 1200), (3000, 2000)]
WARM = 200  # jobs before memory and descriptors are looked at


@dataclass
class Tally:
    """What became of one client's jobs."""

    sent: int = 0
    results: int = 0
    cancelled: int = 0
    errors: list[str] = field(default_factory=list)
    disconnects: int = 0
    lost: int = 0  # jobs open when the client went away
    disorder: list[str] = field(default_factory=list)


class SoakClient:
    """Sends jobs, two or three at a time, and checks that each is answered once and in order."""

    def __init__(self, home: FaultHome, number: int, jobs: int) -> None:
        self.home, self.jobs = home, jobs
        self.random = random.Random(number)
        self.tally = Tally()
        self.open: list[str] = []
        self.cancelled: set[str] = set()
        self.client = self.connect()

    def connect(self) -> RawClient:
        found = connection.read(self.home.file)
        assert found is not None
        return RawClient(found)

    def send(self) -> None:
        """One job: the picture's faces are given, so that the search is left out."""
        width, height = self.random.choices(SIZES, (30, 30, 20, 15, 5))[0]
        job = f"j{self.tally.sent}"
        count = self.random.choice((1, 1, 2, 3))
        side = height * 0.4
        points = [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]]
        faces = [
            {
                "box": [x, side * 0.2, x + side, side * 1.2],
                "landmarks": [[x + u * side, side * (0.2 + v)] for u, v in points],
            }
            for x in (width * (0.05 + 0.3 * n) for n in range(count))
        ]
        body = {
            "image": {"width": width, "height": height, "channels": 3, "dtype": "uint8"},
            "restore": {"patch_dtype": self.random.choice(("uint8", "float32"))},
            "faces": faces,
        }
        self.client.send("restore", job, body, [bytes(width * height * 3)])
        self.tally.sent += 1
        self.open.append(job)
        if self.random.random() < 0.08:
            victim = self.random.choice(self.open)
            self.client.send("cancel", f"c{self.tally.sent}", {"job": victim})
            self.cancelled.add(victim)

    def take(self) -> None:
        """One final answer."""
        header, _ = self.client.receive_final(120)
        if header.type == "ok":
            return
        if header.id not in self.open:
            self.tally.disorder.append(f"{header.id} answered twice or never asked")
            return
        if header.type == "result":
            earlier = self.open[: self.open.index(header.id)]
            if any(job not in self.cancelled for job in earlier):
                self.tally.disorder.append(f"{header.id} before {earlier}")
            self.tally.results += 1
        elif header.body["code"] == "cancelled" and header.id in self.cancelled:
            self.tally.cancelled += 1
        else:
            self.tally.errors.append(str(header.body))
        self.open.remove(header.id)

    def run(self) -> None:
        while self.tally.sent < self.jobs:
            while len(self.open) < self.random.choice((1, 2, 3)):
                self.send()
            if self.random.random() < 0.02:
                self.tally.disconnects += 1
                self.tally.lost += len(self.open)
                self.open.clear()
                self.client.close()
                self.client = self.connect()
            else:
                self.take()
        while self.open:
            self.take()
        self.client.ask("status", "last")  # nothing more came before its answer
        self.client.close()


# Asks for the status until its input ends; prints how long each answer took, in ms. A process of
# its own, because the clients above keep this one's interpreter busy.
WATCH = """
import sys, threading, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from face_restore_shared import connection
from worker_process import RawClient
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with RawClient(connection.read(Path({file!r}))) as client:
    number = 0
    while not ended.wait(0.05):
        begin = time.perf_counter()
        client.ask("status", f"s{{number}}")
        print(1000 * (time.perf_counter() - begin))
        number += 1
"""


def watch(home: FaultHome) -> subprocess.Popen[str]:
    code = WATCH.format(tests=str(Path(__file__).parents[1]), file=str(home.file))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=home.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    home.processes.append(process)
    return process


@dataclass
class Figures:
    """Of the worker's process when it has nothing to do."""

    rss: int
    descriptors: int


def settled(process: psutil.Process, seconds: float) -> Figures:
    """Figures after a moment without work."""
    time.sleep(seconds)
    eventually(lambda: process.num_fds() < 40, "descriptors are closed")
    return Figures(process.memory_info().rss, process.num_fds())


def spawn(home: FaultHome) -> psutil.Process:
    command = [sys.executable, str(Path(__file__).with_name("soak_worker.py")), "--quiet"]
    process = subprocess.Popen(command, env=home.environment(OMP_NUM_THREADS="1"))
    home.processes.append(process)
    eventually(lambda: home.listening() == process.pid, "the worker listens")
    return psutil.Process(process.pid)


def drive(home: FaultHome, clients: int, jobs: int, seed: int) -> list[Tally]:
    """`jobs` jobs from so many clients at the same time."""
    all_clients = [SoakClient(home, seed + n, jobs // clients) for n in range(clients)]
    threads = [threading.Thread(target=one.run, daemon=True) for one in all_clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1500)
        assert not thread.is_alive(), "a client hangs"
    return [one.tally for one in all_clients]


def soak(home: FaultHome, process: psutil.Process, jobs: int, warm: int) -> tuple[str, float]:
    """Run it; a row's text, and the growth of memory after the first `warm` jobs."""
    watching = watch(home)
    begin = time.monotonic()
    seconds = 0.3 if jobs < 1000 else 5.0
    tallies = drive(home, 8, warm, 1)
    before = settled(process, seconds)
    tallies += drive(home, 8, jobs - warm, 100)
    after = settled(process, seconds)
    times = [float(line) for line in watching.communicate("", timeout=120)[0].split()]
    for tally in tallies:
        assert not tally.disorder and not tally.errors, tally
        assert tally.results + tally.cancelled + tally.lost == tally.sent
    sums = {
        name: sum(getattr(tally, name) for tally in tallies)
        for name in ("sent", "results", "cancelled", "disconnects", "lost")
    }
    growth = after.rss / before.rss - 1
    eventually(lambda: process.num_fds() <= before.descriptors, "no descriptor stays")
    p99 = statistics.quantiles(times, n=100)[98]
    text = (
        ", ".join(f"{number} {name}" for name, number in sums.items())
        + f"; {time.monotonic() - begin:.0f} s; memory {before.rss / 1e6:.1f} to "
        + f"{after.rss / 1e6:.1f} MB ({100 * growth:+.2f} %), descriptors {before.descriptors} to "
        + f"{after.descriptors}; status median {statistics.median(times):.1f} ms, "
        + f"99 % under {p99:.1f} ms"
    )
    return text, growth


def test_a_short_soak(home: FaultHome, tell: Tell) -> None:
    """With the scripted engine."""
    process = psutil.Process(home.worker().pid)
    text, growth = soak(home, process, 160, 80)
    tell("soak, 8 clients, scripted engine", 160, text)
    assert growth < 0.1


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_soak(home: FaultHome, tell: Tell) -> None:
    """With the real engine and pipeline."""
    text, growth = soak(home, spawn(home), 2000, WARM)
    tell("soak, 8 clients, real pipeline", 2000, text)
    assert growth < 0.02
