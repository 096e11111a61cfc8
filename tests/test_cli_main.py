"""The command line as a whole: help, versions, statuses, what it imports, GPEN's own forms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_process import Home, home
from face_restore_shared.version import __version__
from face_restore_worker.cli import compat
from face_restore_worker.cli.jobs import UsageError
from face_restore_worker.cli.main import build_parser, main
from worker_process import Worker, eventually

HEAVY = {"torch", "torchvision", "numpy", "cv2", "scipy", "pyvips", "facexlib", "onnx"}


def modules_after(tmp_path: Path, *arguments: str) -> set[str]:
    code = (
        "import sys, json\n"
        "from face_restore_worker.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('MODULES', json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    home = Home(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=home.env,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.partition("MODULES ")[2]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["restore", "--help"],
        ["--version"],
        ["bench", "--help"],
        ["status"],
        ["worker", "status"],
    ],
)
def test_quick_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    assert modules_after(tmp_path, *arguments) & HEAVY == set()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"face-restore {__version__}\n"


@pytest.mark.parametrize(
    "command", [[], ["restore"], ["detect"], ["models"], ["worker"], ["doctor"]]
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text and "face-restore" in text
    if not command:
        for status in ("0  ", "1  ", "2  ", "3  ", "130  "):
            assert f"\n  {status}" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["restore"],
        ["restore", "a.png"],
        ["worker", "start", "--idle", "soon"],
        ["worker", "restart", "--threads", "many"],
        ["worker", "start", "--keep", "--idle", "60"],
        ["restore", "a.png", "-o", "b.png", "--threads", "1.5"],
    ],
)
def test_wrong_command_lines_end_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_status_without_a_worker(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for arguments in (["status"], ["worker", "status"]):
        done = home.run(*arguments, "--format", "json")
        assert (done.returncode, json.loads(done.stdout)) == (3, {"running": False})
    done = home.run("status")
    assert done.returncode == 3 and "No worker is running" in done.stdout
    done = home.run("worker", "stop")
    assert done.returncode == 0 and "No worker is running" in done.stdout
    assert home.run("worker", "logs").returncode == 3


def test_a_model_that_is_not_there_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    home = Home(tmp_path)
    done = home.run("worker", "start", "--model", "gpen-bfr-1024")
    assert done.returncode == 3 and "models download gpen-bfr-1024" in done.stderr
    assert home.run("status").returncode == 3


@pytest.mark.parametrize("action", ["start", pytest.param("restart", marks=pytest.mark.slow)])
def test_a_device_that_is_not_there_is_refused_with_the_reason(tmp_path: Path, action: str) -> None:
    with home(tmp_path) as made:
        done = made.run("worker", action, "--device", "cuda:99")
        assert done.returncode == 3 and "cuda:99 is not there" in done.stderr, done.stderr
        assert made.run("status").returncode == 3


@pytest.mark.slow
def test_a_restore_on_a_device_that_is_not_there_leaves_no_useless_worker(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "a.png")
    command = ("restore", tmp_path / "a.png", "-o", tmp_path / "b.png")
    with home(tmp_path) as made:
        done = made.run(*command, "--device", "cuda:99")
        assert done.returncode == 3 and "cuda:99 is not there" in done.stderr, done.stderr
        assert made.run("status").returncode == 3
        done = made.run(*command)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("wish", "kind", "used", "same"),
    [
        ("cuda", "cuda", "cuda:0", True),
        ("cuda:0", "cuda", "cuda", True),
        ("cuda:1", "cuda", "cuda", False),
        ("cuda:1", "cuda", "", True),
        ("cpu", "cuda", "", False),
        ("mps", "mps", "mps", True),
    ],
)
def test_another_gpu_is_another_device(wish: str, kind: str, used: str, same: bool) -> None:
    from face_restore_shared.schema import DeviceInfo
    from face_restore_worker.cli.backend import same_device

    assert same_device(wish, DeviceInfo(kind, id=used)) == same


def test_a_running_worker_keeps_its_threads_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from face_restore_shared.schema import DetectOptions
    from face_restore_worker.cli.backend import WorkerBackend

    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    with Worker(tmp_path):
        told: list[str] = []
        with WorkerBackend("auto", told.append, threads=-1) as backend:
            for _ in range(2):
                backend.detect(np.zeros((32, 32, 3), np.uint8), DetectOptions(), None)
        assert len(told) == 1 and "worker restart --threads -1" in told[0]


def test_worker_options_reach_the_workers_own_command_line() -> None:
    from face_restore_worker.cli.worker import worker_options
    from face_restore_worker.server.process import parser

    args = build_parser().parse_args(["worker", "start", "--threads", "-1", "--idle", "5"])
    taken = parser().parse_args(worker_options(args))
    assert (taken.threads, taken.idle, taken.keep) == (-1, 5, False)
    assert parser().parse_args([]).threads is None


def test_status_and_doctor_say_why_no_job_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from face_restore_worker.cli.checks_worker import check_worker

    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    with Worker(tmp_path, FAKE_ENGINE_START_FAILS="1") as worker, worker.raw() as client:
        eventually(lambda: client.ask("status").body["problem"], "it tried")
        assert main(["status"]) == 0
        assert "The model is broken. Get it again." in capsys.readouterr().out
        failed = [finding for finding in check_worker() if finding.level == "fail"]
        assert len(failed) == 1 and "The model is broken" in failed[0].text


def test_a_worker_with_another_folder_of_models_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from face_restore_shared.schema import DetectOptions
    from face_restore_worker.cli.backend import WorkerBackend

    monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
    monkeypatch.delenv("FACE_RESTORE_MODELS", raising=False)
    picture = np.zeros((32, 32, 3), np.uint8)
    with Worker(tmp_path):
        told: list[str] = []
        with WorkerBackend("auto", told.append) as backend:
            backend.detect(picture, DetectOptions(), None)
        assert told == []
        monkeypatch.setenv("FACE_RESTORE_MODELS", str(tmp_path / "others"))
        with WorkerBackend("auto", told.append) as backend:
            backend.detect(picture, DetectOptions(), None)
            backend.detect(picture, DetectOptions(), None)
        assert len(told) == 1 and str(tmp_path / "others") in told[0] and "restart" in told[0]


def test_a_connection_file_that_others_can_read_is_an_error(tmp_path: Path) -> None:
    home = Home(tmp_path)
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "worker.json").write_text("{}")
    (state / "worker.json").chmod(0o644)
    done = home.run("status")
    assert done.returncode == 3 and "face-restore:" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_to_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    home = Home(tmp_path)
    process = home.start("models", "list")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.wait(60)
    assert "Traceback" not in process.stderr.read()


class TestForms:
    """The forms of blog posts and of GPEN's authors."""

    def test_blog_form(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        weights = tmp_path / "gpen-bfr-2048.pth"
        weights.touch()
        argv = ["--input", "A.jpg", "--output", "B.jpg", "--model_path", str(weights)]
        argv += ["--size", "2048", "--face_align"]
        assert compat.is_legacy(argv)
        assert compat.translate(argv) == [
            *("restore", "A.jpg", "-o", "B.jpg"),
            *("--model", str(weights)),
            *("--expected-size", "2048"),
        ]
        assert "--face_align" in capsys.readouterr().err

    def test_authors_form(self, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["--task", "FaceEnhancement", "--model", "GPEN-BFR-512", "--in_size", "512"]
        argv += ["--channel_multiplier", "2", "--narrow", "1", "--use_sr", "--sr_scale", "4"]
        argv += ["--use_cuda", "--save_face", "--alpha", "0.8", "--ext", "png"]
        argv += ["--indir", "imgs", "--outdir", "outs"]
        assert compat.is_legacy(argv)
        assert compat.translate(argv) == [
            *("restore", "imgs", "-o", "outs/", "--model", "GPEN-BFR-512"),
            *("--strength", "0.8", "--ext", "png", "--save-faces", "outs"),
            *("--template", "gpen"),
        ]
        err = capsys.readouterr().err
        assert "not offered" in err and "GPU" in err

    def test_new_options_may_be_mixed_in(self) -> None:
        argv = ["--input=a.jpg", "--output=b.jpg", "--no-worker", "--overwrite"]
        assert compat.translate(argv) == [
            *("restore", "a.jpg", "-o", "b.jpg", "--no-worker", "--overwrite")
        ]

    def test_a_missing_checkpoint_says_how_to_get_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FACE_RESTORE_HOME", str(tmp_path))
        argv = ["--input", "a.jpg", "--output", "b.jpg", "--face_align"]
        for path, wanted in (
            ("weights/gpen-bfr-2048.pth", "gpen-bfr-2048"),
            ("GPEN-BFR-512.pth", "gpen-bfr-512"),
            ("mine.pth", "gpen-bfr-1024"),
        ):
            size = [] if path != "mine.pth" else ["--size", "1024"]
            assert main([*argv, "--model_path", path, *size]) == 2
            err = capsys.readouterr().err
            assert f"models download {wanted}" in err and "models import" in err

    def test_size_alone_names_the_model(self) -> None:
        argv = ["--input", "a.jpg", "--output", "b.jpg", "--size", "512"]
        assert compat.translate(argv)[-2:] == ["--model", "gpen-bfr-512"]
        with pytest.raises(UsageError, match="size 777"):
            compat.translate([*argv[:-1], "777"])

    @pytest.mark.parametrize(
        "argv", [["--input", "a.jpg"], ["--outdir", "x"], ["--indir", "a", "--size", "512"]]
    )
    def test_half_a_form(self, argv: list[str]) -> None:
        assert compat.is_legacy(argv)
        assert main(argv) == 2

    def test_another_task(self) -> None:
        argv = ["--task", "FaceColorization", "--indir", "a", "--outdir", "b"]
        with pytest.raises(UsageError, match="FaceColorization"):
            compat.translate(argv)

    @pytest.mark.parametrize("argv", [[], ["--help"], ["restore", "--input"], ["--version"]])
    def test_other_command_lines_are_left_alone(self, argv: list[str]) -> None:
        assert not compat.is_legacy(argv)
