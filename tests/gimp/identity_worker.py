"""A worker whose network gives back what it gets, at 2048 pixels: for the benchmark."""

from __future__ import annotations

import sys
import time
from typing import Any

from face_restore_worker.engine.engine import RestorerEngine


class Identity:
    """The identity as a restoring network."""

    size = 2048

    def __call__(self, faces: Any) -> Any:
        return faces


class IdentityEngine(RestorerEngine):
    """The real engine, pipeline and detector around the identity."""

    _only: Any = None

    def run(self, *args: Any, **options: Any) -> Any:
        """As RestorerEngine.run; the timings say also how long it took altogether ("job")."""
        start = time.perf_counter()
        result, buffers = super().run(*args, **options)
        result.timings["job"] = time.perf_counter() - start
        return result, buffers

    def _restorer(self, model: str, precision: str, detector: str, progress: Any = None) -> Any:
        """The only one, whatever is asked for, and nothing to tell the user."""
        if self._only is None:
            from face_restore_worker.pipeline.restore import Restorer

            self._only = Restorer(device="cpu", detector=detector, network=Identity())
            self._only.load()
        return self._only, None


def main() -> int:
    """The worker process around it."""
    from face_restore_worker.server.process import main as worker_main

    return worker_main(sys.argv[1:], lambda args: IdentityEngine("cpu"))


if __name__ == "__main__":
    sys.exit(main())
