"""The command line where something is unusual: streams, names, numbers, the log, the bench."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import Home, wait_for
from face_restore_shared.schema import DeviceInfo, StatusReply
from face_restore_worker.cli.main import main
from painter import Painter, run
from picture_files import album, photo, save_pillow


def test_a_quiet_folder_run_says_nothing_but_errors(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = album(tmp_path, 2)
    assert run(folder, "-o", tmp_path / "out", "-q") == 0
    assert capsys.readouterr() == ("", "")
    (folder / "c.png").write_bytes(b"")
    assert run(folder, "-o", tmp_path / "out", "-q") == 1
    assert "c.png is empty" in capsys.readouterr().err


def test_saved_faces_are_no_inputs(tmp_path: Path, painter: Painter) -> None:
    folder = album(tmp_path, 1)
    for inputs in (folder, folder / "**" / "*.png"):
        command = [inputs, "-r", "-o", folder / "out", "--save-faces", folder / "faces"]
        for _ in range(2):
            assert run(*command) == 0
    assert [p.name for p in (folder / "out").iterdir()] == ["0.png"]
    assert len(list((folder / "faces").iterdir())) == 6
    # Faces beside the inputs are the user's wish, and hide no input.
    assert run(folder / "*.png", "-o", tmp_path / "out", "--save-faces", folder) == 0
    assert len(list(folder.glob("0-face*.png"))) == 6


def test_an_extension_for_one_picture_has_no_effect_and_that_is_said(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in (("b.png", True), ("c.TIF", False), ("out/", False)):
        assert run(source, "-o", f"{tmp_path}/{name}", "--ext", "tif") == 0
        assert ("--ext .tif has no effect" in capsys.readouterr().err) == said
    assert (tmp_path / "out" / "a.tif").exists()


@pytest.mark.parametrize("command", ["restore", "detect"])
def test_a_name_too_long_is_a_failed_picture(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    names = [str(save_pillow(tmp_path / "a.png", photo())), "x" * 300 + ".png"]
    more = ["-o", str(tmp_path / "out")] if command == "restore" else []
    assert main([command, *names, *more]) == 1
    said = capsys.readouterr()
    assert "a.png" in said.out and "name too long" in said.err.lower()


@pytest.mark.parametrize("command", ["restore", "detect"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "a.png does not fit into memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "does not fit into memory"),
        (OSError(5, "Input/output error"), "a.png: Input/output error."),
        (ZeroDivisionError("as it says"), "a.png (ZeroDivisionError: as it says)"),
    ],
    ids=["memory", "torch", "disk", "defect"],
)
def test_what_nobody_foresaw_fails_one_picture(
    tmp_path: Path,
    painter: Painter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    error: Exception,
    words: str,
) -> None:
    import face_restore_worker.images.read as reading
    import torch  # noqa: F401 - as in a process that restores by itself

    names = [str(save_pillow(tmp_path / name, photo())) for name in ("a.png", "b.png")]
    read = reading.read_image

    def failing(path: Path, **more: int) -> object:
        if path.name == "a.png":
            raise error
        return read(path, **more)

    monkeypatch.setattr(reading, "read_image", failing)
    more = ["-o", str(tmp_path / "out")] if command == "restore" else []
    assert main([command, *names, *more]) == 1
    said = capsys.readouterr()
    assert words in said.err and "b.png" in said.out
    assert ("Traceback" in said.err) == isinstance(error, ZeroDivisionError)


def test_an_output_that_cannot_be_printed_is_a_sentence(tmp_path: Path) -> None:
    home = Home(tmp_path)
    command = home.command("models", "list")
    if (device := Path("/dev/full")).exists():
        with device.open("w") as full:
            done = subprocess.run(
                command, env=home.env, stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert (done.returncode, done.stderr) == (3, "face-restore: No space left on device.\n")
    shell = ["sh", "-c", 'exec "$@" >&- <&-', "sh"]
    done = subprocess.run([*shell, *command], env=home.env, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    command = home.command("models", "download", "gpen-bfr-256")  # asks on standard input
    done = subprocess.run([*shell, *command], env=home.env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4 and "no terminal to ask at" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--max-faces", "1001", "more than 1000 faces"),
        ("--min-face", "65537", "more than 65536 pixels"),
        ("--max-pixels", "0", "would refuse every picture"),
    ],
)
@pytest.mark.parametrize("command", [["restore", "-o", "b.png"], ["detect"]])
def test_numbers_that_cannot_be_meant(
    command: list[str], option: str, value: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "a.png", option, value])
    assert caught.value.code == 2 and why in capsys.readouterr().err


def test_a_model_whose_name_is_no_text(
    tmp_path: Path, painter: Painter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = os.fsdecode(os.fsencode(tmp_path) + b"/gpen-\xff.pth")
    assert run(source, "-o", tmp_path / "b.png", "--model", model) == 2
    said = capsys.readouterr().err
    assert "gpen-\\xff.pth is not valid UTF-8" in said and "Rename the file" in said


@pytest.mark.parametrize(
    ("idle", "words"), [(None, "never"), (0.0, "after 0 s"), (600.0, "after 10 min 00 s")]
)
def test_status_says_when_models_unload(
    idle: float | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from face_restore_shared.connection import Connection
    from face_restore_worker.cli.worker import _show

    reply = StatusReply("1", 1, 1, 0.0, DeviceInfo(), "ready", idle_unload=idle)
    _show(reply, Connection("tcp://127.0.0.1:1", "0" * 64, 1, 1, "1", 0.0, ""))
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["models unload"].strip() == words


def test_status_counts_jobs_by_how_they_ended() -> None:
    from face_restore_worker.cli.worker import _jobs

    reply = StatusReply("1", 1, 1, 0.0, DeviceInfo(), "ready", jobs_done=3)
    assert _jobs(reply) == "0 waiting, 3 done"
    reply = dataclasses.replace(reply, queue=1, jobs_failed=2, jobs_cancelled=4)
    assert _jobs(reply) == "1 waiting, 3 done, 2 failed, 4 cancelled"


@pytest.mark.parametrize("value", ["1e9", "inf", "-1"])
def test_an_idle_time_the_worker_would_refuse(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["worker", "restart", f"--idle={value}"])
    assert caught.value.code == 2 and "argument --idle" in capsys.readouterr().err


def test_logs_are_followed_when_they_are_rotated(tmp_path: Path) -> None:
    home = Home(tmp_path)
    log = tmp_path / "state" / "logs" / "worker.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n")
    process = home.start("worker", "logs", "--follow")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "one\n"
        with log.open("a") as file:
            file.write("two\n")
        log.rename(log.with_name("worker.log.1"))
        log.write_text("three\n")
        assert [process.stdout.readline() for _ in range(2)] == ["two\n", "three\n"]
        wait_for(lambda: process.poll() is None)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signal")
def test_the_end_of_the_terminal_ends_a_command_in_order(tmp_path: Path) -> None:
    """Otherwise the benchmark's worker would stay for ever; but nohup means what it says."""
    home = Home(tmp_path)
    log = tmp_path / "state" / "logs" / "worker.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n")
    for ignored in (False, True):
        # Not by `trap`: a shell cannot undo the nohup that these tests may run under.
        handler = "SIG_IGN" if ignored else "SIG_DFL"
        script = f"import os, signal as s, sys; s.signal(s.SIGHUP, s.{handler}); "
        script += "os.execvp(sys.argv[1], sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-c", script, *home.command("worker", "logs", "--follow")],
            env=home.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "one\n"
            process.send_signal(signal.SIGHUP)
            if ignored:
                with log.open("a") as file:
                    file.write("two\n")
                assert process.stdout.readline() == "two\n"
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 130
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["worker", "logs", "--lines", "many"], "not a whole number"),
        (["gimp", "check", "--timeout", "soon"], "'soon' is not a number"),
        (["gimp", "check", "--timeout", "0"], "not a time of more than 0"),
    ],
)
def test_numbers_that_are_none(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and why in capsys.readouterr().err


def test_a_gimp_command_with_an_open_quote(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gimp", "check", "--gimp", "my 'gimp"]) == 2
    assert "my 'gimp cannot be read: no closing quotation" in capsys.readouterr().err


def test_bench_takes_whole_faces_only(capsys: pytest.CaptureFixture[str]) -> None:
    for faces in ("1.5", "0", "two"):
        with pytest.raises(SystemExit) as caught:
            main(["bench", "--faces", faces])
        assert caught.value.code == 2
    assert "not a whole number" in capsys.readouterr().err
