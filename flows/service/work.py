"""Work for requests: on a few threads, a bounded number in line, each until its deadline or nobody waits for it.

Everything here but `_Job.run` happens on the event loop, so that nothing needs a lock.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from flows.service.limits import Limits, Refused
from rnnlm_core.generate import Check

PAUSE = 0.02
"""Seconds between two messages of a thread to the event loop; each message costs more than a token."""
Make = Callable[[Check], Iterator[Any]]
"""What yields the parts of an answer; it calls the check before every step."""


class Work:
    """The threads, and the line before them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # The requests share the processors, not the parts of one: so much of PyTorch's setting is a thread's own.
        self.pool = ThreadPoolExecutor(limits.workers, "rnnlm-serve", torch.set_num_threads, (1,))
        self.free = asyncio.Semaphore(limits.workers)
        self.accepted = 0
        self.working = 0
        self.stopping = False

    def stop(self) -> None:
        """End all work at its next step; may be called from a signal handler."""
        self.stopping = True

    def close(self) -> None:
        """Wait for the threads to end."""
        self.stop()
        self.pool.shutdown(cancel_futures=True)

    async def parts(self, make: Make, deadline: float) -> AsyncGenerator[list[Any], None]:
        """Give what `make` yields, several at a time, as it comes; closing the generator ends the work.

        Args:
            make: is iterated on a thread.
            deadline: when all must be done, in the time of the event loop.

        Raises:
            Refused: too many are in line, the time is up, or the server is stopping.
        """
        if self.accepted >= self.limits.workers + self.limits.waiting:
            raise self._busy(f"{self.limits.waiting} requests wait")
        self.accepted += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await self.free.acquire()
            except TimeoutError:
                raise self._busy(f"no thread was free for {self.limits.seconds:g} s") from None
            job = self._start(make, deadline)
            try:
                while (part := await self._next(job, deadline)) is not _END:
                    if isinstance(part, Exception):
                        raise part
                    yield part
            finally:
                job.cancelled = True
        finally:
            self.accepted -= 1

    def _start(self, make: Make, deadline: float) -> "_Job":
        loop = asyncio.get_running_loop()
        job = _Job(self, make, time.monotonic() + deadline - loop.time(), loop)
        self.working += 1

        def done() -> None:
            self.working -= 1
            self.free.release()

        self.pool.submit(job.run).add_done_callback(lambda _: loop.call_soon_threadsafe(done))
        return job

    async def _next(self, job: "_Job", deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline):
                return await job.parts.get()
        except TimeoutError:  # within a step: the thread ends after it
            raise _too_slow(self.limits) from None

    def _busy(self, why: str) -> Refused:
        retry_after = math.ceil(min(self.limits.seconds, 5))
        return Refused(503, "the server is busy", why, f"try again in {retry_after} s", retry_after)


class _Job:
    """The work for one request, on its thread."""

    def __init__(self, work: Work, make: Make, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self.work, self.make, self.deadline, self.loop = work, make, deadline, loop
        self.parts: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = False

    def check(self) -> None:
        """Raise if the work is not to go on."""
        if self.cancelled:
            raise Refused(499, "nobody waits for this any more")
        if self.work.stopping:
            raise Refused(503, "the server is stopping", "", "ask again when it is back")
        if time.monotonic() > self.deadline:
            raise _too_slow(self.work.limits)

    def run(self) -> None:
        """Do the work and tell the event loop: the first part at once, later ones a few times per blink of an eye."""
        told = -math.inf
        parts: list[Any] = []
        end: Any = _END
        try:
            self.check()
            for part in self.make(self.check):
                parts.append(part)
                if time.monotonic() - told > PAUSE:
                    self._tell(parts)
                    told, parts = time.monotonic(), []
        except Exception as error:  # noqa: BLE001 - raised again where the request is answered
            end = error
        if parts:
            self._tell(parts)
        self._tell(end)

    def _tell(self, part: Any) -> None:
        self.loop.call_soon_threadsafe(self.parts.put_nowait, part)


_END = object()


def _too_slow(limits: Limits) -> Refused:
    asked = f"{limits.seconds:g} s"
    return Refused(504, "the answer takes longer than a request may", asked, "ask for a shorter text")
