"""MLflow is told everything once, and never left believing that something dead still runs."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from rnnlm_core.config import EvaluateConfig, TrainConfig
from rnnlm_core.errors import DataError, Stopped
from rnnlm_core.outcomes import Epoch
from tasks import tracking, wording
from tasks.corpus import Corpus
from tasks.evaluate import evaluate
from tasks.tracked_runs import curve
from tasks.tracking import FlowRun
from tasks.tracking_database import client
from tasks.train import TrackedTraining

EPOCH_METRICS = {
    "train/loss",
    "train/perplexity",
    "valid/loss",
    "valid/perplexity",
    "optim/learning_rate",
    "optim/gradient_norm",
    "perf/tokens_per_second",
    "perf/epoch_seconds",
}
PARAMETERS = {"model.hidden_size": 8, "cells": ("rnn", "gru"), "corpus.name": "x" * 7000}


def read(run_id: str) -> Run:
    return client().get_run(run_id)


def steps(run_id: str, metric: str) -> list[int]:
    return [step for step, _ in curve(run_id, metric)]


def open_parent() -> Any:
    return tracking.parent_run("smoke", "text", PARAMETERS, "flow-run-1")


def dead_process() -> int:
    """Return the id of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def epoch(number: int, valid_loss: float | None = 2.0) -> Epoch:
    return Epoch(number, 9, 3.0 / number, valid_loss, 1e-3, 0.5, 1000.0, 0.1)


def test_a_parent_run_has_a_readable_name_tags_and_flat_parameters(home: Path) -> None:
    with open_parent() as flow:
        run = read(flow.parent_run_id)
        assert run.info.status == "RUNNING"
    run = read(flow.parent_run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "smoke · text"
    tags = run.data.tags
    assert tags["rnnlm.kind"] == "pipeline"
    assert tags["rnnlm.preset"] == "smoke"
    assert tags["rnnlm.corpus"] == "text"
    assert tags["prefect.flow_run_id"] == "flow-run-1"
    assert tags["rnnlm.host"] == socket.gethostname()
    assert tags["rnnlm.pid"] == str(os.getpid())
    assert run.data.params["model.hidden_size"] == "8"
    assert run.data.params["cells"] == "rnn,gru"


def test_a_parameter_that_mlflow_would_refuse_for_its_length_is_cut(home: Path) -> None:
    with open_parent() as flow:
        shown = read(flow.parent_run_id).data.params["corpus.name"]
    assert len(shown) == wording.LONGEST_PARAMETER
    assert shown.endswith("x…")


def test_a_child_run_belongs_to_its_parent_and_carries_all_parameters(home: Path) -> None:
    with open_parent() as flow, tracking.child_run(flow, "gru", "key-1", {"rnnlm.corpus_sha256": "abc"}) as run_id:
        assert read(run_id).info.status == "RUNNING"
    run = read(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "gru · text"
    assert run.data.tags["mlflow.parentRunId"] == flow.parent_run_id
    assert run.data.tags["rnnlm.kind"] == "cell"
    assert run.data.tags["rnnlm.cell"] == "gru"
    assert run.data.tags["rnnlm.key"] == "key-1"
    assert run.data.tags["rnnlm.corpus_sha256"] == "abc"
    assert run.data.tags["prefect.flow_run_id"] == "flow-run-1"
    assert run.data.params["model.hidden_size"] == "8"
    assert run.data.params["cell"] == "gru"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("boom"), "FAILED"),
        (DataError("text", "x", "y"), "FAILED"),
        (KeyboardInterrupt("boom"), "KILLED"),
        (SystemExit(1), "KILLED"),
        (Stopped("training stopped", "gru", "go on"), "KILLED"),
    ],
)
def test_runs_end_as_their_block_ends(home: Path, error: BaseException, status: str) -> None:
    ids = []
    with pytest.raises(type(error)), open_parent() as flow:  # noqa: PT012 - the blocks nest
        ids.append(flow.parent_run_id)
        with tracking.child_run(flow, "gru", "key-1", {}) as run_id:
            ids.append(run_id)
            raise error
    for run_id in ids:
        run = read(run_id)
        assert run.info.status == status
        assert run.data.tags["rnnlm.error"] == repr(error)
        assert run.info.end_time is not None


def test_a_failed_child_leaves_its_sibling(home: Path) -> None:
    with open_parent() as flow:
        with pytest.raises(RuntimeError, match="boom"), tracking.child_run(flow, "gru", "key-1", {}) as failed:
            raise RuntimeError("boom")
        with tracking.child_run(flow, "rnn", "key-2", {}) as done:
            tracking.log_metrics(done, {"perplexity": 3.0})
    assert read(failed).info.status == "FAILED"
    assert read(done).info.status == "FINISHED"


def test_the_same_key_opens_the_same_run_again(home: Path) -> None:
    with open_parent() as first, tracking.child_run(first, "gru", "key-1", {}) as run_id:
        tracking.log_metrics(run_id, {"perplexity": 3.0})
    with open_parent() as second:
        with tracking.child_run(second, "gru", "key-1", {}) as again:
            assert read(again).info.status == "RUNNING"
        with tracking.child_run(second, "gru", "key-2", {}) as other:
            assert other != run_id
    assert again == run_id
    assert read(run_id).info.status == "FINISHED"


def test_every_cell_has_the_same_metric_names_and_a_value_per_epoch(
    parent: FlowRun, train_cell: Callable[..., TrackedTraining], built: Any
) -> None:
    names = {}
    for cell in ("rnn", "gru", "lstm"):
        trained = train_cell(cell, parent, TrainConfig(epochs=3, batch_size=16, num_steps=16, device="cpu"))
        evaluate.fn(cell, trained, built.corpus, EvaluateConfig())
        for metric in EPOCH_METRICS:
            assert steps(trained.run_id, metric) == [1, 2, 3], (cell, metric)
        run = read(trained.run_id)
        names[cell] = set(run.data.metrics)
        assert run.data.metrics["perplexity"] == run.data.metrics["test/perplexity"] > 1
        assert run.data.metrics["model/parameters"] == trained.trained.num_parameters
        assert run.data.tags["rnnlm.device"] == "cpu"
        assert run.data.tags["rnnlm.model_sha256"] == trained.trained.model.sha256
    assert names["rnn"] == names["gru"] == names["lstm"]
    assert names["rnn"] == EPOCH_METRICS | {
        "perplexity",
        "test/perplexity",
        "test/loss",
        "test/bits_per_char",
        "test/oov_rate",
        "model/parameters",
        "vocabulary/size",
        "perf/median_tokens_per_second",
        "best/epoch",
        "perf/train_minutes",
        "best/train_perplexity",
        "best/valid_perplexity",
    }


def test_training_again_under_the_same_key_repeats_no_step(
    parent: FlowRun, train_cell: Callable[..., TrackedTraining], train_here: list[str]
) -> None:
    first = train_cell("rnn", parent)
    second = train_cell("rnn", parent)
    assert train_here == ["rnn", "rnn"]
    assert second.run_id == first.run_id
    assert second.trained.model == first.trained.model
    for metric in EPOCH_METRICS:
        assert steps(first.run_id, metric) == [1, 2], metric


def test_epochs_already_logged_are_not_logged_again(parent: FlowRun) -> None:
    for numbers in ([1, 2], [1, 2, 3], [3, 4]):  # a run, a run resumed, and one that starts at what it knows
        log = tracking.EpochLog(parent.parent_run_id)
        for number in numbers:
            log.add(epoch(number))
        log.flush()
    assert steps(parent.parent_run_id, "train/loss") == [1, 2, 3, 4]
    assert curve(parent.parent_run_id, "train/loss") == [(n, 3.0 / n) for n in (1, 2, 3, 4)]


def test_without_validation_split_there_are_no_validation_metrics(parent: FlowRun) -> None:
    log = tracking.EpochLog(parent.parent_run_id)
    log.add(epoch(1, valid_loss=None))
    log.flush()
    assert set(read(parent.parent_run_id).data.metrics) == EPOCH_METRICS - {"valid/loss", "valid/perplexity"}


def test_many_epochs_reach_mlflow_in_batches_without_an_end(parent: FlowRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 1e9)
    log = tracking.EpochLog(parent.parent_run_id)
    for number in range(1, 131):
        log.add(epoch(number))
    assert 0 < len(steps(parent.parent_run_id, "train/loss")) < 130
    log.flush()
    assert steps(parent.parent_run_id, "train/loss") == list(range(1, 131))


def test_the_parent_names_the_run_of_each_cell_and_what_was_found(parent: FlowRun) -> None:
    tracking.link_children(parent, {"rnn": "run-r", "gru": "run-g"}, ["gru"])
    tags = read(parent.parent_run_id).data.tags
    assert tags["rnnlm.child.rnn"] == "run-r"
    assert tags["rnnlm.child.gru"] == "run-g"
    assert tags["rnnlm.found_trained"] == "rnn"


@pytest.mark.parametrize("started", ["0.00", "nonsense"])
def test_a_run_whose_process_is_gone_is_closed_as_killed(home: Path, started: str) -> None:
    gone = {"rnnlm.pid": str(dead_process()), "rnnlm.started": started}
    run_id = tracking._create("left behind", gone, {})
    assert read(run_id).info.status == "RUNNING"
    with open_parent() as flow:
        assert [run.run_id for run in tracking.close_dead_runs()] == [run_id]
        assert read(run_id).info.status == "KILLED"
        assert read(run_id).data.tags["rnnlm.error"] == "its process ended without closing it"
        assert read(flow.parent_run_id).info.status == "RUNNING"


def test_a_run_whose_process_id_belongs_to_another_by_now_is_closed(home: Path) -> None:
    run_id = tracking._create("left behind", {"rnnlm.pid": str(os.getpid()), "rnnlm.started": "1.00"}, {})
    assert [run.run_id for run in tracking.close_dead_runs()] == [run_id]
    assert read(run_id).info.status == "KILLED"


def test_a_run_whose_process_lives_is_left_alone(home: Path) -> None:
    run_id = tracking._create("at work", {}, {})
    with open_parent():
        assert read(run_id).info.status == "RUNNING"
    assert tracking.close_dead_runs() == []


def test_a_run_of_another_machine_is_left_alone(home: Path) -> None:
    tags = {"rnnlm.host": "elsewhere", "rnnlm.pid": str(dead_process()), "rnnlm.started": "0.00"}
    run_id = tracking._create("far away", tags, {})
    assert tracking.close_dead_runs() == []
    assert read(run_id).info.status == "RUNNING"


def test_a_parameter_is_kept_as_it_is_typed() -> None:
    values = [0.5, 2.0, 1e-3, 20, "90/5/5", ("rnn", "gru"), ()]
    assert [wording.parameter_text(value) for value in values] == [
        "0.5", "2.0", "0.001", "20", "90/5/5", "rnn,gru", "",
    ]  # fmt: skip


def test_a_corpus_of_one_run_is_told_by_its_digest(
    parent: FlowRun, train_cell: Callable[..., TrackedTraining], built: Any
) -> None:
    corpus: Corpus = built.corpus
    tags = read(train_cell("rnn", parent).run_id).data.tags
    assert tags["rnnlm.corpus_sha256"] == corpus.handle.sha256
    assert tags["rnnlm.vocabulary_sha256"] == built.vocabulary.handle.sha256
