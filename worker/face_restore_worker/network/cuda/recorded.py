"""A network on inputs of one shape: where they go, where results come, recorded as a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from face_restore_worker.network.cuda.context import exact
from face_restore_worker.network.cuda.graph import capture
from face_restore_worker.network.cuda.operations import relative_error

log = logging.getLogger(__name__)

_AGREE = 1e-3  # of a graph and what it was recorded from: the same kernels


class Recorded:
    """A function of one tensor, which stays where it is.

    Args:
        function: asks the device for nothing back.
        given: its input, to be filled in place before each run.
        name: of the function, for messages.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], given: Tensor, name: str) -> None:
        self.given = given
        self._function, self._name = function, name
        self._result = torch.empty(0)
        self._replay: Callable[[], None] | None = None

    @property
    def recorded(self) -> bool:
        """Whether it runs as one CUDA graph."""
        return self._replay is not None

    @torch.inference_mode()
    def run(self) -> Tensor:
        """The function of `given`, without waiting for the device; the next run overwrites it."""
        with exact(self.given.device):
            (self._replay or self._forward)()
        return self._result

    def _forward(self) -> None:
        self._result = self._function(self.given)

    @torch.inference_mode()
    def record(self, trial: Tensor) -> None:
        """Set up everything that is set up at first use, and record; on a CUDA device only.

        trial: an input. The graph must give of it what the function gives, else it is not used.
        """
        with exact(self.given.device):
            self.given.copy_(trial)
            self._forward()
            eager = torch.nan_to_num(self._result)
            replay = capture(self._forward, self.given.device)
            if replay == self._forward:
                return
            replay()
            error = relative_error(torch.nan_to_num(self._result), eager)
        if not error <= _AGREE:
            log.warning(
                "The CUDA graph of the %s is not used: its result is off by %.2g.",
                *(self._name, error),
            )
            return
        self._replay = replay
