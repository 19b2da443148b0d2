"""One at a time, in whichever process; the kernel frees what a dead process held."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnlm_core.errors import Stopped
from tasks import locking, progress
from tasks.locking import KernelLocks
from tasks.progress import News
from tasks.stopping import stop_requested

KEY = "train-abc"
HOLD = """
import sys
from tasks.locking import KernelLocks
locks = KernelLocks()
assert locks.acquire_lock(sys.argv[1], "other")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _nobody_asked_to_stop() -> Iterator[None]:
    stop_requested.clear()
    yield
    stop_requested.clear()


@pytest.fixture
def other(bare_home: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_a_lock_has_one_holder_until_it_is_released(bare_home: Path) -> None:
    one, two = KernelLocks(), KernelLocks()
    assert one.acquire_lock(KEY, "me")
    assert one.acquire_lock(KEY, "me")
    assert one.is_lock_holder(KEY, "me")
    assert not one.is_lock_holder(KEY, "you")
    assert one.is_locked(KEY)
    assert two.is_locked(KEY)
    assert not two.acquire_lock(KEY, "you", acquire_timeout=0)
    assert not two.wait_for_lock(KEY, timeout=0)
    with pytest.raises(ValueError, match=f"you does not hold {KEY}"):
        one.release_lock(KEY, "you")
    one.release_lock(KEY, "me")
    assert not one.is_locked(KEY)
    assert two.wait_for_lock(KEY, timeout=0)
    assert two.acquire_lock(KEY, "you", acquire_timeout=0)
    assert one.acquire_lock("train-other", "me", acquire_timeout=0)


def test_threads_take_turns(bare_home: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        locks = KernelLocks()
        locks.acquire_lock(KEY, str(number))
        inside.append(number)
        most.append(len(inside))
        inside.remove(number)
        locks.release_lock(KEY, str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_what_another_process_holds_is_waited_for_and_told_once(
    other: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "TELL_SECONDS", 0.0)
    news: list[News] = []

    def release(one: News) -> None:
        news.append(one)
        assert other.stdin is not None
        other.stdin.close()

    with progress.listening(release):
        assert KernelLocks().acquire_lock(KEY, "me")
    assert [(one.stage, one.warning) for one in news] == [("train", "another run is doing this: waiting for it")]


def test_what_a_killed_process_held_is_free(other: "subprocess.Popen[str]") -> None:
    assert KernelLocks().is_locked(KEY)
    other.send_signal(signal.SIGKILL)
    assert other.wait() == -signal.SIGKILL
    assert KernelLocks().acquire_lock(KEY, "me", acquire_timeout=1)


def test_a_stop_ends_the_waiting(other: "subprocess.Popen[str]") -> None:
    stop_requested.set()
    with pytest.raises(Stopped, match="stopped while waiting: another run does train: run the same command again"):
        KernelLocks().acquire_lock(KEY, "me")
    assert other.poll() is None


def test_a_key_that_is_a_path_is_the_same_lock(bare_home: Path) -> None:
    locks = KernelLocks()
    locks.acquire_lock(KEY, "me")
    assert KernelLocks().is_locked(str(bare_home / KEY))


def test_an_event_loop_can_wait_as_well(bare_home: Path) -> None:
    async def take() -> list[bool]:
        one, two = KernelLocks(), KernelLocks()
        taken = [await one.aacquire_lock(KEY, "me"), await two.aacquire_lock(KEY, "you", 0)]
        one.release_lock(KEY, "me")
        return [*taken, await two.await_for_lock(KEY, 0)]

    assert asyncio.run(take()) == [True, False, True]


def test_a_time_to_hold_is_refused(bare_home: Path) -> None:
    with pytest.raises(ValueError, match="has no hold_timeout, got 5"):
        KernelLocks().acquire_lock(KEY, "me", hold_timeout=5)
