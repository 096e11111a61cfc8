"""CUDA graphs: the few hundred launches of a network recorded once and replayed as one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

_WARM_UPS = 3


def capture(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record ``run`` and return what replays it; ``run`` itself where recording fails.

    Args:
        run: reads and writes tensors that stay where they are, and asks the GPU for nothing
            back. What it allocates is kept for the replays.
        device: a CUDA device; on any other ``run`` is returned.
    """
    if device.type != "cuda":
        return run
    try:
        return _record(run, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.warning(
            "The network cannot be recorded as a CUDA graph and runs launch by launch, which is "
            "slower: %s",
            error,
        )
        torch.cuda.synchronize(device)
        return run


def _record(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    with torch.cuda.device(device):
        # Recording wants everything that is set up lazily to be there, from another stream.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has memory of its own: what warming up took goes back
        graph = torch.cuda.CUDAGraph()
        # Only this thread is recorded: others may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    replay: Callable[[], None] = graph.replay
    return replay
