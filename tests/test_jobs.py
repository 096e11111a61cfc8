"""The queue by itself."""

from __future__ import annotations

import pytest
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import (
    DetectRequest,
    ImageSpec,
)
from face_restore_worker.server.jobs import Job, JobQueue, Limits


def job(client: bytes, name: str, nbytes: int = 10) -> Job:
    request = DetectRequest(ImageSpec(1, 1))
    return Job(client, name, request, [], nbytes)


def refused(queue: JobQueue, new: Job) -> str:
    with pytest.raises(FaceRestoreError) as caught:
        queue.add(new)
    assert caught.value.code == "busy"
    return caught.value.message


def test_limits_of_the_queue() -> None:
    queue = JobQueue(Limits(jobs_per_client=2, jobs=4, queued_bytes=100))
    queue.add(job(b"a", "1", 1000))  # nothing else is there: always taken
    assert "MiB" in refused(queue, job(b"b", "1", 1))
    running = queue.next()
    assert running is not None
    running.answered = True  # cancelled, but the engine still holds its pixels
    assert list(queue) == []
    queue.add(job(b"a", "2"))
    assert "MiB" in refused(queue, job(b"b", "1", 1))
    queue.running = None
    queue.add(job(b"a", "3"))
    assert "This client" in refused(queue, job(b"a", "4"))
    queue.add(job(b"b", "1"))
    queue.add(job(b"b", "2"))
    assert "The worker has 4" in refused(queue, job(b"c", "1"))
    assert [(j.client, j.id) for j in queue.of_client(b"b")] == [(b"b", "1"), (b"b", "2")]


def test_positions_are_told_when_they_change() -> None:
    queue = JobQueue(Limits())
    jobs = [job(b"a", str(n)) for n in range(4)]
    for one in jobs:
        queue.add(one)
    assert queue.next() is jobs[0]
    assert queue.next() is None
    assert [(j.id, j.position) for j in queue.moved()] == [("1", 1), ("2", 2), ("3", 3)]
    assert queue.moved() == []
    queue.remove(jobs[2])
    assert [(j.id, j.position) for j in queue.moved()] == [("3", 2)]
    queue.running = None
    assert queue.next() is jobs[1]
    assert [(j.id, j.position) for j in queue.moved()] == [("3", 1)]
    assert queue.find(b"a", "3") is jobs[3]
    assert queue.find(b"b", "3") is None
