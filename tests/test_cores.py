"""How many threads a wish becomes, and who is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from face_restore_shared.errors import FaceRestoreError
from face_restore_worker import cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv(cores.VARIABLE, raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("wish", "threads"),
    [(None, 8), (0, 8), (1, 1), (8, 8), (64, 8), (-1, 7), (-7, 1), (-8, 1), (-100, 1)],
)
def test_never_more_than_cores_nor_less_than_one(wish: int | None, threads: int) -> None:
    assert cores.choose_threads(wish) == threads


@pytest.mark.usefixtures("eight")
def test_the_environment_counts_where_no_option_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert cores.choose_threads() == 3
    monkeypatch.setenv(cores.VARIABLE, "-1")
    assert cores.choose_threads() == 7
    assert cores.choose_threads(2) == 2
    monkeypatch.setenv(cores.VARIABLE, "few")
    with pytest.raises(FaceRestoreError, match="'few', which is no whole number") as caught:
        cores.choose_threads()
    assert caught.value.code == "usage" and "-1" in caught.value.hint


def test_hardware_threads_of_one_core_count_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for cpu, core in enumerate((0, 1, 0, 1)):  # as the kernel numbers two cores of two threads
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "none")
    for allowed, count in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({1, 2}, 2), ({8, 9}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, a=allowed: a, raising=False)
        assert cores.usable_cores() == count


@pytest.mark.parametrize(
    ("text", "count"), [("max 100000\n", 4), ("150000 100000\n", 2), ("50000 100000\n", 1)]
)
def test_a_containers_quota_is_kept(
    text: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    monkeypatch.setattr(cores, "_QUOTA", quota)
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert cores.usable_cores() == count


@pytest.mark.slow
def test_every_library_is_told() -> None:
    code = (
        "import cv2, torch, threading\n"
        "from face_restore_worker.cores import limit_threads\n"
        "def work():\n"
        "    limit_threads(1)\n"
        "    import pyvips\n"
        "    print(torch.get_num_threads(), cv2.getNumThreads(), pyvips.concurrency_get())\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "VIPS_CONCURRENCY"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=env
    )
    assert done.stdout == "1 1 1\n", done.stderr
