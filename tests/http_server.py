"""A local HTTP server that can misbehave, and a proxy that can be seen to be used."""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Route:
    """How the server answers one path.

    body: the file. status: of a full answer. etag: None sends none.
    cuts: for each request in turn, how many bytes of its body to send before closing the
        connection; requests after the last one get everything.
    ignore_range: always send the whole file. ignore_if_range: continue whatever the version was.
    length: lie about Content-Length; None sends none.
    endless: repeat the body until the client goes away; sends no Content-Length.
    redirect: Location to send instead. trickle: seconds to wait after each byte.
    before: called with the route before each answer (to change it, or to wait).
    """

    body: bytes = b""
    status: int = 200
    etag: str | None = '"one"'
    content_type: str = "application/octet-stream"
    encoding: str | None = None
    cuts: list[int] = field(default_factory=list)
    ignore_range: bool = False
    ignore_if_range: bool = False
    length: int | None = -1
    endless: bool = False
    redirect: str | None = None
    trickle: float = 0.0
    before: Callable[[Route], None] | None = None


@dataclass
class Seen:
    """One request the server or proxy received."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many tests are about: no traceback for it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Server:
    """A threading server on the loopback, as a context manager."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.seen: list[Seen] = []
        self.server = _QuietServer(("127.0.0.1", 0), handler)
        self.server.owner = self  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Any:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Keep the tests' output quiet."""

    def note(self) -> None:
        owner: _Server = self.server.owner  # type: ignore[attr-defined]
        owner.seen.append(Seen(self.command, self.path, dict(self.headers)))


class FileServer(_Server):
    """Serves ``routes``; unknown paths get 404."""

    def __init__(self) -> None:
        super().__init__(_FileHandler)
        self.routes: dict[str, Route] = {}

    def add(self, path: str, route: Route) -> str:
        """Serve ``route`` at ``path``; returns its address."""
        self.routes[path] = route
        return self.url + path


class _FileHandler(_Handler):
    def do_GET(self) -> None:
        self.note()
        route = self.server.owner.routes.get(urlsplit(self.path).path)  # type: ignore[attr-defined]
        if route is None:
            self.send_error(404)
            return
        if route.before is not None:
            route.before(route)
        if route.redirect is not None:
            self.send_response(302)
            self.send_header("Location", route.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(route)

    def _start(self, route: Route) -> int | None:
        """First byte of the range asked for, None for the whole file."""
        wanted = self.headers.get("Range")
        if wanted is None or route.ignore_range or route.status != 200:
            return None
        condition = self.headers.get("If-Range")
        if condition not in (None, route.etag) and not route.ignore_if_range:
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def _send(self, route: Route) -> None:
        start = self._start(route)
        if start is not None and start >= len(route.body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = route.body[start or 0 :]
        self.send_response(206 if start is not None else route.status)
        if start is not None:
            end = len(route.body)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        if route.length is not None and not route.endless:
            self.send_header("Content-Length", str(len(body) if route.length < 0 else route.length))
        else:
            self.close_connection = True
        for name, value in (
            ("Content-Type", route.content_type),
            ("ETag", route.etag),
            ("Content-Encoding", route.encoding),
        ):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        while route.endless and not self._is_gone(body):
            pass
        cut = route.cuts.pop(0) if route.cuts else None
        self._write(body if cut is None else body[:cut], route.trickle)
        if cut is not None or (route.length is not None and route.length > len(body)):
            self.close_connection = True

    def _is_gone(self, body: bytes) -> bool:
        """Send the body once more; true when nobody takes it."""
        try:
            self.wfile.write(body)
        except ConnectionError:
            return True
        return False

    def _write(self, body: bytes, trickle: float) -> None:
        try:
            if not trickle:
                self.wfile.write(body)
                return
            for position in range(len(body)):
                self.wfile.write(body[position : position + 1])
                self.wfile.flush()
                time.sleep(trickle)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class ProxyServer(_Server):
    """Forwards plain-http requests; notes CONNECT and refuses it with 502."""

    def __init__(self) -> None:
        super().__init__(_ProxyHandler)


class _ProxyHandler(_Handler):
    def do_CONNECT(self) -> None:
        self.note()
        self.send_error(502, "No route")
        self.close_connection = True

    def do_GET(self) -> None:
        self.note()
        parts = urlsplit(self.path)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        connection.close()
