"""Places to train on this machine: the cores of its processor, and shares of its GPUs.

All commands and workers of one home have them together. A place is a lock of the kernel, as in `locking.py`: it is free
again when the process that holds it ends, however that happens.
"""

import re
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from filelock import FileLock, Timeout

from rnnlm_core.errors import ResourceError, Stopped
from tasks import progress, workspace
from tasks.locking import POLL_SECONDS, TELL_SECONDS
from tasks.stopping import stop_requested


@dataclass(frozen=True)
class Place:
    """A core ("cpu") or a share of a GPU, and what says that it is taken."""

    device: str
    lock: FileLock


_waiting: dict[str, deque[object]] = defaultdict(deque)
"""Who waits in this process for which device: first come, first served."""
_held: list[Place] = []


def number_of_places(wanted: str, processes: int = 1) -> int:
    """Return how many trainings of so many processes that want this device can go on at once."""
    from rnnlm_core.model import pick_device

    on_cpu = pick_device(wanted).type == "cpu"
    return max(1, (workspace.cpu_slots() if on_cpu else workspace.gpu_slots() * len(_gpus(wanted))) // processes)


@contextmanager
def place(wanted: str, processes: int = 1, label: str = "") -> Iterator[tuple[str, int]]:
    """Wait for a place to train and give (device, threads): a processor core or a place on a GPU for each process.

    Raises `ResourceError` when there are fewer GPUs than processes, `Stopped` if the run is asked to end meanwhile.
    """
    from rnnlm_core.model import pick_device

    if pick_device(wanted).type == "cpu":
        # One thread each: at these sizes two trainings side by side gain more than two threads in one.
        with _taken("cpu", lambda: _cores(min(processes, workspace.cpu_slots())), label):
            yield "cpu", 1
        return
    names = _gpus(wanted)
    if processes > len(names):
        there = f"train.processes={processes}, {len(names)} GPUs"
        raise ResourceError("each process needs a GPU", there, "use fewer, or `--set train.device=cpu`")
    if processes > 1:  # those of the ranks
        with _taken(wanted, lambda: _one_on_each(names[:processes]), label):
            yield "cuda", 0
        return
    with _taken(wanted, lambda: _one_on_the_least_used(names), label) as (taken,):
        yield taken.device, 0


def cores_of_each() -> int:
    """Return how many cores each training on the processor may use now: what the others leave."""
    cores = workspace.cpu_slots()
    free = _free("cpu", cores)
    _release(free)
    return max(1, cores // max(1, cores - len(free)))


@contextmanager
def _taken(queue: str, take: Callable[[], list[Place]], label: str) -> Iterator[list[Place]]:
    """Hold what `take` returns as soon as that is something."""
    mark, started, told = object(), time.monotonic(), False
    _waiting[queue].append(mark)
    try:
        while not (taken := take() if _waiting[queue][0] is mark else []):
            if stop_requested.is_set():
                raise Stopped("training stopped", label or queue, "run the same command again to go on")
            if not told and not _held and time.monotonic() - started > TELL_SECONDS:
                told = True
                progress.warn("train", "others train on this machine: waiting for a place", label)
            time.sleep(POLL_SECONDS)
        _held.extend(taken)
    finally:
        _waiting[queue].remove(mark)
    try:
        yield taken
    finally:
        for one in taken:
            _held.remove(one)
        _release(taken)


def _cores(number: int) -> list[Place]:
    free = _free("cpu", workspace.cpu_slots())
    kept = free[:number] if len(free) >= number else []
    _release(free[len(kept) :])
    return kept


def _one_on_each(names: list[str]) -> list[Place]:
    free = [_free(name, workspace.gpu_slots()) for name in names]
    kept = [some[0] for some in free] if all(free) else []
    _release([one for some in free for one in some if one not in kept])
    return kept


def _one_on_the_least_used(names: list[str]) -> list[Place]:
    free = [_free(name, workspace.gpu_slots()) for name in names]
    kept = max(free, key=len)[:1]
    _release([one for some in free for one in some if one not in kept])
    return kept


def _free(device: str, number: int) -> list[Place]:
    """Take all places of a device that are free."""
    folder = workspace.artifacts() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    # A home may be on a disk that hosts share.
    name = f"place-{re.sub(r'[^a-zA-Z0-9.]', '-', f'{socket.gethostname()}-{device}')}"
    taken = []
    for i in range(number):
        lock = FileLock(folder / f"{name}-{i}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        taken.append(Place(device, lock))
    return taken


def _release(places: list[Place]) -> None:
    for one in places:
        one.lock.release()


def _gpus(wanted: str) -> list[str]:
    """Return the GPUs that a training may take."""
    import torch

    every = wanted in ("auto", "cuda")
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if every else [wanted]
