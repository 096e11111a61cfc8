"""An exception anywhere in a job is that job's error, is logged once, and harms nobody else."""

from __future__ import annotations

import pytest
from face_restore_shared import connection
from harness import FaultHome, Tell
from worker_process import RawClient

WHAT = [
    "ZeroDivisionError",
    "MemoryError",
    "RecursionError",
    "OSError",
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
    "StopIteration",
    "unspeakable",
]
WHERE = ["take", "progress", "face", "result"]


def test_an_exception_anywhere_is_the_jobs_error(home: FaultHome, tell: Tell) -> None:
    home.worker()
    found = connection.read(home.file)
    assert found is not None
    cases = [(what, where) for where in WHERE for what in WHAT]
    cases += [
        ("x", "size"),
        ("x", "text"),
    ]  # a result that is not what it says; that cannot be sent
    with RawClient(found) as client, RawClient(found) as other:
        for number, (what, where) in enumerate(cases):
            client.restore(f"job-{number}-", f"faces=2;raise={what}@{where}")
            client.restore(f"next-{number}-", "faces=1")
            other.restore("o", "faces=1")
            header, _ = client.receive_final()
            assert (header.type, header.id) == ("error", f"job-{number}-")
            code = "out-of-memory" if what == "MemoryError" else "internal"
            assert header.body["code"] == code, header.body
            assert header.body["hint"]
            assert client.receive_final()[0].type == "result"
            assert other.receive_final()[0].type == "result"
        assert client.ask("hello").body["pid"] == home.listening()
    log = home.log
    for number in range(len(cases)):
        assert log.count(f"restore job job-{number}- failed") == 1
    assert log.count("Traceback (most recent call last)") >= len(cases) - len(WHERE)
    tell("exception of 9 kinds at 6 places in a job", len(cases), "each that job's error, once")


@pytest.mark.slow
def test_through_the_command_line(home: FaultHome) -> None:
    home.worker()
    script = "faces=1;raise=SystemExit@take"
    source, target = home.picture(), home.folder / "out.png"
    done = home.run_cli("restore", source, "-o", target, "--model", script)
    assert done.returncode == 1
    assert "SystemExit" in done.stderr and "worker logs" in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()
    assert home.run_cli("restore", source, "-o", target, "--model", "faces=1").returncode == 0
