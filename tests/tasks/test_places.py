"""Places to train: each core once, the GPUs shared out, among all processes of a home."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from rnnlm_core.errors import ResourceError, Stopped, UsageError
from tasks import places, workspace
from tasks.places import cores_of_each, number_of_places, place
from tasks.progress import News
from tasks.stopping import stop_requested

pytestmark = pytest.mark.usefixtures("bare_home")


@pytest.fixture(autouse=True)
def _counted_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "COUNT_SECONDS", 0.0)


def free(device: str) -> int:
    """Return how many places of a device are free."""
    there = [one for one in places._places(device) if places._acquired(one.lock)]
    places._release(there)
    return len(there)


@contextmanager
def waits(wanted: str) -> Iterator[None]:
    """No place is free before the block, and one after it."""
    came = threading.Event()

    def work() -> None:
        with place(wanted):
            came.set()

    waiting = threading.Thread(target=work)
    waiting.start()
    assert not came.wait(timeout=0.3)
    yield
    assert came.wait(timeout=60)
    waiting.join()


def test_a_training_alone_has_every_core_and_several_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(5)))
    found = []
    with place("cpu") as (_, threads):
        found.append(cores_of_each())
        with place("cpu"):
            found.append(cores_of_each())
        found.append(cores_of_each())
    assert (found, threads) == ([5, 2, 5], 1)


def test_trainings_side_by_side_are_no_more_than_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(2)))
    lock, all_in = threading.Lock(), threading.Barrier(2)
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        with place("cpu") as found:
            assert found == ("cpu", 1)
            with lock:
                now += 1
                most = max(most, now)
            all_in.wait(timeout=60)  # passes only when two are inside together
            with lock:
                now -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert most == 2
    assert now == 0
    assert not any(thread.is_alive() for thread in threads)


def test_a_training_of_several_processes_has_a_core_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(4)))
    assert [number_of_places("cpu", processes) for processes in (1, 2, 3, 9)] == [4, 2, 1, 1]
    with place("cpu", 3) as found:
        assert found == ("cpu", 1)
        assert cores_of_each() == 1
        assert free("cpu") == 1
    with place("cpu", 9):  # more than there are: they take turns on all
        assert free("cpu") == 0
    assert free("cpu") == 4


def test_trainings_of_several_processes_do_not_wait_for_each_other_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(3)))

    def work() -> None:
        for _ in range(20):
            with place("cpu", 2):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert free("cpu") == 3


def test_a_place_is_free_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(1)))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"), place("cpu"):
            raise RuntimeError("broken")
    assert free("cpu") == 1


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNLM_GPU_SLOTS", raising=False)
    monkeypatch.setattr("rnnlm_core.model.pick_device", lambda name: torch.device(name.replace("auto", "cuda")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(places, "_uuid", lambda gpu: gpu)


def take(places: ExitStack, wanted: str) -> str:
    """Take a place, which must be free, and return its device."""
    device, threads = places.enter_context(place(wanted))
    assert threads == 0
    return device


def is_idle() -> bool:
    return free("cuda:0") == free("cuda:1") == workspace.gpu_slots()


@pytest.mark.usefixtures("two_gpus")
def test_trainings_spread_over_the_gpus_three_on_each() -> None:
    assert number_of_places("auto") == number_of_places("cuda") == 6
    with ExitStack() as places:
        taken = [take(places, "auto") for _ in range(6)]
        assert taken == ["cuda:0", "cuda:1"] * 3
        with waits("cuda"):
            places.pop_all().close()
    assert is_idle()


@pytest.mark.usefixtures("two_gpus")
def test_the_least_used_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as first, ExitStack() as named:
        assert take(first, "cuda") == "cuda:0"
        assert [take(named, "cuda:1") for _ in range(2)] == ["cuda:1"] * 2
        with ExitStack() as others:
            assert take(others, "auto") == "cuda:0"
        first.close()
        assert [take(named, "auto") for _ in range(3)] == ["cuda:0", "cuda:0", "cuda:0"]
    assert is_idle()


@pytest.mark.usefixtures("two_gpus")
def test_a_named_gpu_is_the_one_that_is_used_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_GPU_SLOTS", "1")
    assert (number_of_places("cuda:1"), number_of_places("cuda")) == (1, 2)
    with ExitStack() as places:
        assert take(places, "cuda:1") == "cuda:1"
        with waits("cuda:1"):
            assert take(places, "auto") == "cuda:0"
            places.pop_all().close()
    assert is_idle()


@pytest.mark.usefixtures("two_gpus")
def test_processes_take_a_gpu_each_and_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_GPU_SLOTS", "1")
    with ExitStack() as places:
        assert places.enter_context(place("auto", 2)) == ("cuda", 0)
        with waits("cuda:1"):
            places.pop_all().close()
    assert is_idle()
    told = r"each process needs a GPU: train.processes=3, 2 GPUs: use fewer, or `--set train.device=cpu`"
    with pytest.raises(ResourceError, match=told), place("cuda", 3):
        pass


@pytest.mark.usefixtures("two_gpus")
def test_a_place_on_a_gpu_is_free_again_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="broken"), place("cuda"):
        raise RuntimeError("broken")
    assert is_idle()


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1.5", "100", "9" * 5000, "３"])
def test_trainings_on_a_gpu_are_a_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RNNLM_GPU_SLOTS", value)
    with pytest.raises(
        UsageError, match=r"`RNNLM_GPU_SLOTS` must be a whole number from 1 to 99: .*correct or unset it"
    ):
        workspace.gpu_slots()


OTHER = """
import sys, time
from tasks.places import place
with place("cpu"):
    print("has one", flush=True)
    time.sleep(600)
"""


def test_the_places_of_a_home_are_those_of_all_its_processes(
    heard: list[News], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(2)))
    monkeypatch.setattr(places, "TELL_SECONDS", 0.0)
    other = subprocess.Popen([sys.executable, "-c", OTHER], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "has one\n"
    with place("cpu"):
        assert cores_of_each() == 1
    killed = threading.Timer(0.5, other.kill)
    killed.start()
    with place("cpu", 2, "gru"):  # which it was not before the other one ended
        assert other.wait() < 0
    other.stdout.close()
    assert [(news.cell, news.warning) for news in heard] == [
        ("gru", "all places of this machine are taken by trainings: waiting for one")
    ]


def test_who_waits_for_a_place_stops_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(1)))
    monkeypatch.setattr(stop_requested, "is_set", lambda: True)
    with place("cpu"), pytest.raises(Stopped, match="training stopped: gru: run the same"), place("cpu", 1, "gru"):
        pass
    assert free("cpu") == 1


def test_first_come_first_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: list(range(1)))
    served: list[int] = []

    def work(number: int) -> None:
        with place("cpu"):
            served.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    with place("cpu"):
        for number, thread in enumerate(threads):
            thread.start()
            while len(places._OfThisProcess.waiting["cpu"]) <= number:
                time.sleep(0.01)
    for thread in threads:
        thread.join(timeout=60)
    assert served == [0, 1, 2, 3]


def test_a_training_of_several_processes_has_its_turn_among_many_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another process never leave two cores free at once."""
    monkeypatch.setattr(workspace, "cores", lambda: [0, 1])
    busy = [places._places("cpu") for _ in range(2)]
    first, second = busy[0][0].lock, busy[1][1].lock
    assert places._acquired(first)
    assert places._acquired(second)
    came = threading.Event()

    def work() -> None:
        with place("cpu", 2):
            came.set()

    waiting = threading.Thread(target=work)
    waiting.start()
    while not places._OfThisProcess.waiting["cpu"]:
        time.sleep(0.01)
    first.release()
    time.sleep(5 * places.POLL_SECONDS)
    assert not places._acquired(first)  # it is kept for who waits
    assert cores_of_each() == 1
    assert not came.is_set()
    second.release()
    assert came.wait(timeout=60)
    waiting.join()
    assert free("cpu") == 2


def test_processes_on_different_cores_do_not_share_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cores", lambda: [0])
    with place("cpu"):
        assert free("cpu") == 0
        monkeypatch.setattr(workspace, "cores", lambda: [1])
        assert free("cpu") == 1
