"""The stage `train`: a process of its own, a place to train, and what a failure leaves in MLflow."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest
import torch

from rnnlm_core.config import TrainConfig
from rnnlm_core.errors import ResourceError, Stopped, UsageError
from rnnlm_core.outcomes import Trained
from rnnlm_core.store import Handle
from rnnlm_core.train_process import Job
from tasks import tracked_runs, workspace
from tasks import train as train_stage
from tasks.progress import News
from tasks.tracking import FlowRun
from tasks.tracking_database import client, experiment_id
from tasks.train import TrackedTraining, stop_requested, train

LONG = TrainConfig(epochs=100_000, batch_size=16, num_steps=16, device="cpu")
SHORT = TrainConfig(epochs=2, batch_size=16, num_steps=16, device="cpu")


@pytest.fixture
def _nobody_asked_to_stop() -> Iterator[None]:
    stop_requested.clear()
    yield
    stop_requested.clear()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What the stage asks of its child, which fails at once."""
    asked: list[Job] = []

    def refuse(job: Job, *rest: Any) -> dict[str, Any]:
        asked.append(job)
        raise ResourceError("no child today", job.cell, "try tomorrow")

    monkeypatch.setattr(train_stage, "train_in_child", refuse)
    return asked


def status(run_id: str) -> str:
    return str(client().get_run(run_id).info.status)


def child_of(flow: FlowRun) -> str:
    cells = tracked_runs.tracked_cells()
    (found,) = [run.run_id for run in cells if run.tags["mlflow.parentRunId"] == flow.parent_run_id]
    return found


def test_the_child_gets_the_slice_of_the_config_and_one_thread(
    parent: FlowRun, built: Any, jobs: list[Job], train_model: Any
) -> None:
    with pytest.raises(ResourceError, match="no child today"):
        train.fn("gru", built.corpus, built.vocabulary, train_model, SHORT, parent)
    (job,) = jobs
    assert job.cell == "gru"
    assert job.corpus == built.corpus.handle
    assert job.vocabulary == built.vocabulary.handle
    assert job.model == train_model
    assert job.train == SHORT
    assert job.threads == 1
    assert job.key.startswith("train-")
    assert status(child_of(parent)) == "FAILED"


def trainings() -> list[psutil.Process]:
    """Return the trainings under way (other children, a server perhaps, are not ours to count)."""
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "rnnlm_core.train_process" in child.cmdline()]


def test_a_real_child_reports_each_epoch_and_its_model(
    parent: FlowRun, built: Any, train_model: Any, heard: list[News]
) -> None:
    result: TrackedTraining = train.fn("rnn", built.corpus, built.vocabulary, train_model, SHORT, parent)
    assert [news.epoch.number for news in heard if news.epoch] == [1, 2]
    assert {news.cell for news in heard} == {"rnn"}
    assert result.trained.cell == "rnn"
    assert result.trained.device == "cpu"
    assert len(result.trained.history) == 2
    assert status(result.run_id) == "FINISHED"
    assert trainings() == []


def test_a_child_that_is_killed_fails_its_run_with_the_signal(parent: FlowRun, built: Any, train_model: Any) -> None:
    from tasks import progress

    def kill(news: News) -> None:
        if news.epoch is not None and news.epoch.number == 1:
            for child in trainings():
                os.kill(child.pid, signal.SIGKILL)

    with progress.listening(kill), pytest.raises(ResourceError, match="training of rnn was killed: SIGKILL: if memory"):
        train.fn("rnn", built.corpus, built.vocabulary, train_model, LONG, parent)
    run_id = child_of(parent)
    assert status(run_id) == "FAILED"
    assert [step for step, _ in tracked_runs.curve(run_id, "train/loss")][:1] == [1]
    assert trainings() == []


@pytest.mark.usefixtures("_nobody_asked_to_stop")
def test_a_request_to_stop_ends_a_real_child_and_its_run_is_killed(
    parent: FlowRun, built: Any, train_model: Any
) -> None:
    from tasks import progress

    def stop(news: News) -> None:
        if news.epoch is not None:
            stop_requested.set()

    with progress.listening(stop), pytest.raises(Stopped, match="training stopped: in epoch"):
        train.fn("rnn", built.corpus, built.vocabulary, train_model, LONG, parent)
    assert status(child_of(parent)) == "KILLED"
    assert trainings() == []


@pytest.mark.usefixtures("_nobody_asked_to_stop")
def test_a_training_that_waited_while_a_stop_came_does_not_start(
    parent: FlowRun, built: Any, train_model: Any, jobs: list[Job]
) -> None:
    stop_requested.set()
    with pytest.raises(Stopped, match="training stopped: rnn: run the same command again to go on"):
        train.fn("rnn", built.corpus, built.vocabulary, train_model, SHORT, parent)
    assert jobs == []
    assert trainings() == []
    assert len(client().search_runs([experiment_id()])) == 1  # the parent


def test_a_training_alone_has_every_core_and_several_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cpu_slots", lambda: 5)
    found = []
    with train_stage.place("cpu") as (_, threads):
        found.append(train_stage._cores_of_each())
        with train_stage.place("cpu"):
            found.append(train_stage._cores_of_each())
        found.append(train_stage._cores_of_each())
    assert (found, threads) == ([5, 2, 5], 1)


def test_trainings_side_by_side_are_no_more_than_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_stage, "_cpu_slots", threading.BoundedSemaphore(2))
    lock, all_in = threading.Lock(), threading.Barrier(2)
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        with train_stage.place("cpu") as place:
            assert place == ("cpu", 1)
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
    monkeypatch.setattr(workspace, "cpu_slots", lambda: 4)
    slots = threading.BoundedSemaphore(4)
    monkeypatch.setattr(train_stage, "_cpu_slots", slots)
    assert [train_stage.places("cpu", processes) for processes in (1, 2, 3, 9)] == [4, 2, 1, 1]
    with train_stage.place("cpu", 3) as place:
        assert place == ("cpu", 1)
        assert train_stage._cores_of_each() == 1
        with train_stage.place("cpu"):
            assert not slots.acquire(blocking=False)
    with train_stage.place("cpu", 9):  # more than there are: they take turns on all
        assert not slots.acquire(blocking=False)
    assert slots._value == 4


def test_trainings_of_several_processes_do_not_wait_for_each_other_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "cpu_slots", lambda: 3)
    monkeypatch.setattr(train_stage, "_cpu_slots", threading.BoundedSemaphore(3))

    def work() -> None:
        for _ in range(200):
            with train_stage.place("cpu", 2):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert train_stage._on_cpu == {}


def test_a_place_is_free_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_stage, "_cpu_slots", threading.BoundedSemaphore(1))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"), train_stage.place("cpu"):
            raise RuntimeError("broken")
    assert train_stage._cpu_slots.acquire(blocking=False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNLM_GPU_SLOTS", raising=False)
    monkeypatch.setattr("rnnlm_core.model.pick_device", lambda name: torch.device(name.replace("auto", "cuda")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def take(places: ExitStack, wanted: str) -> str:
    """Take a place, which must be free, and return its device."""
    device, threads = places.enter_context(train_stage.place(wanted))
    assert threads == 0
    return device


@contextmanager
def waits(wanted: str) -> Iterator[None]:
    """No place is free before the block, and one after it."""
    came = threading.Event()

    def work() -> None:
        with train_stage.place(wanted):
            came.set()

    waiting = threading.Thread(target=work)
    waiting.start()
    assert not came.wait(timeout=0.3)
    yield
    assert came.wait(timeout=60)
    waiting.join()


def is_idle() -> bool:
    return not any(train_stage._gpu_load.values())


@pytest.mark.usefixtures("two_gpus")
def test_trainings_spread_over_the_gpus_three_on_each() -> None:
    assert train_stage.places("auto") == train_stage.places("cuda") == 6
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
    assert (train_stage.places("cuda:1"), train_stage.places("cuda")) == (1, 2)
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
        assert places.enter_context(train_stage.place("auto", 2)) == ("cuda", 0)
        with waits("cuda:1"):
            places.pop_all().close()
    assert is_idle()
    told = r"each process needs a GPU: train.processes=3, 2 GPUs: use fewer, or `--set train.device=cpu`"
    with pytest.raises(ResourceError, match=told), train_stage.place("cuda", 3):
        pass


@pytest.mark.usefixtures("two_gpus")
def test_a_place_on_a_gpu_is_free_again_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="broken"), train_stage.place("cuda"):
        raise RuntimeError("broken")
    assert is_idle()


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1.5", "100", "9" * 5000, "３"])
def test_trainings_on_a_gpu_are_a_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RNNLM_GPU_SLOTS", value)
    with pytest.raises(
        UsageError, match=r"`RNNLM_GPU_SLOTS` must be a whole number from 1 to 99: .*correct or unset it"
    ):
        workspace.gpu_slots()


def test_the_identity_of_a_training_is_its_cell_its_model_and_its_run() -> None:
    trained = Trained("gru", Handle("model", "a" * 64), 1, 10, "cpu", 1.0, ())
    assert TrackedTraining(trained, "run-1").cache_identity() == ("gru", Handle("model", "a" * 64), "run-1")


def test_the_seed_decides_the_model(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> None:
    here = train_cell("gru", parent, SHORT)
    assert here.trained.model.kind == "model"
    again = train_cell("gru", parent, SHORT)
    other = train_cell("gru", parent, TrainConfig(epochs=2, batch_size=16, num_steps=16, device="cpu", seed=1))
    assert again.trained.model == here.trained.model != other.trained.model
