"""Who may speak to the worker: the ZAP handler (rfc.zeromq.org/spec/27) for PLAIN.

libzmq asks it during each handshake and lets no message through before it says yes.
"""

from __future__ import annotations

import hmac
from typing import Any

import zmq
from face_restore_shared.connection import USERNAME

DOMAIN = b"face-restore"
_ENDPOINT = "inproc://zeromq.zap.01"


class ZapHandler:
    """Answers libzmq's questions; bind it before the socket it guards.

    token: the one password that is let in, with the user name "face-restore".
    """

    def __init__(self, context: zmq.Context[Any], token: str) -> None:
        self._token = token.encode("ascii")
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(_ENDPOINT)
        self.refused = 0

    def handle(self) -> None:
        """Answer one question; call when the socket is readable."""
        question = self.socket.recv_multipart()
        allowed = self._allowed(question)
        request = question[1] if len(question) > 1 else b""
        code, text, user = (b"200", b"OK", USERNAME.encode()) if allowed else (b"400", b"", b"")
        if not allowed:
            self.refused += 1
        self.socket.send_multipart([b"1.0", request, code, text or b"refused", user, b""])

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _allowed(self, question: list[bytes]) -> bool:
        # version, request id, domain, address, identity, mechanism, user name, password
        if len(question) != 8 or question[0] != b"1.0":
            return False
        _, _, domain, address, _, mechanism, username, password = question
        local = address in (b"127.0.0.1", b"::ffff:127.0.0.1")
        known = hmac.compare_digest(username, USERNAME.encode())
        right = hmac.compare_digest(password, self._token)
        return domain == DOMAIN and mechanism == b"PLAIN" and local and known and right
