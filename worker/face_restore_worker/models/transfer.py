"""Fetch one file over HTTP: resume, redirects, stalls, and bodies that are not what they claim.

The bytes gather in a ``.part`` file with a ``.part.json`` next to it that says which address, which
version (ETag, Last-Modified) and which length they belong to, so that a later run can go on.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

from face_restore_shared.version import __version__

from face_restore_worker.errors import ModelError
from face_restore_worker.models import files
from face_restore_worker.models.catalogue import ModelFile, check_address
from face_restore_worker.models.records import read_json, write_json

_CHUNK = 256 * 1024
_HEAD = 512
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRYABLE_STATUS = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class TransferError(Exception):
    """This address did not give the file. ``retryable``: trying it once more may help."""

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


@dataclass(frozen=True)
class Progress:
    """How far a download is: bytes, bytes per second, seconds left (None where unknown)."""

    done: int
    total: int | None
    speed: float
    eta: float | None


@dataclass(frozen=True)
class Limits:
    """How patient to be. Times in seconds.

    attempts: tries of one address in a row that bring no new byte.
    stall_time, stall_bytes: fewer bytes than this in that time count as stalled.
    copies: how many files of this size the disk must hold (the download and its converted copy).
    """

    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    attempts: int = 3
    pause: float = 1.0
    stall_time: float = 60.0
    stall_bytes: int = 16 * 1024
    redirects: int = 8
    copies: int = 2


def part_state_path(part: Path) -> Path:
    """The file that remembers what a ``.part`` file is a part of."""
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Remove a ``.part`` file and its state."""
    files.unlinked(part)
    files.unlinked(part_state_path(part))


def fetch(
    url: str,
    part: Path,
    file: ModelFile,
    *,
    progress: Callable[[Progress], None] | None = None,
    limits: Limits | None = None,
) -> None:
    """Fetch ``url`` into ``part``, going on where an earlier try of the same address ended.

    On return ``part`` has the announced length, and the length ``file`` expects. Digests are the
    caller's. Raises ``TransferError`` when this address does not give the file, ``ModelError`` when
    no address could (disk full, folder not writable).
    """
    import requests

    limits = limits or Limits()
    with requests.Session() as session:  # reads HTTPS_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE
        failures = 0
        while True:
            before = _size(part)
            try:
                _Attempt(session, url, part, file, limits, progress).run()
                return
            except TransferError as error:
                failures = 0 if _size(part) > before else failures + 1
                if not error.retryable or failures >= limits.attempts:
                    raise
                time.sleep(limits.pause * 2**failures)


class _Attempt:
    """One request for the file or for the rest of it."""

    def __init__(
        self,
        session: Any,
        url: str,
        part: Path,
        file: ModelFile,
        limits: Limits,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.session, self.url, self.part, self.file = session, url, part, file
        self.limits, self.progress = limits, progress

    def run(self) -> None:
        start, state = self._resume_point()
        if start and start == state.get("total"):
            return
        headers = {
            "Accept-Encoding": "identity",
            "User-Agent": f"gimp-face-restore/{__version__}",
        }
        if start:
            headers["Range"] = f"bytes={start}-"
            if state["validator"]:
                headers["If-Range"] = state["validator"]
        with self._get(headers) as response:
            start, total = self._check_head(response, start, state)
            self._write(response, start, total)

    def _resume_point(self) -> tuple[int, dict[str, Any]]:
        """Bytes of the part that can be kept, and what they belong to."""
        state: dict[str, Any] = {}
        try:
            state = read_json(part_state_path(self.part)) or {}
        except ModelError:
            discard(self.part)
        # Without a validator only a published digest can tell a changed file from the same one.
        is_safe = state.get("url") == self.url and (state.get("validator") or self.file.sha256)
        if not is_safe:
            return 0, {}
        start = _size(self.part)
        total = state.get("total")
        if start > (total if isinstance(total, int) else self.file.max_bytes):
            return 0, {}
        return start, state

    def _get(self, headers: dict[str, str]) -> Any:
        """Request the address, following redirects, none of which may leave https."""
        import requests

        url = self.url
        timeout = (self.limits.connect_timeout, self.limits.read_timeout)
        for _ in range(self.limits.redirects + 1):
            try:
                check_address(url)
                response = self.session.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=timeout
                )
            except ModelError as error:
                raise TransferError(f"it redirects to {url}, which is not https") from error
            except (requests.RequestException, OSError, ValueError) as error:
                raise _describe(error, url) from error
            if response.status_code not in _REDIRECTS:
                return response
            target = urljoin(url, response.headers.get("Location", ""))
            response.close()
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise TransferError(f"it redirects from https to {target}")
            url = target
        raise TransferError(f"it redirects more than {self.limits.redirects} times")

    def _check_head(
        self, response: Any, start: int, state: dict[str, Any]
    ) -> tuple[int, int | None]:
        """Judge status and headers; return the first byte's position and the whole length."""
        status, headers = response.status_code, response.headers
        if status == 416 and start:
            discard(self.part)
            raise TransferError("it cannot continue the earlier download", retryable=True)
        if status not in (200, 206):
            raise TransferError(
                f"the server answered {status} {response.reason or ''}".rstrip(),
                retryable=status in _RETRYABLE_STATUS,
            )
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            raise TransferError(
                "it sent a web page instead of the file (a log-in page of the network, perhaps)"
            )
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise TransferError("it compresses the file although asked not to")
        if status == 206:
            total = self._continued_length(headers, start, state)
        else:
            start = 0
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        return start, total

    def _continued_length(self, headers: Any, start: int, state: dict[str, Any]) -> int | None:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        first = int(match[1]) if match else -1
        total = int(match[3]) if match and match[3] != "*" else state.get("total")
        changed = state.get("validator") and _validator(headers) not in (None, state["validator"])
        if not start or first != start or total != (state.get("total") or total) or changed:
            discard(self.part)
            raise TransferError("its file changed since the earlier download", retryable=True)
        return total

    def _remember(self, headers: Any, total: int | None) -> None:
        files.unlinked(self.part)  # never an old file's bytes under the new file's state
        state = {"url": self.url, "validator": _validator(headers), "total": total}
        try:
            write_json(part_state_path(self.part), state)
        except OSError as error:
            raise files.storage_error(error, self.part) from error

    def _write(self, response: Any, start: int, total: int | None) -> None:
        expected = total or self.file.bytes or 0
        chunks = _chunks(response, self.url, self.limits)
        head = b""
        if not start:
            for chunk in chunks:
                head += chunk
                if len(head) >= _HEAD:
                    break
            _check_beginning(head)
        problem = self.file.size_problem(total) if total is not None else None
        if problem:
            discard(self.part)
            raise TransferError(problem)
        files.require_space(self.part.parent, self.limits.copies * expected - start, "the download")
        if not start:  # only now: a log-in page must not cost the part that is there
            self._remember(response.headers, total)
        done = self._append(head, chunks, start, total)
        if total is not None and done < total:
            raise TransferError(
                f"the connection ended after {done} of {total} bytes", retryable=True
            )
        problem = self.file.size_problem(done)
        if problem:
            discard(self.part)
            raise TransferError(problem)

    def _append(self, head: bytes, chunks: Iterator[bytes], start: int, total: int | None) -> int:
        done, meter = start, _Meter(start, total, self.progress)
        try:
            with self.part.open("ab" if start else "wb") as stream:
                try:
                    for chunk in _chain(head, chunks):
                        done += len(chunk)
                        if done > self.file.max_bytes:
                            break
                        stream.write(chunk)
                        meter.show(done)
                except BaseException:
                    # What has come is worth keeping; the error at hand matters more than this one.
                    with contextlib.suppress(OSError):
                        _sync(stream)
                    raise
                _sync(stream)
        except OSError as error:
            raise files.storage_error(error, self.part) from error
        meter.show(done, last=True)
        return done


class _Meter:
    """Turns byte counts into at most ten ``Progress`` reports a second."""

    def __init__(
        self, start: int, total: int | None, report: Callable[[Progress], None] | None
    ) -> None:
        self.total, self.report = total, report
        self.samples = [(time.monotonic(), start)]
        self.shown = 0.0

    def show(self, done: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if self.report is None or (now - self.shown < 0.1 and not last):
            return
        self.shown = now
        # The speed of the last ten seconds: steady, yet follows a change.
        self.samples.append((now, done))
        while len(self.samples) > 2 and now - self.samples[1][0] > 10:
            self.samples.pop(0)
        then, before = self.samples[0]
        speed = (done - before) / (now - then) if now > then else 0.0
        left = (self.total - done) / speed if self.total is not None and speed > 0 else None
        self.report(Progress(done, self.total, speed, left))


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _chain(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _chunks(response: Any, url: str, limits: Limits) -> Iterator[bytes]:
    """The body's bytes as they come. Raises ``TransferError`` when they stop or only trickle."""
    import requests
    import urllib3

    since, received = time.monotonic(), 0
    while True:
        try:
            # read1 returns what has come; read would wait for the whole chunk and hide a trickle.
            chunk = response.raw.read1(_CHUNK, decode_content=False)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _describe(error, url) from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        waited = time.monotonic() - since
        if waited >= limits.stall_time:
            if received < limits.stall_bytes:
                raise TransferError(
                    f"it stalled: {received} bytes in {waited:.0f} seconds", retryable=True
                )
            since, received = time.monotonic(), 0


def _check_beginning(head: bytes) -> None:
    text = head.lstrip()[:64].lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise TransferError(
            "it sent a web page instead of the file (a log-in page of the network, perhaps)"
        )
    if text.startswith(b"version https://git-lfs"):
        raise TransferError("it sent a Git LFS pointer instead of the file")


def _validator(headers: Any) -> str | None:
    """What If-Range takes: a strong ETag, else Last-Modified (RFC 9110, section 13.1.5)."""
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    modified = headers.get("Last-Modified")
    return str(modified) if modified else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _describe(error: Exception, url: str) -> TransferError:
    """Say in words what went wrong on the way to ``url``."""
    import requests
    import urllib3

    host = urlsplit(url).hostname or url
    inner = getattr(error, "args", [None])[0]
    cause = getattr(inner, "reason", inner)
    if isinstance(error, requests.exceptions.ProxyError):
        return TransferError(f"the proxy did not lead to {host} ({cause})", retryable=True)
    if isinstance(error, requests.exceptions.SSLError):
        return TransferError(f"the certificate of {host} cannot be trusted ({cause})")
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return TransferError(f"the name {host} could not be resolved (no network?)")
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return TransferError(f"{host} did not answer in time", retryable=True)
    if any(isinstance(e, urllib3.exceptions.IncompleteRead) for e in (error, *error.args)):
        return TransferError(f"the connection to {host} ended early", retryable=True)
    if isinstance(error, ValueError):
        return TransferError(f"the address is not valid ({error})")
    return TransferError(f"the connection to {host} failed ({cause or error})", retryable=True)
