"""Homes with faulty workers, clients in threads and processes, and what must not stay behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cli_process import ROOT
from face_restore_shared import connection
from face_restore_shared.errors import FaceRestoreError
from face_restore_worker.client import launch
from face_restore_worker.client.session import WorkerSession
from worker_process import eventually as _eventually

Tell = Callable[[str, int, str], None]

HERE = Path(__file__).parent
WORKER = [sys.executable, str(HERE / "faulty_worker.py")]
CLI = [sys.executable, str(HERE / "faulty_cli.py")]
PICTURE = np.zeros((40, 30, 3), np.uint8)
PROMPT = 5.0  # seconds after a fault within which clients must know; see `in_time`
BUSY_MACHINE = 6.0  # how much longer it may take on a machine with other work


def eventually(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """As worker_process.eventually, with patience for a busy machine."""
    return _eventually(condition, what, seconds)


def in_time(seconds: float) -> bool:
    """Whether clients knew soon enough, with patience for a busy machine."""
    return seconds <= PROMPT * BUSY_MACHINE


class FaultHome:
    """A folder for everything the program keeps, and the processes that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.file = self.state / "worker.json"
        self.trace_file = folder / "trace"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.variables = {
            "FACE_RESTORE_HOME": str(folder),
            "FAKE_ENGINE_TRACE": str(self.trace_file),
            "TMPDIR": str(self.temporary),
        }
        self.processes: list[subprocess.Popen[Any]] = []

    @property
    def trace(self) -> str:
        """What the engines have done so far, one line each."""
        return self.trace_file.read_text() if self.trace_file.exists() else ""

    @property
    def log(self) -> str:
        """The workers' log."""
        return (self.state / "logs" / "worker.log").read_text()

    def environment(self, **more: str) -> dict[str, str]:
        """For processes of this home."""
        roots = os.pathsep.join([str(ROOT / "worker"), str(ROOT / "shared")])
        # A file size limit would leave halves of compiled modules for all later tests.
        own = {"PYTHONPATH": roots, "PYTHONDONTWRITEBYTECODE": "1"}
        return {**os.environ, **self.variables, **own, **more}

    def worker(self, *options: str, ready: bool = True, **env: str) -> subprocess.Popen[bytes]:
        """A worker process; when `ready`, it listens on return."""
        process = subprocess.Popen(
            [*WORKER, "--quiet", *options],
            env=self.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.processes.append(process)
        if ready:
            eventually(lambda: self.listening() == process.pid, "the worker listens", 60)
        return process

    def listening(self) -> int | None:
        """The process number in the connection file."""
        with contextlib.suppress(FaceRestoreError):
            found = connection.read(self.file)
            return None if found is None else found.pid
        return None

    def cli(self, *arguments: object, **env: str) -> subprocess.Popen[str]:
        """The command line, started."""
        process = subprocess.Popen(
            [*CLI, *map(str, arguments)],
            env=self.environment(**env),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run_cli(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        """The command line, to its end."""
        process = self.cli(*arguments, **env)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def waiting(self) -> int:
        """Jobs waiting in the worker's queue."""
        status = launch.status()
        return -1 if status is None else status.queue

    def picture(self, name: str = "in.png", size: tuple[int, int] = (48, 40)) -> Path:
        """A picture file of so many rows and columns."""
        from PIL import Image

        path = self.folder / name
        Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
        return path

    def our_processes(self) -> list[psutil.Process]:
        """Every living process that works in this home, other than this one."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("FACE_RESTORE_HOME") == str(
                    self.folder
                ):
                    found.append(process)
        return found

    def end_all(self) -> None:
        """End whatever runs in this home."""
        for process in self.our_processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for known in self.processes:
            known.kill()
            known.wait()
            for stream in (known.stdout, known.stderr):
                if stream is not None:
                    stream.close()

    def check_next_job(self) -> None:
        """The next job is done, by the worker that runs or by a new one."""
        with WorkerSession(command=WORKER) as session:
            assert len(session.restore(PICTURE).patches) == 1

    def stop_and_check_nothing_stays(self) -> None:
        """Stop the worker in order; then no process, file, socket, lock or memory is left."""
        for process in self.our_processes():  # other programs' shared memory comes and goes
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            assert "/dev/shm" not in maps and "SYSV" not in maps
        done = self.run_cli("worker", "stop")
        assert done.returncode == 0, done.stderr
        eventually(lambda: not self.our_processes(), "all processes are gone")
        for process in self.processes:
            process.wait(120)
        zombies = [
            child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE
        ]
        assert not zombies, zombies
        left = sorted(path.name for path in self.state.iterdir())
        assert left == ["logs", "worker.lock"], left
        assert not list(self.temporary.iterdir())
        from face_restore_worker.server.lock import InstanceLock

        lock = InstanceLock(self.state / "worker.lock")
        assert lock.acquire(), "the lock is free"
        lock.release()


class Client(threading.Thread):
    """A job through a session, and what became of it.

    outcome: "answer", or the error's code. told: when (monotonic) the client first knew that
    something is wrong, or had its answer. stages: those seen so far.
    """

    def __init__(
        self,
        script: str,
        picture: np.ndarray[Any, Any] = PICTURE,
        on_stage: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.script, self.picture, self.on_stage = script, picture, on_stage
        self.outcome = self.error = ""
        self.told = 0.0
        self.stages: list[str] = []
        self.start()

    def run(self) -> None:
        from face_restore_shared.schema import RestoreOptions

        def event(text: str) -> None:
            if "again" in text:
                self.told = self.told or time.monotonic()

        def listen(progress: Any) -> None:
            self.stages.append(progress.stage)
            if self.on_stage is not None:
                self.on_stage(progress.stage)

        try:
            with WorkerSession(command=WORKER, on_event=event) as session:
                outcome = session.restore(
                    self.picture,
                    restore=RestoreOptions(model=self.script, patch_dtype="uint8"),
                    on_progress=listen,
                )
                self.outcome = "answer" if outcome.patches else "nothing"
        except FaceRestoreError as error:
            self.outcome, self.error = error.code, str(error)
        except Exception as error:
            self.outcome = f"{type(error).__name__}: {error}"
        self.told = self.told or time.monotonic()

    def end(self, seconds: float = 120) -> Client:
        """Wait for it."""
        self.join(seconds)
        assert not self.is_alive(), f"a client hangs (stages {self.stages[-3:]})"
        return self


def send(process: int, number: int) -> float:
    """Send a signal; returns when (monotonic)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
    return time.monotonic()


def stop_for(process: int, seconds: float) -> None:
    """SIGCONT after so many seconds, from a thread of its own."""
    timer = threading.Timer(seconds, lambda: send(process, signal.SIGCONT))
    timer.daemon = True
    timer.start()


def parallel(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call all at the same time; their results."""
    results: list[Any] = [None] * len(tasks)

    def call(index: int) -> None:
        results[index] = tasks[index]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
