"""The server as a real process on a real port, with a scripted engine."""

from __future__ import annotations

import collections
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
from face_restore_shared import wire
from face_restore_shared.schema import (
    HelloReply,
    ModelsReply,
    RestoreResult,
    StatusReply,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_process import Worker, eventually, faces, start_job, state, untouched_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all tests that leave it as it was."""
    with untouched_worker(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that jobs of the FakeEngine wait for; not there yet."""
    return tmp_path / "gate"


# -- requests -------------------------------------------------------------------------------------


def test_hello_status_models(worker: Worker) -> None:
    with worker.raw() as client:
        hello = HelloReply.from_wire(client.ask("hello", "1", {"client": "test"}).body)
        assert (hello.protocol, hello.pid) == (1, worker.process.pid)
        status = StatusReply.from_wire(client.ask("status").body)
        assert status.device.name == "Fake"
        assert status.models_loaded == ("Fake",)
        assert status.log == str(worker.log_file)
        assert 10e6 < status.rss < 1e9
        models = ModelsReply.from_wire(client.ask("models").body)
        assert [m.id for m in models.models] == ["fake"]


def test_a_job_from_accepted_to_result(worker: Worker) -> None:
    with worker.raw() as client:
        client.restore("job", "faces=2", width=20, height=30)
        seen = []
        while True:
            header, frames = client.receive()
            assert header.id == "job"
            if header.type == "progress":
                seen.append((header.body["stage"], header.body["face"]))
            elif header.type == "result":
                break
            else:
                assert header.type in ("accepted", "pulse")
        assert seen[:4] == [("detecting", 0), ("restoring", 1), ("restoring", 2), ("pasting", 2)]
        body, declared = wire.take_sizes(header.body)
        result = RestoreResult.from_wire(body)
        assert declared == result.buffers == [12 * 12 * 3, 12 * 12] * 2
        assert [len(frame) for frame in frames] == declared


def test_large_pictures_go_round_unchanged(worker: Worker) -> None:
    pixels = os.urandom(1 << 20) * 36  # three frames
    with worker.raw() as client:
        image = {"width": 4096, "height": 3072, "channels": 3, "dtype": "uint8"}
        client.send("restore", "1", {"image": image, "restore": {"model": "echo=1"}}, [pixels])
        header, frames = client.receive_final()
        assert header.type == "result"
        assert b"".join(frames[:3]) == pixels


def test_jobs_run_in_order_and_positions_count_down(worker: Worker, gate: Path) -> None:
    with worker.raw() as first, worker.raw() as second:
        start_job(first, worker, "a", f"faces=1;until={gate}")
        first.restore("b", "faces=1;delay=0.2")
        assert [first.receive_of(("accepted",)).body["position"] for _ in range(2)] == [0, 1]
        second.restore("c")
        positions = [second.receive_of(("accepted",)).body["position"]]
        gate.touch()
        order = []
        while len(order) < 2:
            header, _ = first.receive()
            if header.type == "result":
                order.append((header.id, time.monotonic()))
        while positions[-1] != "result":
            header, _ = second.receive()
            if header.type in ("accepted", "result"):
                positions.append(header.body.get("position", header.type))
        assert [job for job, _ in order] == ["a", "b"]
        assert positions == [2, 1, 0, "result"]


def test_the_pulse_beats_while_a_job_is_open(worker: Worker, gate: Path) -> None:
    with worker.raw() as client:
        client.restore("a", f"faces=1;until={gate}")
        client.restore("b")
        pulses: collections.Counter[str] = collections.Counter()
        finals = []
        while len(finals) < 2:
            header, _ = client.receive()
            pulses[header.id] += header.type == "pulse"
            finals += [header.id] if header.type == "result" else []
            if min(pulses["a"], pulses["b"]) >= 2:
                gate.touch()
        assert finals == ["a", "b"]


def test_status_answers_while_a_face_is_restored(worker: Worker) -> None:
    with worker.raw() as busy, worker.raw() as client:
        start_job(busy, worker, "a", "faces=500;delay=0.5;spin=1")
        times = []
        for number in range(50):
            begin = time.perf_counter()
            reply = client.ask("status", str(number))
            times.append(time.perf_counter() - begin)
            assert reply.body["state"] == "busy"
            time.sleep(0.01)
        busy.send("cancel", "x", {"job": "a"})
    median, worst = statistics.median(times) * 1000, max(times) * 1000
    print(f"status while busy in Python bytecode: median {median:.1f} ms, worst {worst:.1f} ms")
    assert max(times) < 10  # it waited for no face to end; how long exactly is the machine's affair


# -- cancelling and vanishing clients -------------------------------------------------------------


def test_cancelling_the_running_job(worker: Worker) -> None:
    with worker.raw() as client:
        start_job(client, worker, "a", "faces=50;delay=0.2")
        client.send("cancel", "x", {"job": "a"})
        answers = {}
        while len(answers) < 2:
            header, _ = client.receive()
            if header.type in ("error", "ok"):
                answers[header.id] = header.body
        begun = faces(worker)
        assert answers["a"]["code"] == "cancelled"
        assert answers["x"] == {"job": "a", "found": True}
        eventually(lambda: state(client) == "ready", "the engine lets go of it")
        assert faces(worker) <= begun + 1
        assert client.ask("cancel", "y", {"job": "a"}).body["found"] is False


def test_cancelling_a_waiting_job(worker: Worker, gate: Path) -> None:
    with worker.raw() as client:
        start_job(client, worker, "a", f"faces=1;until={gate}")
        client.restore("b")
        client.send("cancel", "x", {"job": "b"})
        assert client.receive_of(("error",)).body["code"] == "cancelled"
        gate.touch()
        assert client.receive_of(("result",)).id == "a"


def test_a_job_belongs_to_its_client(worker: Worker, gate: Path) -> None:
    with worker.raw() as owner, worker.raw() as other:
        start_job(owner, worker, "a", f"faces=1;until={gate}")
        assert other.ask("cancel", "x", {"job": "a"}).body["found"] is False
        gate.touch()
        assert owner.receive_final()[0].type == "result"


def test_a_client_that_closes_loses_its_jobs(worker: Worker) -> None:
    gone, client = worker.raw(), worker.raw()
    start_job(gone, worker, "a", "faces=500;delay=0.1")
    gone.restore("b", "faces=500")
    gone.restore("c", "faces=500")
    while gone.receive_of(("accepted",)).id != "c":
        pass
    gone.close()
    begun = faces(worker)
    eventually(lambda: state(client) == "ready", "the jobs are dropped")
    assert faces(worker) < begun + 100  # one more, unless the machine is very busy
    client.restore("next")
    assert client.receive_final()[0].type == "result"
    client.close()


VICTIM = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from face_restore_shared import connection
from worker_process import RawClient
client = RawClient(connection.read(Path({file!r})))
for job in "abc":
    client.restore(job, "faces=50;delay=0.3", width=6000, height=3000)
time.sleep(60)
"""


def test_a_killed_client_loses_its_jobs_and_their_memory(worker: Worker) -> None:
    with worker.raw() as client:
        before = StatusReply.from_wire(client.ask("status").body).rss
        code = VICTIM.format(tests=str(Path(__file__).parent), file=str(worker.file))
        victim = subprocess.Popen([sys.executable, "-c", code])
        eventually(lambda: StatusReply.from_wire(client.ask("status").body).queue == 2, "queued")
        assert StatusReply.from_wire(client.ask("status").body).rss > before + 100e6
        victim.kill()
        killed = time.monotonic()
        victim.wait()
        begun = faces(worker)
        eventually(lambda: state(client) == "ready", "the jobs are dropped")
        assert faces(worker) < begun + 20  # of 150; one more, unless the machine is very busy
        eventually(
            lambda: StatusReply.from_wire(client.ask("status").body).rss < before + 20e6,
            "the memory is back",
        )
        print(f"memory back {time.monotonic() - killed:.2f} s after kill -9 (a face takes 0.3 s)")


def test_every_job_is_answered_exactly_once(worker: Worker) -> None:
    answers: collections.Counter[str] = collections.Counter()
    with worker.raw() as client:
        for number in range(24):
            script = ("faces=1", "faces=3;fail=out-of-memory", "faces=2;delay=0.02")[number % 3]
            client.restore(f"j{number}", script)
            if number % 4 == 1:
                client.send("cancel", f"c{number}", {"job": f"j{number}"})
                client.send("cancel", f"d{number}", {"job": f"j{number - 1}"})
        while sum(answers.values()) < 24:
            header, _ = client.receive()
            if header.id.startswith("j") and header.type in ("result", "error"):
                answers[header.id] += 1
        time.sleep(0.3)
        client.ask("status", "last")  # nothing more came before its answer
    assert len(answers) == 24
    assert set(answers.values()) == {1}


def test_jobs_are_counted_by_how_they_ended(worker: Worker, gate: Path) -> None:
    def counts() -> tuple[int, int, int]:
        status = StatusReply.from_wire(client.ask("status").body)
        return status.jobs_done, status.jobs_failed, status.jobs_cancelled

    with worker.raw() as client, worker.raw() as gone:
        done, failed, cancelled = counts()
        for number, script in enumerate(("faces=1", "faces=2;fail=out-of-memory", "faces=1")):
            client.restore(f"j{number}", script)
            client.receive_final()
        start_job(client, worker, "running", f"faces=2;until={gate}")
        client.restore("waiting", "faces=1")
        for job in ("running", "waiting"):
            client.send("cancel", "x", {"job": job})
            client.receive_of(("error",))
        gone.restore("nobody's", "faces=1")
        gone.receive_of(("accepted",))
        gone.close()
        eventually(lambda: counts()[2] == cancelled + 3, "the closed client's is counted, too")
        gate.touch()
        eventually(lambda: state(client) == "ready", "the engine lets go of the running one")
        assert counts() == (done + 2, failed + 1, cancelled + 3)


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_jobs_errors_keep_their_code(worker: Worker) -> None:
    with worker.raw() as client:
        client.restore("a", "faces=2;fail=out-of-memory")
        body = client.receive_final()[0].body
        assert (body["code"], body["message"], body["hint"], body["job"]) == (
            "out-of-memory",
            "It failed.",
            "Try again.",
            "a",
        )
        client.restore("unique-name", "faces=2;fail=internal")
        body = client.receive_final()[0].body
        assert body["code"] == "internal"
        assert "ZeroDivisionError" in body["message"]
        client.restore("b")
        assert client.receive_final()[0].type == "result"
    assert worker.log.count("unique-name failed") == 1
    assert worker.log.count("ZeroDivisionError: as the script says") == 1


def test_bad_requests_are_answered_and_logged_once(worker: Worker) -> None:
    image = {"width": 4, "height": 2, "channels": 3, "dtype": "uint8"}
    with worker.raw() as client:
        for kind, body, buffers, named in [
            ("novel", {}, [], "novel"),
            ("hello", {"x": 1}, [], "x"),
            ("hello", {}, [b"abc"], "no pixels"),
            ("status", {"x": 1}, [], "empty"),
            ("cancel", {}, [], "job"),
            ("restore", {}, [], "image"),
            ("restore", {"image": image}, [], "bytes"),
            ("restore", {"image": image}, [bytes(23)], "bytes"),
            ("restore", {"image": image, "selection": True}, [bytes(24)], "bytes"),
            ("restore", {"image": {**image, "width": 0}}, [bytes(24)], "image.width"),
            ("restore", {"image": image, "strength": 1}, [bytes(24)], "strength"),
            ("detect", {"image": image, "detect": {"threshold": 7}}, [bytes(24)], "threshold"),
        ]:
            client.send(kind, "r", body, buffers)
            header, _ = client.receive()
            assert (header.type, header.id) == ("error", "r")
            assert header.body["code"] == "bad-request"
            assert named in header.body["message"]
        for _ in range(5):
            client.send("again and again", "r", {})
            client.receive()
        client.send("status", "", {})
        assert "id" in client.receive()[0].body["message"]
    assert worker.log.count("again and again") == 1


def test_a_declared_size_takes_no_memory(worker: Worker) -> None:
    image = {"width": 16384, "height": 16384, "channels": 3, "dtype": "float32"}
    header = wire.encode_header("restore", "1", {"image": image, "buffers": [3 << 30]})
    with worker.raw() as client:
        before = psutil.Process(worker.process.pid).memory_info().vms
        client.socket.send_multipart([header, b"few bytes"])
        assert client.receive()[0].body["code"] == "bad-request"
        assert psutil.Process(worker.process.pid).memory_info().vms < before + 50e6


def test_another_protocol_version_is_told_who_is_older(worker: Worker) -> None:
    with worker.raw() as client:
        for version, outdated in ((2, "The worker is older"), (0, "older than the worker")):
            frame = {"v": version, "type": "hello", "id": "1", "body": {"form": "unknown"}}
            client.socket.send(msgpack.packb(frame))
            header, _ = client.receive()
            assert (header.type, header.id) == ("error", "1")
            assert header.body["code"] == "protocol-mismatch"
            assert outdated in header.body["hint"]


def test_the_same_id_twice_leaves_the_first_alone(worker: Worker, gate: Path) -> None:
    with worker.raw() as client:
        start_job(client, worker, "a", f"faces=1;until={gate}")
        client.restore("a")
        header = client.receive_of(("error",))
        assert (header.id, header.body["code"]) == ("", "bad-request")
        gate.touch()
        assert client.receive_of(("result",)).id == "a"


def test_a_flood_is_refused_and_others_go_on(worker: Worker, gate: Path) -> None:
    with worker.raw() as flood, worker.raw() as other:
        start_job(flood, worker, "a", f"faces=1;until={gate}")
        for number in range(40):
            flood.restore(f"f{number}")
        other.restore("o")
        refused = [flood.receive_of(("error",)).body for _ in range(9)]
        assert {body["code"] for body in refused} == {"busy"}
        gate.touch()
        assert other.receive_final()[0].type == "result"
        done = [flood.receive_final()[0] for _ in range(32)]
        assert {header.type for header in done} == {"result"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_any_frames_get_an_error(worker: Worker, frames: list[bytes]) -> None:
    with worker.raw() as client:
        client.socket.send_multipart(frames)
        assert client.receive()[0].type == "error"
        assert state(client) == "ready"
