"""A face's three steps where the network's device does all of them; see `steps` and `gpu_face`.

The middle step begins a face on the device and returns, the last one fetches it: so the device
works on the next face while the last one is on the bus. Where memory runs out or the network's
values are not all finite, a face goes the usual way, which knows what to do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from face_restore_worker.errors import ImageError
from face_restore_worker.pipeline.device import free_caches, is_out_of_memory
from face_restore_worker.pipeline.gpu_face import DeviceFaces, Finished, PixelNetwork, Wish
from face_restore_worker.pipeline.steps import Job, Work
from face_restore_worker.pipeline.types import Patch

log = logging.getLogger(__name__)

Fetch = Callable[[], Finished | None]


class Steps(Protocol):
    """The three steps of a face."""

    def align(self, job: Job) -> Any:
        """What the next step needs of the photograph."""

    def restore(self, job: Job, aligned: Any) -> Any:
        """Through the network."""

    def paste(self, job: Job, done: Any) -> tuple[Patch | None, list[str]]:
        """The patch, and notes for the user."""


def steps_of(work: Work) -> Steps:
    """The steps on the network's device where it can do all of them, else ``work``'s own."""
    return work if work.network.pixels is None else DeviceSteps(work)


class DeviceSteps:
    """``Steps`` on a device.

    Args:
        work: the picture, the options and the usual way.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        options = work.options
        self._wish = Wish(
            options.template,
            options.mask_softness,
            options.keep_colour,
            mask=not options.aligned,
            parser=work.parser,
            crops=options.return_aligned,
        )
        self._network = threading.Lock()  # a face that could not be fetched uses it from elsewhere
        self._made: tuple[PixelNetwork, DeviceFaces] | None = None

    def align(self, job: Job) -> None:
        """Nothing: the device does it."""

    def restore(self, job: Job, aligned: None) -> Any:
        """Begin the face: what fetches it, or what the usual way returns. Raises Cancelled."""
        run = self._work.run
        run.next_face(job.index, job.number)
        run.report("restoring", 0.0)
        with self._network:
            fetch = self._begin(job)
            done = self._usual(job) if fetch is None else fetch
        run.report("pasting", 0.95)
        return done

    def paste(self, job: Job, done: Any) -> tuple[Patch | None, list[str]]:
        """The face's patch, and what the user should know about it."""
        if not callable(done):
            return self._work.paste(job, done)
        with self._work.run.timed("restoring"):  # all of it: the device tells no stages apart
            finished = self._fetched(done)
        if finished is not None:
            return self._patch(job, finished)
        with self._network:
            usual = self._usual(job)
        return self._work.paste(job, usual)

    def _usual(self, job: Job) -> Any:
        return self._work.restore(job, self._work.align(job))

    def _begin(self, job: Job) -> Fetch | None:
        pixels = self._work.network.pixels
        if pixels is None:  # it was replaced by one on the CPU
            return None
        if self._made is None or self._made[0] is not pixels:
            self._made = pixels, DeviceFaces(pixels)
        try:
            return self._made[1].start(self._work.picture, job.matrix, self._wish)
        except ImageError:
            return None  # the usual way tells the user
        except Exception as error:
            self._give_way(error)
            return None

    def _fetched(self, fetch: Fetch) -> Finished | None:
        try:
            return fetch()
        except Exception as error:
            self._give_way(error)
            return None

    def _give_way(self, error: Exception) -> None:
        """Free memory where it ran out; any other error is raised again."""
        if not is_out_of_memory(error):
            raise error
        device = self._work.network.device
        log.warning("Out of memory on %s, one face goes the usual way: %s", device, error)
        self._made = None
        free_caches(device)

    def _patch(self, job: Job, done: Finished) -> tuple[Patch | None, list[str]]:
        notes = []
        if not done.parsed:
            notes.append(
                f"The face parser did not recognise face {job.number}: its mask is an oval."
            )
        if done.rgb is None or done.mask is None:
            notes.append(f"Face {job.number} was left alone: it lies outside the picture.")
            return None, notes
        strength = self._work.options.strength if job.face.strength is None else job.face.strength
        patch = Patch(
            face=job.face,
            matrix=job.matrix,
            crop_size=self._work.network.size,
            x=done.x,
            y=done.y,
            rgb=done.rgb,
            mask=done.mask,
            strength=strength,
            aligned_input=done.aligned_input,
            aligned_output=done.aligned_output,
        )
        return patch, notes
