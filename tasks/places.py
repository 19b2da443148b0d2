"""Places to train on this machine: the cores of its processor, and shares of its GPUs.

All commands and workers of one home have them together. A place is a lock of the kernel, as in `locking.py`: it is free
again when the process that holds it ends, however that happens. Whoever waits for places holds the lock of its queue
meanwhile and keeps those that get free, so that a training of several processes has its turn.
"""

import re
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from filelock import FileLock, Timeout

from rnnlm_core.errors import ResourceError, Stopped
from tasks import progress, workspace
from tasks.locking import POLL_SECONDS, TELL_SECONDS
from tasks.stopping import stop_requested

COUNT_SECONDS = 2.0
"""How long the number of cores that others leave is believed."""


@dataclass(frozen=True)
class Place:
    """A core ("cpu") or a share of a GPU, and what says that it is taken."""

    device: str
    lock: FileLock


class _OfThisProcess:
    """Who waits, by device, first come, first served; what is held; the cores of each training, and since when."""

    waiting: ClassVar[dict[str, deque[object]]] = defaultdict(deque)
    held: ClassVar[list[Place]] = []
    counted: tuple[float, int] = (float("-inf"), 1)


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
        number = min(processes, workspace.cpu_slots())
        with _taken("cpu", lambda held: _take_cores(held, number), label):
            yield "cpu", 1
        return
    names = _gpus(wanted)
    if processes > len(names):
        there = f"train.processes={processes}, {len(names)} GPUs"
        raise ResourceError("each process needs a GPU", there, "use fewer, or `--set train.device=cpu`")
    if processes > 1:  # those of the ranks
        with _taken("cuda", lambda held: _take_each(held, names[:processes]), label):
            yield "cuda", 0
        return
    with _taken(names[0] if len(names) == 1 else "cuda", lambda held: _take_least_used(held, names), label) as (taken,):
        yield taken.device, 0


def cores_of_each() -> int:
    """Return how many cores each training on the processor may use now: what the others leave, one if any waits."""
    counted_at, number = _OfThisProcess.counted
    if time.monotonic() - counted_at < COUNT_SECONDS:
        return number
    cores, turn = workspace.cpu_slots(), _lock("cpu-next")
    if _acquired(turn):
        free = [place for place in _places("cpu") if _acquired(place.lock)]
        _release(free)
        turn.release()
        number = max(1, cores // max(1, cores - len(free)))
    else:
        number = 1
    _OfThisProcess.counted = time.monotonic(), number
    return number


@contextmanager
def _taken(queue: str, take: Callable[[list[Place]], bool], label: str) -> Iterator[list[Place]]:
    """Hold what `take` adds to the list that it is given, again and again until it has enough."""
    mark, turn, own = object(), _lock(f"{queue}-next"), _OfThisProcess
    started, told = time.monotonic(), False
    taken: list[Place] = []
    try:
        own.waiting[queue].append(mark)
        try:
            while not (own.waiting[queue][0] is mark and (turn.is_locked or _acquired(turn)) and take(taken)):
                if stop_requested.is_set():
                    raise Stopped("training stopped", label or queue, "run the same command again to go on")
                if not told and not own.held and time.monotonic() - started > TELL_SECONDS:
                    told = True
                    progress.warn("train", "all places of this machine are taken by trainings: waiting for one", label)
                time.sleep(POLL_SECONDS)
            own.held.extend(taken)
        finally:
            turn.release()
            own.waiting[queue].remove(mark)
        yield taken
    finally:
        own.held[:] = [place for place in own.held if place not in taken]
        _release(taken)


def _take_cores(held: list[Place], number: int) -> bool:
    for one in _places("cpu"):
        if len(held) < number and _acquired(one.lock):
            held.append(one)
    return len(held) == number


def _take_each(held: list[Place], names: list[str]) -> bool:
    for name in names:
        if name not in {one.device for one in held}:
            held += next(([one] for one in _places(name) if _acquired(one.lock)), [])
    return len(held) == len(names)


def _take_least_used(held: list[Place], names: list[str]) -> bool:
    free = [[one for one in _places(name) if _acquired(one.lock)] for name in names]
    held += max(free, key=len)[:1]
    _release([one for some in free for one in some if one not in held])
    return bool(held)


def _places(device: str) -> list[Place]:
    """Return the places of a device, by what it is called on this host whoever sees it under another number."""
    if device == "cpu":
        names = [f"core-{number}" for number in workspace.cores()]
    else:
        names = [f"gpu-{_uuid(device)}-{number}" for number in range(workspace.gpu_slots())]
    return [Place(device, _lock(name)) for name in names]


def _lock(name: str) -> FileLock:
    """Return the lock of a name on this host: a home may be on a disk that hosts share."""
    folder = workspace.artifacts() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    whole = re.sub(r"[^a-zA-Z0-9.]", "-", f"place-{socket.gethostname()}-{name}")
    return FileLock(folder / f"{whole}.lock", thread_local=False)


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _release(places: list[Place]) -> None:
    for one in places:
        one.lock.release()


def _uuid(gpu: str) -> str:
    import torch

    return str(torch.cuda.get_device_properties(torch.device(gpu)).uuid)


def _gpus(wanted: str) -> list[str]:
    """Return the GPUs that a training may take."""
    import torch

    every = wanted in ("auto", "cuda")
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if every else [wanted]
