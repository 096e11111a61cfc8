"""Time the project's own ZMTP client beside pyzmq: pixels sent to a worker-like echo and back.

    python worker/benchmarks/zmtp.py [--megabytes 100] [--repeats 9] [--json]

A libzmq ROUTER with PLAIN in a process of its own sends every message back without copying it.
Both clients stay connected and take turns, so that a busy machine slows both; medians are what to
compare. Frames have the protocol's 16 MiB.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "shared")]

USER, TOKEN = "face-restore", "a" * 64
Echo = Callable[[list[Any]], Any]


def serve() -> None:
    """Print the port, then send back what comes, for ever."""
    import zmq

    context = zmq.Context()
    zap = context.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")
    router = context.socket(zmq.ROUTER)
    router.plain_server = True
    print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    poller = zmq.Poller()
    poller.register(zap, zmq.POLLIN)
    poller.register(router, zmq.POLLIN)
    while True:
        for ready, _event in poller.poll():
            if ready is zap:
                request = zap.recv_multipart()
                zap.send_multipart([b"1.0", request[1], b"200", b"OK", b"", b""])
            else:
                router.send_multipart(router.recv_multipart(copy=False), copy=False)


def own(port: int) -> Echo:
    """The project's client."""
    from face_restore_shared.zmtp import ZmtpClient

    client = ZmtpClient("127.0.0.1", port, USER, TOKEN)

    def echo(frames: list[Any]) -> Any:
        client.send(frames)
        return client.receive(120)

    return echo


def theirs(port: int, copy: bool) -> Echo:
    """pyzmq, with its own memory handed over (copy False) or bytes made (copy True)."""
    import zmq

    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.plain_username, socket.plain_password = USER.encode(), TOKEN.encode()
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{port}")

    def echo(frames: list[Any]) -> Any:
        socket.send_multipart(frames, copy=copy)
        return socket.recv_multipart(copy=copy)

    return echo


def measure(megabytes: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each echo, by client."""
    from face_restore_shared.wire import CHUNK

    pixels = memoryview(bytes(range(256)) * (megabytes * 1_000_000 // 256))
    frames = [b"header", *(pixels[at : at + CHUNK] for at in range(0, pixels.nbytes, CHUNK))]
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            clients = {
                "own client": own(port),
                "pyzmq, copy=False": theirs(port, False),
                "pyzmq, copy=True": theirs(port, True),
            }
            taken: dict[str, list[float]] = {name: [] for name in clients}
            for number in range(repeats + 1):  # the first one is not counted
                for name, echo in clients.items():
                    start = time.perf_counter()
                    answer = echo(frames)
                    seconds = time.perf_counter() - start
                    got = [memoryview(frame) for frame in answer]
                    if got[1:] != frames[1:]:
                        raise RuntimeError(f"{name} gave back something else")
                    if number:
                        taken[name].append(seconds)
        finally:
            server.kill()
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    taken = measure(options.megabytes, options.repeats)
    if options.json:
        print(json.dumps({"machine": platform.machine(), "seconds": taken}))
        return 0
    print(f"echo of {options.megabytes} MB, seconds (median of {options.repeats}, range):")
    for name, values in taken.items():
        low, high = min(values), max(values)
        print(f"| {name} | {statistics.median(values):.3f} | {low:.3f} to {high:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
