"""``face-restore models``, its progress and its exit statuses."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_models
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.schema import ModelsReply
from face_restore_worker.cli import models as cli
from face_restore_worker.cli.exits import MEANING, Exit, describe_exits, exit_for
from face_restore_worker.cli.progress import ProgressBar, show_time
from face_restore_worker.errors import Cancelled, CheckpointError, ModelError
from face_restore_worker.models.store import ModelStore
from http_server import FileServer, Route
from tiny_models import MOBILE, file_entry, gpen_state, pack

Run = Callable[..., int]
GPEN = pack(gpen_state())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> Path:
    """A models folder of one's own and a catalogue served from this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    data = tiny_models.catalogue_data([file_entry(server.add("/gpen.pth", Route(GPEN)))])
    catalogue = tiny_models.write_catalogue(tmp_path / "catalogue.json", data)
    monkeypatch.setenv("FACE_RESTORE_CATALOGUE", str(catalogue))
    monkeypatch.setenv("FACE_RESTORE_MODELS", str(tmp_path / "models"))
    return tmp_path


@pytest.fixture
def run() -> Run:
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers(dest="command"))

    def call(*words: str) -> int:
        args = parser.parse_args(["models", *words])
        assert args.run is cli.run
        return args.run(args)

    return call


def test_list_shows_licences_and_what_is_used(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACE_RESTORE_MODELS", str(tmp_path / "none"))
    assert run("list") == Exit.OK
    text = capsys.readouterr().out
    assert "* builtin-restorer" in text
    assert "built-in, not GPEN" in text
    assert "gpen-bfr-2048" in text
    assert "285.2 MB" in text
    assert "academic and non-commercial use only" in text
    assert "March 2026" in text
    assert not (tmp_path / "none").exists()


def test_list_as_json_is_what_the_worker_sends(
    run: Run, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", "--format", "json") == Exit.OK
    data = json.loads(capsys.readouterr().out)
    assert data["folder"] == str(home / "models")
    assert len(ModelsReply.from_wire({"models": data["models"]}).models) == 8
    assert ModelsReply.from_wire({"models": ModelStore(catalogue=None).describe()})


def test_download_path_verify_remove(
    run: Run, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("download", "GPEN-BFR-2048.pth", "--accept-license") == Exit.OK
    out, err = capsys.readouterr()
    assert "GPEN-BFR-2048 is installed" in out
    assert "For tests only." in err
    assert run("download", "gpen-bfr-2048") == Exit.OK  # nothing to ask any more
    assert "installed already" in capsys.readouterr().out
    assert run("path", "gpen-bfr-2048") == Exit.OK
    file = home / "models" / "gpen-bfr-2048.safetensors"
    assert capsys.readouterr().out.strip() == str(file)
    assert run("path") == Exit.OK
    assert capsys.readouterr().out.strip() == str(file.parent)
    assert run("verify", "gpen-bfr-2048") == Exit.OK
    assert "good" in capsys.readouterr().out
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert run("verify", "gpen-bfr-2048", "--format", "json") == Exit.SOME_FAILED
    assert "SHA-256" in json.loads(capsys.readouterr().out)["gpen-bfr-2048"][0]
    assert run("verify") == Exit.SOME_FAILED
    assert run("remove", "gpen-bfr-2048", "--forget-pin") == Exit.OK
    assert "Forgot the digest" in capsys.readouterr().out
    assert not file.exists()
    assert run("path", "gpen-bfr-2048") == Exit.CANNOT_WORK
    assert run("remove", "gpen-bfr-2048") == Exit.CANNOT_WORK
    assert "not installed" in capsys.readouterr().err


def test_without_a_terminal_the_licence_has_to_be_accepted_by_option(
    run: Run,
    home: Path,
    server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run("download", "gpen-bfr-2048") == Exit.DECLINED
    assert "--accept-license" in capsys.readouterr().err
    assert server.seen == []


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"n\n", 4), (b"\n", 4), pytest.param(b"y\n", 0, marks=pytest.mark.slow)],
)
def test_on_a_terminal_the_licence_is_asked_for(
    home: Path, server: FileServer, answer: bytes, status: int
) -> None:
    import pty

    master, slave = pty.openpty()
    command = "import sys; from face_restore_worker.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "models", "download", "gpen-bfr-2048"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(slave)
    os.write(master, answer)
    _, err = process.communicate(timeout=120)
    os.close(master)
    assert b"Do you accept this? [y/N]" in err
    assert process.returncode == status
    assert len(server.seen) == (status == 0)


def test_import(run: Run, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = home / "my weights.pth", home / "page.pth"
    good.write_bytes(GPEN)
    bad.write_bytes(b"<html>404</html>")
    assert run("import", str(bad)) == Exit.SOME_FAILED
    assert "web page" in capsys.readouterr().err
    assert run("import", str(good), "--as", MOBILE) == Exit.SOME_FAILED
    assert run("import", str(home / "nothing.pth")) == Exit.SOME_FAILED
    assert run("import", str(good), "--as", "dreams") == Exit.USAGE
    assert run("import", str(good)) == Exit.OK
    out, err = capsys.readouterr()
    assert "GPEN-BFR-2048 is installed" in out
    assert "Licence" in err


def test_wrong_names_are_usage_errors(
    run: Run, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("download", "dreams", "--accept-license") == Exit.USAGE
    assert run("download", "builtin-restorer", "--accept-license") == Exit.USAGE
    assert run("remove", "builtin-restorer") == Exit.USAGE
    assert "part of the program" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run("dance")
    assert caught.value.code == Exit.USAGE


def test_a_failed_download_names_what_failed(
    run: Run, home: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.routes.clear()
    assert run("download", "gpen-bfr-2048", "--accept-license") == Exit.CANNOT_WORK
    err = capsys.readouterr().err
    assert "answered 404" in err
    assert "HTTPS_PROXY" in err


def test_one_failed_download_does_not_keep_the_others_away(
    run: Run, home: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = file_entry(f"{server.url}/missing.pth")
    data = tiny_models.catalogue_data([file_entry(f"{server.url}/gpen.pth")], [missing])
    tiny_models.write_catalogue(home / "catalogue.json", data)
    names = (MOBILE, "builtin-restorer", "GPEN-BFR-2048.pth", "gpen-bfr-2048")
    assert run("download", *names, "--accept-license") == Exit.SOME_FAILED
    out, err = capsys.readouterr()
    assert out.count("GPEN-BFR-2048 is installed") == 1
    assert "answered 404" in err and "part of the program" in err
    assert f"Not installed, 2 of 3: {MOBILE}, builtin-restorer." in err
    # Nothing was done: what the errors have in common, else that nothing could be done.
    assert run("download", MOBILE, "builtin-restorer", "--accept-license") == Exit.CANNOT_WORK
    assert run("download", "builtin-detector", "builtin-restorer") == Exit.USAGE
    # A name that is none is said before anything is fetched.
    server.seen.clear()
    assert run("download", MOBILE, "dreams", "--accept-license") == Exit.USAGE
    assert server.seen == []


def test_ctrl_c(
    run: Run,
    home: Path,
    server: FileServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "set", interrupt)
    assert run("download", "gpen-bfr-2048", "--accept-license") == Exit.INTERRUPTED
    assert "kept" in capsys.readouterr().err


# -- exit statuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelError("x", code="model-unknown"), 2),
        (ModelError("x", code="model-missing"), 3),
        (CheckpointError("x"), 3),
        (FaceRestoreError("x", code="worker-lost"), 3),
        (Cancelled("x"), 4),
        (ModelError("x", code="licence-declined"), 4),
    ],
)
def test_exit_for(error: FaceRestoreError, status: int) -> None:
    assert exit_for(error) == status


def test_every_status_is_described() -> None:
    assert set(MEANING) == set(Exit)
    assert all(str(status.value) in describe_exits() for status in Exit)


# -- progress ------------------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_shows_speed_and_time_left() -> None:
    stream = _Terminal()
    with ProgressBar(1_000_000, description="gpen", stream=stream) as bar:
        bar.set(400_000)
        bar.set(500_000)
        bar.write("a line")
        bar._bar.refresh()
    text = stream.getvalue()
    assert "50%" in text
    assert "B/s" in text
    assert "<" in text  # tqdm's "elapsed<left"
    assert "a line\n" in text


def test_a_resumed_bar_does_not_count_what_was_there_as_speed() -> None:
    stream = _Terminal()
    with ProgressBar(1_000, stream=stream) as bar:
        bar.set(900)
        assert bar._bar.initial == 900


def test_elsewhere_only_a_line_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with ProgressBar(2_000_000, description="gpen", stream=stream, interval=10) as bar:
        for done in range(0, 1_000_001, 10_000):
            bar.set(done)
            clock[0] += 0.25
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "gpen: 400.0 kB of 2.0 MB (20 %), 40.0 kB/s, 40 s left"
    assert "\r" not in stream.getvalue()


def test_items_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream, silent = io.StringIO(), io.StringIO()
    with ProgressBar(4, unit="picture", stream=stream, interval=5) as bar:
        clock[0] = 6
        bar.note("holiday.jpg")
        bar.advance()
    assert stream.getvalue() == "holiday.jpg: 1 of 4 (25 %), 18 s left\n"
    with ProgressBar(4, stream=silent, quiet=True) as bar:
        clock[0] = 60
        bar.advance()
        bar.write("nothing")
    assert silent.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (4800, "1 h 20 min")]
)
def test_show_time(seconds: float, text: str) -> None:
    assert show_time(seconds) == text
