"""One flow at a time does a piece of work: the others wait and find it done.

Prefect's own file locks are files: what a killed holder held stays locked for ever. These are locks of the kernel
(`flock`), which end with the process that holds them.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rnnlm_core.errors import Stopped
from tasks import progress, workspace
from tasks.stopping import stop_requested

POLL_SECONDS = 0.1
TELL_SECONDS = 2.0


class KernelLocks:
    """Prefect's `LockManager`: the lock of a record is held by one transaction of one process."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, FileLock]] = {}

    def __reduce__(self) -> tuple[type["KernelLocks"], tuple[()]]:
        """Another process, to which a task is sent, begins with none."""
        return KernelLocks, ()

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Wait until the record is free and hold it; False if that takes longer than `acquire_timeout`.

        Raises `Stopped` if the run is asked to end while it waits, and `ValueError` for a `hold_timeout`: the kernel
        knows none, and what lives may hold as long as it likes.
        """
        if hold_timeout is not None:
            raise ValueError(f"a lock of the kernel has no hold_timeout, got {hold_timeout}")
        if self.is_lock_holder(key, holder):
            return True
        lock = _lock(key)
        started = time.monotonic()
        told = False
        while True:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waited = time.monotonic() - started
                if acquire_timeout is not None and waited >= acquire_timeout:
                    return False
                stage = key.partition("-")[0]
                if stop_requested.is_set():
                    raise Stopped(
                        "stopped while waiting", f"another run does {stage}", "run the same command again to go on"
                    ) from None
                if waited > TELL_SECONDS and not told:
                    told = True
                    progress.warn(stage, "another run is doing this: waiting for it")
                time.sleep(POLL_SECONDS)
            else:
                self.held[key] = (holder, lock)
                return True

    def release_lock(self, key: str, holder: str) -> None:
        """Free the record; raises `ValueError` if `holder` does not hold it."""
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"{holder} does not hold {key}")
        _, lock = self.held.pop(key)
        lock.release()

    def is_locked(self, key: str) -> bool:
        """Whether anybody holds the record."""
        lock = _lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def if_free(self, key: str) -> Iterator[bool]:
        """Hold the record for a moment without waiting for it; say whether that went."""
        lock = _lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds the record."""
        return key in self.held and self.held[key][0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until the record is free; False if that takes longer than `timeout`."""
        started = time.monotonic()
        while self.is_locked(key):
            if timeout is not None and time.monotonic() - started >= timeout:
                return False
            time.sleep(POLL_SECONDS)
        return True

    async def aacquire_lock(self, *arguments: Any, **more: Any) -> bool:
        """Do what `acquire_lock` does, without stopping the event loop."""
        return await asyncio.to_thread(self.acquire_lock, *arguments, **more)

    async def await_for_lock(self, *arguments: Any, **more: Any) -> bool:
        """Do what `wait_for_lock` does, without stopping the event loop."""
        return await asyncio.to_thread(self.wait_for_lock, *arguments, **more)


def _lock(key: str) -> FileLock:
    folder = workspace.artifacts() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{Path(key).name}.lock", thread_local=False)
