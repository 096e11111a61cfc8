"""WorkerClient: arrays there and back, and every way a worker can be missing or lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from face_restore_shared import connection, wire
from face_restore_shared.connection import Connection
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import (
    Accepted,
    DetectOptions,
    FaceReport,
    HelloReply,
    PatchSpec,
    Progress,
    RestoreOptions,
    RestoreResult,
)
from face_restore_worker.client import arrays
from face_restore_worker.client.client import WorkerClient
from face_restore_worker.client.errors import (
    TokenRefused,
    WorkerLost,
    WorkerNotAnswering,
    WorkerNotRunning,
)
from face_restore_worker.engine import convert
from face_restore_worker.pipeline.types import Face, Patch, RestoreOutcome
from face_restore_worker.server.zap import DOMAIN, ZapHandler
from hypothesis import given
from hypothesis import strategies as st
from worker_process import Worker, eventually, start_job

PICTURE = np.arange(40 * 30 * 3, dtype=np.uint16).astype(np.uint8).reshape(40, 30, 3)
LANDMARKS = [[3, 4], [9, 4], [6, 7], [4, 10], [8, 10]]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def client(worker: Worker) -> Iterator[WorkerClient]:
    with WorkerClient.connect(worker.connection) as connected:
        yield connected


# -- pictures and results -----------------------------------------------------------------------


def test_restore(client: WorkerClient) -> None:
    seen: list[Progress] = []
    outcome = client.restore(
        PICTURE, restore=RestoreOptions(model="faces=2", strength=0.5), on_progress=seen.append
    )
    assert [p.strength for p in outcome.patches] == [0.5, 0.5]
    patch = outcome.patches[0]
    assert (patch.x, patch.y, patch.rgb.shape, patch.mask.shape) == (0, 0, (12, 12, 3), (12, 12))
    assert patch.rgb.dtype == patch.mask.dtype == np.float32
    assert outcome.model_name == "Fake"
    assert [(p.stage, p.face) for p in seen if p.stage == "restoring"] == [
        ("restoring", 1),
        ("restoring", 2),
    ]
    assert seen[-1].fraction == 1


def test_every_form_of_picture_arrives(client: WorkerClient) -> None:
    for shape in ((17, 23, 3), (17, 23), (17, 23, 1)):
        for dtype in ("uint8", "uint16", "float32"):
            picture = np.zeros(shape, dtype)
            outcome = client.restore(picture, selection=np.ones((17, 23), bool))
            assert len(outcome.patches) == 1
    turned = np.zeros((30, 40, 3), np.uint8)[::-1, ::2]  # not contiguous
    assert len(client.restore(turned).patches) == 1


def test_large_pictures_over_several_frames(client: WorkerClient) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), np.uint8)
    outcome = client.restore(picture, restore=RestoreOptions(model="echo=1"))
    back = (outcome.patches[0].rgb[::7] * 255).round().astype(np.uint8)
    assert np.array_equal(back, picture[::7])


def test_faces_given_are_those_restored(client: WorkerClient) -> None:
    faces = [Face(np.array([0, 0, 9, 9.5]), 1.0000001, np.array(LANDMARKS))] * 3
    assert len(client.restore(PICTURE, faces=faces).patches) == 3
    assert client.restore(PICTURE, faces=[]).patches == []


def test_detect(client: WorkerClient) -> None:
    outcome = client.detect(PICTURE, DetectOptions(threshold=0.5))
    assert [face.box.tolist() for face in outcome.faces] == [[0, 0, 12, 12]]
    assert outcome.detector == "fake"


def test_a_file_called_as_a_model_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from face_restore_worker.client.client import _absolute

    monkeypatch.chdir(tmp_path)
    for name in ("auto", "gpen-bfr-2048", "mine.pth", "mine"):
        (tmp_path / name).touch()
    assert _absolute("auto") == "auto" and _absolute("gpen-bfr-2048") == "gpen-bfr-2048"
    assert _absolute("./auto") == str(tmp_path / "auto")
    for name in ("mine", "mine.pth"):
        assert _absolute(name) == str(tmp_path / name)
    assert _absolute("yours.pth") == "yours.pth" and _absolute("x" * 300) == "x" * 300


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.float64), "float64"),
        (np.zeros((0, 4, 3), np.uint8), "height"),
    ],
)
def test_what_is_no_picture_is_refused_here(client: WorkerClient, picture: Any, said: str) -> None:
    with pytest.raises(FaceRestoreError, match=said):
        client.restore(picture)
    with pytest.raises(FaceRestoreError, match="selection"):
        client.restore(PICTURE, selection=np.ones((3, 3), bool))
    assert client.status().state == "ready"


@given(
    patch_dtype=st.sampled_from(["float32", "uint16", "uint8"]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    side=st.sampled_from([0, 5]),
    seed=st.integers(0, 9),
)
def test_patches_survive_the_wire(
    patch_dtype: str, shape: tuple[int, int], side: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    face = Face(np.array([0, 0, 5, 5]), 0.5, np.array(LANDMARKS))
    crop = random.random((side, side, 3), np.float32) if side else None
    patch = Patch(
        face=face,
        matrix=random.random((2, 3)),
        crop_size=64,
        x=3,
        y=4,
        rgb=random.random((*shape, 3), np.float32),
        mask=random.random(shape, np.float32),
        strength=0.25,
        note="A note.",
        aligned_input=crop,
        aligned_output=crop,
    )
    left = Face(np.array([7, 7, 9, 9]), 0.5, np.array(LANDMARKS))
    outcome = RestoreOutcome([patch], [left, face], "id", "Name", "finder", "CPU", ["n"], {"a": 1})
    result, buffers = convert.restore_result(outcome, RestoreOptions(patch_dtype=patch_dtype))
    frames = wire.message("result", "1", result.to_wire(), buffers)
    body, declared = wire.take_sizes(wire.decode_header(frames[0]).body)
    reply = RestoreResult.from_wire(body)
    back = arrays.restore_outcome(reply, wire.collect(frames[1:], declared, reply.buffers))
    exact = 0 if patch_dtype == "float32" else 0.5 / np.iinfo(patch_dtype).max + 1e-6
    pairs = [(back.patches[0].rgb, patch.rgb), (back.patches[0].mask, patch.mask)]
    if crop is not None:
        pairs += [(back.patches[0].aligned_input, crop), (back.patches[0].aligned_output, crop)]
    for got, sent in pairs:
        assert got.shape == sent.shape
        assert np.abs(got - sent).max() <= exact
    assert np.array_equal(back.patches[0].matrix, patch.matrix)
    assert [f.box.tolist() for f in back.faces] == [[0, 0, 5, 5], [7, 7, 9, 9]]
    assert (back.model_name, back.notes, back.timings) == ("Name", ["n"], {"a": 1.0})
    assert back.patches[0].note == "A note."


def test_float_results_are_not_copied() -> None:
    spec = PatchSpec(0, 0, 100, 50, "float32")
    report = FaceReport((0, 0, 5, 5), tuple(map(tuple, LANDMARKS)), 0.5, patch=spec)
    frames = [np.ones(n // 4, np.float32) for n in spec.buffers]
    collected = wire.collect(frames, spec.buffers, spec.buffers)
    outcome = arrays.restore_outcome(RestoreResult((report,)), collected)
    assert np.shares_memory(outcome.patches[0].rgb, frames[0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_previews(dtype: str, channels: int) -> None:
    picture = np.full((50, 80, 3) if channels == 3 else (50, 80), 1, dtype)
    picture *= 255 if dtype == "uint8" else 65535 if dtype == "uint16" else 1
    for box in ([10, 10, 40, 45], [-30, -30, 5, 5], [75, 45, 200, 90]):
        face = Face(np.array(box), 0.5, np.array(LANDMARKS))
        small = convert.preview(picture, face, 16)
        assert small.dtype == np.uint8
        assert small.shape[2] == 3
        assert 1 <= max(small.shape[:2]) <= 16
        assert (small == 255).all()


# -- errors and cancelling ----------------------------------------------------------------------


def test_a_jobs_error_is_raised_with_its_code(client: WorkerClient) -> None:
    with pytest.raises(FaceRestoreError, match="It failed") as caught:
        client.restore(PICTURE, restore=RestoreOptions(model="faces=2;fail=out-of-memory"))
    assert (caught.value.code, caught.value.hint) == ("out-of-memory", "Try again.")
    assert len(client.restore(PICTURE).patches) == 1


def test_ctrl_c_and_failing_listeners_cancel_the_job(worker: Worker, client: WorkerClient) -> None:
    for error in (KeyboardInterrupt, ZeroDivisionError):

        def listen(progress: Progress, error: type[BaseException] = error) -> None:
            if progress.stage == "restoring":
                raise error

        with pytest.raises(error):
            client.restore(
                PICTURE,
                restore=RestoreOptions(model="faces=50;delay=0.2"),
                on_progress=listen,
            )
        begun = len(worker.trace)
        eventually(lambda: client.status().state == "ready", "the job is dropped")
        assert len(worker.trace) < begun + 40  # of 50; two, unless the machine is very busy
    assert len(client.restore(PICTURE).patches) == 1


def test_a_listener_may_cancel(client: WorkerClient) -> None:
    def listen(progress: Progress) -> None:
        if progress.stage == "restoring":
            client.cancel()

    options = RestoreOptions(model="faces=50;delay=0.1")
    with pytest.raises(FaceRestoreError) as caught:
        client.restore(PICTURE, restore=options, on_progress=listen)
    assert caught.value.code == "cancelled"
    assert client.status().version


def test_the_queue_is_told(worker: Worker, client: WorkerClient, tmp_path: Path) -> None:
    eventually(lambda: client.status().state == "ready", "cancelled jobs are gone")
    gate = tmp_path / "gate"
    with worker.raw() as other:
        start_job(other, worker, "a", f"faces=1;until={gate}")
        seen: list[Progress] = []

        def listen(progress: Progress) -> None:
            seen.append(progress)
            gate.touch()

        client.restore(PICTURE, on_progress=listen)
        assert seen[0].stage == "queued"
        assert seen[0].text == "1 before this one"


# -- no worker, the wrong one, and one that goes away --------------------------------------------


def test_no_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    with pytest.raises(WorkerNotRunning, match="face-restore worker start"):
        WorkerClient.connect()


def test_nobody_on_the_port(worker: Worker) -> None:
    with pytest.raises(WorkerNotRunning):
        WorkerClient.connect(replace(worker.connection, endpoint="tcp://127.0.0.1:1"))


def test_something_else_on_the_port(worker: Worker) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            peer, _ = server.accept()
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 5)
            time.sleep(0.2)
            peer.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises((WorkerNotRunning, WorkerNotAnswering)):
            other = replace(worker.connection, endpoint=f"tcp://127.0.0.1:{port}")
            WorkerClient.connect(other)


def test_a_wrong_token(worker: Worker) -> None:
    with pytest.raises(TokenRefused) as caught:
        WorkerClient.connect(replace(worker.connection, token="0" * 64))
    assert caught.value.code == "wrong-token"


def test_another_protocol_in_the_connection_file(worker: Worker) -> None:
    for protocol, said in ((2, "older than the worker"), (0, "The worker is older")):
        with pytest.raises(wire.ProtocolMismatch, match=said):
            WorkerClient.connect(replace(worker.connection, protocol=protocol))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_lost_in_the_middle_is_noticed(tmp_path: Path, number: int) -> None:
    with Worker(tmp_path) as worker, WorkerClient.connect(worker.connection) as client:
        eventually(lambda: client.status().state == "ready", "ready")
        lost_at: list[float] = []

        def listen(progress: Progress) -> None:
            if progress.stage == "restoring" and not lost_at:
                worker.process.send_signal(number)
                lost_at.append(time.monotonic())

        with pytest.raises(WorkerLost) as caught:
            client.restore(
                PICTURE, restore=RestoreOptions(model="faces=9;delay=1"), on_progress=listen
            )
        noticed = time.monotonic() - lost_at[0]
        print(f"{signal.Signals(number).name} noticed after {noticed:.2f} s")
        assert noticed < 60  # 3 s on an idle machine; for ever, were it not looked for
        assert str(worker.log_file) in caught.value.hint


class HungWorker(threading.Thread):
    """Takes jobs and accepts them, and then its loop says nothing more."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.context = zmq.Context()
        token = "ab" * 32
        self.zap = ZapHandler(self.context, token)
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.plain_server = True
        self.router.zap_domain = DOMAIN
        port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.connection = Connection(f"tcp://127.0.0.1:{port}", token, 1, 1, "0", 0.0, "log")
        self.ending = threading.Event()

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.zap.socket, zmq.POLLIN)
        poller.register(self.router, zmq.POLLIN)
        while not self.ending.is_set():
            for ready, _ in poller.poll(50):
                if ready is self.zap.socket:
                    self.zap.handle()
                    continue
                peer, frame, *_ = self.router.recv_multipart()
                header = wire.decode_header(frame)
                reply: Any = HelloReply("0", 1, 1) if header.type == "hello" else None
                if header.type == "restore":
                    reply = Accepted(header.id, 0)
                if reply is not None:
                    kind = "hello" if header.type == "hello" else "accepted"
                    message = wire.message(kind, header.id, reply.to_wire())
                    self.router.send_multipart([peer, *message])
        self.router.close()
        self.zap.close()
        self.context.term()


@pytest.mark.slow
def test_a_worker_without_a_pulse_is_lost() -> None:
    hung = HungWorker()
    hung.start()
    try:
        with WorkerClient.connect(hung.connection) as client:
            begin = time.monotonic()
            with pytest.raises(WorkerLost, match="said nothing for 3 s"):
                client.restore(PICTURE)
            print(f"a silent loop noticed after {time.monotonic() - begin:.2f} s")
        client = WorkerClient.connect(hung.connection)
        client._timeout = 0.5
        with client, pytest.raises(WorkerNotAnswering, match="did not answer status"):
            client.status()
    finally:
        hung.ending.set()
        hung.join()


def test_the_connection_file_is_used(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACE_RESTORE_HOME", str(worker.home))
    with WorkerClient.connect() as client:
        assert client.status().pid == worker.process.pid
        assert [model.id for model in client.models()] == ["fake"]
    assert connection.read(worker.file) == worker.connection
