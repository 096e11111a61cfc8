"""Bad requests in the log: each once, however often it is sent."""

from __future__ import annotations

import logging
from collections import OrderedDict

log = logging.getLogger(__name__)

KEPT = 256


class Complaints:
    """Remembers the last KEPT complaints about clients."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[bytes, str], None] = OrderedDict()

    def log(self, client: bytes, text: str) -> None:
        """Log `text`, unless it was logged for this client already."""
        key = (client, text[:200])
        if key in self._seen:
            return
        log.warning("Refused a request: %s", text[:500])
        self._seen[key] = None
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)
