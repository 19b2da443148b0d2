"""The stage `train`: a process of its own, a place to train, and what a failure leaves in MLflow."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rnnlm_core.config import TrainConfig
from rnnlm_core.errors import ResourceError, Stopped
from rnnlm_core.outcomes import Trained
from rnnlm_core.store import Handle
from rnnlm_core.training_job import Job
from tasks import tracked_runs
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


def test_a_training_does_not_begin_with_other_code_than_its_command(
    parent: FlowRun, built: Any, train_model: Any, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def is_edited(inputs: dict[str, Any], module: str) -> bool:
        asked.append(inputs)
        return module == "rnnlm_core.train"

    monkeypatch.setattr(train_stage, "is_edited", is_edited)
    with pytest.raises(ResourceError, match="the code of a training has changed since this command began: rnn: run"):
        train.fn("rnn", built.corpus, built.vocabulary, train_model, SHORT, parent)
    assert asked == [{"cell": "rnn"}]
    assert status(child_of(parent)) == "FAILED"
    assert list((home / "artifacts").rglob("state.safetensors")) == []
    assert trainings() == []


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


def test_the_identity_of_a_training_is_its_cell_its_model_and_its_run() -> None:
    trained = Trained("gru", Handle("model", "a" * 64), 1, 10, "cpu", 1.0, ())
    assert TrackedTraining(trained, "run-1").cache_identity() == ("gru", Handle("model", "a" * 64), "run-1")


def test_the_seed_decides_the_model(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> None:
    here = train_cell("gru", parent, SHORT)
    assert here.trained.model.kind == "model"
    again = train_cell("gru", parent, SHORT)
    other = train_cell("gru", parent, TrainConfig(epochs=2, batch_size=16, num_steps=16, device="cpu", seed=1))
    assert again.trained.model == here.trained.model != other.trained.model
