"""Fetching files from servers that behave, cut off, lie and stall."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from face_restore_worker.errors import ModelError
from face_restore_worker.models import files
from face_restore_worker.models.catalogue import ModelFile
from face_restore_worker.models.transfer import Limits, Progress, TransferError, fetch
from http_server import FileServer, ProxyServer, Route

BODY = bytes(os.urandom(300_000))
FAST = Limits(connect_timeout=60, read_timeout=60, attempts=3, pause=0.0)
EXACT = ModelFile(("unused",), None, len(BODY), True)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "model.part"


def test_whole_file_with_progress(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY))
    seen: list[Progress] = []
    fetch(url, part, EXACT, progress=seen.append, limits=FAST)
    assert part.read_bytes() == BODY
    assert seen[-1].done == seen[-1].total == len(BODY)
    assert seen[-1].speed > 0
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


def test_goes_on_after_cuts_with_range_and_if_range(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, cuts=[100_000, 50_000]))
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == BODY
    assert [request.range for request in server.seen] == [None, "bytes=100000-", "bytes=150000-"]
    assert server.seen[1].headers["If-Range"] == '"one"'


def test_goes_on_in_a_later_run(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, cuts=[120_000, 0, 0, 0]))
    with pytest.raises(TransferError, match="ended early"):
        fetch(url, part, EXACT, limits=FAST)
    assert part.stat().st_size == 120_000
    server.routes["/m"].cuts.clear()
    server.seen.clear()
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == BODY
    assert server.seen[0].range == "bytes=120000-"


def test_a_complete_part_is_not_fetched_again(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY))
    fetch(url, part, EXACT, limits=FAST)
    fetch(url, part, EXACT, limits=FAST)
    assert len(server.seen) == 1


def test_starts_over_when_the_server_ignores_range(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, cuts=[100_000], ignore_range=True))
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == BODY
    assert server.seen[1].range == "bytes=100000-"


def test_starts_over_when_the_file_changed(server: FileServer, part: Path) -> None:
    other = bytes(reversed(BODY))
    url = server.add("/m", Route(BODY, cuts=[100_000, 0, 0, 0]))
    with pytest.raises(TransferError):
        fetch(url, part, EXACT, limits=FAST)
    server.routes["/m"] = Route(other, etag='"two"')
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == other


def test_starts_over_when_a_server_continues_another_version(
    server: FileServer, part: Path
) -> None:
    """A server that honours Range but not If-Range, and whose file changed meanwhile."""
    url = server.add("/m", Route(BODY, cuts=[100_000, 0, 0, 0]))
    with pytest.raises(TransferError):
        fetch(url, part, EXACT, limits=FAST)
    other = bytes(reversed(BODY))
    server.routes["/m"] = Route(other, etag='"two"', ignore_if_range=True)
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == other
    assert [r.range for r in server.seen[-2:]] == ["bytes=100000-", None]


def test_another_address_starts_over(server: FileServer, part: Path) -> None:
    first = server.add("/one", Route(BODY, cuts=[100_000, 0, 0, 0]))
    other = bytes(reversed(BODY))
    second = server.add("/two", Route(other))
    with pytest.raises(TransferError):
        fetch(first, part, EXACT, limits=FAST)
    fetch(second, part, EXACT, limits=FAST)
    assert part.read_bytes() == other
    assert server.seen[-1].range is None


def test_no_validator_and_no_digest_starts_over(server: FileServer, part: Path) -> None:
    """Nothing could tell that the rest belongs to the same file."""
    url = server.add("/m", Route(BODY, etag=None, cuts=[100_000]))
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == BODY
    assert server.seen[1].range is None


def test_no_validator_but_a_digest_goes_on(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, etag=None, cuts=[100_000]))
    fetch(url, part, ModelFile((url,), "0" * 64, len(BODY), True), limits=FAST)
    assert part.read_bytes() == BODY
    assert server.seen[1].range == "bytes=100000-"


def test_a_part_longer_than_the_file_starts_over(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, cuts=[100_000, 0, 0, 0]))
    with pytest.raises(TransferError):
        fetch(url, part, EXACT, limits=FAST)
    part.write_bytes(BODY + b"more")
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == BODY


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_range_beyond_the_end_starts_over(
    server: FileServer, part: Path, etag: str | None
) -> None:
    file = ModelFile(("unused",), "0" * 64, None, False)
    url = server.add("/m", Route(BODY, etag=etag, cuts=[100_000, 0, 0, 0]))
    with pytest.raises(TransferError):
        fetch(url, part, file, limits=FAST)
    server.routes["/m"] = Route(BODY[:50_000], etag=etag)
    fetch(url, part, file, limits=FAST)
    assert part.read_bytes() == BODY[:50_000]


def test_unknown_length(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, length=None))
    seen: list[Progress] = []
    fetch(url, part, EXACT, progress=seen.append, limits=FAST)
    assert part.read_bytes() == BODY
    assert seen[-1].total is None
    assert seen[-1].eta is None


def test_unknown_length_cut_short_is_noticed_by_the_size(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, length=None, cuts=[1000]))
    with pytest.raises(TransferError, match="it has 1000 bytes, 300000 were expected"):
        fetch(url, part, EXACT, limits=FAST)
    assert not part.exists()


@pytest.mark.timeout(60)
def test_a_body_without_end_is_cut_off(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, endless=True))
    with pytest.raises(TransferError, match="were expected"):
        fetch(url, part, EXACT, limits=FAST)
    assert not part.exists()


def test_wrong_size_is_refused_before_the_body(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY + b"x"))
    with pytest.raises(TransferError, match="it has 300001 bytes, 300000 were expected"):
        fetch(url, part, EXACT, limits=FAST)
    assert not part.exists()


def test_approximate_size(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY))
    fetch(url, part, ModelFile((url,), None, 310_000, False), limits=FAST)
    far = part.with_name("far.part")
    with pytest.raises(TransferError, match="about 400000 were expected"):
        fetch(url, far, ModelFile((url,), None, 400_000, False), limits=FAST)


def test_a_content_length_beyond_the_body_fails(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY[:-10], length=len(BODY), ignore_range=True))
    with pytest.raises(TransferError, match="ended early"):
        fetch(url, part, EXACT, limits=FAST)


@pytest.mark.parametrize(
    "route",
    [
        Route(b"<html>Please log in</html>", content_type="text/html; charset=utf-8"),
        Route(b"\n <!DOCTYPE html><p>Please log in</p>" + b" " * 300_000),
        Route(b"<!doctype html>"),
    ],
)
def test_a_web_page_is_named_as_such(server: FileServer, part: Path, route: Route) -> None:
    url = server.add("/m", route)
    with pytest.raises(TransferError, match="web page"):
        fetch(url, part, EXACT, limits=FAST)
    assert not part.exists()


def test_a_web_page_in_between_does_not_cost_the_part(server: FileServer, part: Path) -> None:
    route = Route(BODY, cuts=[100_000, 0, 0, 0])
    url = server.add("/m", route)
    with pytest.raises(TransferError):
        fetch(url, part, EXACT, limits=FAST)
    server.routes["/m"] = Route(b"<html>log in</html>", ignore_range=True)
    with pytest.raises(TransferError, match="web page"):
        fetch(url, part, EXACT, limits=FAST)
    server.routes["/m"] = Route(BODY)
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == BODY
    assert server.seen[-1].range == "bytes=100000-"


def test_an_lfs_pointer_is_named_as_such(server: FileServer, part: Path) -> None:
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 285000000\n"
    url = server.add("/m", Route(text))
    with pytest.raises(TransferError, match="LFS pointer"):
        fetch(url, part, EXACT, limits=FAST)


def test_a_compressed_answer_is_refused(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(BODY, encoding="gzip"))
    with pytest.raises(TransferError, match="compresses"):
        fetch(url, part, EXACT, limits=FAST)


def test_redirects_are_followed(server: FileServer, part: Path) -> None:
    server.add("/file", Route(BODY))
    server.add("/second", Route(redirect="/file"))
    url = server.add("/first", Route(redirect=server.url + "/second"))
    fetch(url, part, EXACT, limits=FAST)
    assert part.read_bytes() == BODY


def test_a_redirect_loop_ends(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(redirect="/m"))
    with pytest.raises(TransferError, match="redirects more than 8 times"):
        fetch(url, part, EXACT, limits=FAST)
    assert len(server.seen) == 9


def test_a_redirect_off_https_is_refused(server: FileServer, part: Path) -> None:
    url = server.add("/m", Route(redirect="http://models.invalid/m"))
    with pytest.raises(TransferError, match="not https"):
        fetch(url, part, EXACT, limits=FAST)


def test_https_does_not_redirect_to_plain_http_even_on_this_machine(
    server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = server.add("/m", Route(BODY))

    def answer(session: requests.Session, url: str, **options: object) -> requests.Response:
        response = requests.Response()
        response.status_code = 302
        response.raw = io.BytesIO()
        response.headers["Location"] = target
        return response

    monkeypatch.setattr(requests.Session, "get", answer)
    with pytest.raises(TransferError, match="redirects from https to http://"):
        fetch("https://models.invalid/m", part, EXACT, limits=FAST)


@pytest.mark.parametrize(("status", "count"), [(404, 1), (403, 1), (503, 3)])
def test_statuses(server: FileServer, part: Path, status: int, count: int) -> None:
    url = server.add("/m", Route(b"no", status=status))
    with pytest.raises(TransferError, match=f"answered {status}"):
        fetch(url, part, EXACT, limits=FAST)
    assert len(server.seen) == count


def test_a_trickle_counts_as_stalled(server: FileServer, part: Path) -> None:
    limits = Limits(read_timeout=5, attempts=1, pause=0.0, stall_time=0.3, stall_bytes=10_000)
    url = server.add("/m", Route(BODY, trickle=0.01))
    with pytest.raises(TransferError, match="stalled"):
        fetch(url, part, EXACT, limits=limits)


def test_silence_counts_as_no_answer(server: FileServer, part: Path) -> None:
    limits = Limits(read_timeout=0.3, attempts=1, pause=0.0)
    url = server.add("/m", Route(BODY, trickle=2.0))
    with pytest.raises(TransferError, match="did not answer in time"):
        fetch(url, part, EXACT, limits=limits)


def test_nobody_listens(part: Path) -> None:
    with FileServer() as gone:
        url = gone.url + "/m"
    with pytest.raises(TransferError, match=r"127\.0\.0\.1 failed"):
        fetch(url, part, EXACT, limits=FAST)


def test_a_name_that_does_not_exist(part: Path) -> None:
    with pytest.raises(TransferError, match=r"models\.invalid"):
        fetch("https://models.invalid/m", part, EXACT, limits=FAST)


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_too_full_is_noticed_before_the_body(
    server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m", Route(BODY))
    needed = 2 * len(BODY) + 64 * 1024**2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**12, 10**12, needed - 1))
    with pytest.raises(ModelError) as caught:
        fetch(url, part, EXACT, limits=FAST)
    assert caught.value.code == "disk-full"
    assert "free" in caught.value.message
    assert not part.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**12, 0, needed))
    fetch(url, part, EXACT, limits=FAST)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_writing(
    server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    url = server.add("/m", Route(BODY))
    part.symlink_to("/dev/full")
    monkeypatch.setattr(files, "unlinked", lambda path: False)  # keep the link
    with pytest.raises(ModelError) as caught:
        fetch(url, part, EXACT, limits=FAST)
    assert caught.value.code == "disk-full"


def test_the_proxy_of_the_environment_is_used(
    server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m", Route(BODY))
    with ProxyServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        fetch(url, part, EXACT, limits=FAST)
        assert [request.path for request in proxy.seen] == [url]
    assert part.read_bytes() == BODY


def test_https_goes_through_the_proxy_of_the_environment(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProxyServer() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(TransferError, match="proxy did not lead to models"):
            fetch("https://models.invalid/m", part, EXACT, limits=FAST)
        assert proxy.seen[0].method == "CONNECT"
        assert proxy.seen[0].path == "models.invalid:443"


def test_a_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    """A file where the folder should be: root may write to read-only folders, so use this."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    url = server.add("/m", Route(BODY))
    with pytest.raises(ModelError) as caught:
        fetch(url, blocked / "model.part", EXACT, limits=FAST)
    assert caught.value.code in ("storage", "not-writable")
