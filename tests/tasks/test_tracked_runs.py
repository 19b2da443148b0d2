"""Runs are found by cell, by preset, by reference, newest first."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric

from rnnlm_core.errors import DataError
from tasks import tracked_runs, tracking
from tasks.tracking import FlowRun
from tasks.tracking_database import client


def open_parent() -> Any:
    return tracking.parent_run("smoke", "text", {"model.hidden_size": 8}, "flow-run-1")


def test_a_model_reference_is_a_run_id_or_a_cell_of_the_last_run(home: Path) -> None:
    ids = []
    for key in ("key-1", "key-2"):
        with open_parent() as flow, tracking.child_run(flow, "gru", key, {}) as run_id:
            tracking.link_children(flow, {"gru": run_id}, ["gru"])
        ids.append(run_id)
    assert tracked_runs.find_model_run("gru").run_id == ids[1]
    assert tracked_runs.find_model_run(ids[0]).run_id == ids[0]
    with pytest.raises(DataError, match="no trained model: lstm: train one first with `rnnlm run`"):
        tracked_runs.find_model_run("lstm")
    with pytest.raises(DataError, match="no such model: nonsense: give a cell "):
        tracked_runs.find_model_run("nonsense")


def test_tracked_cells_are_listed_newest_first_and_by_corpus(home: Path) -> None:
    with open_parent() as flow:
        for number, corpus in enumerate(["one", "two", "one"]):
            with tracking.child_run(replace(flow, corpus=corpus), "gru", f"key-{number}", {}) as run_id:
                tracking.log_metrics(run_id, {"perplexity": float(number)})
    assert [run.metrics["perplexity"] for run in tracked_runs.tracked_cells()] == [2, 1, 0]
    assert [run.metrics["perplexity"] for run in tracked_runs.tracked_cells("one")] == [2, 0]
    assert [run.metrics["perplexity"] for run in tracked_runs.tracked_cells(last=1)] == [2]
    assert tracked_runs.tracked_cells("it's nobody's") == []
    assert {run.parameters["model.hidden_size"] for run in tracked_runs.tracked_cells()} == {"8"}


def test_minutes_of_training_are_a_figure_or_the_sum_of_the_epochs(home: Path) -> None:
    with open_parent() as flow:
        for key in ("new", "old", "none"):
            with tracking.child_run(flow, "gru", key, {}) as run_id:
                if key == "new":
                    tracking.log_metrics(run_id, {"perf/train_minutes": 2.5})
                if key == "old":
                    client().log_batch(run_id, [Metric("perf/epoch_seconds", 45.0, 0, step) for step in (1, 2)])
    assert [tracked_runs.train_minutes(run) for run in tracked_runs.tracked_cells()] == [None, 1.5, 2.5]


def test_an_infinite_figure_is_infinite_again(home: Path) -> None:
    with open_parent() as flow, tracking.child_run(flow, "gru", "key", {}) as run_id:
        tracking.log_metrics(run_id, {"perplexity": math.inf, "loss": 700.0})
    assert tracked_runs.find_model_run(run_id).metrics == {"perplexity": math.inf, "loss": 700.0}


def test_finished_cells_are_those_of_one_preset_and_cell_newest_first(home: Path) -> None:
    def train(key: str, cell: str, flow: FlowRun) -> str:
        with tracking.child_run(flow, cell, key, {}) as run_id:
            return run_id

    with open_parent() as flow:
        mine = [train("key-1", "gru", flow), train("key-2", "gru", flow)]
        train("key-3", "lstm", flow)
        train("key-4", "gru", replace(flow, preset="quickstart"))
        with pytest.raises(RuntimeError, match="boom"), tracking.child_run(flow, "gru", "key-5", {}):
            raise RuntimeError("boom")
        with tracking.child_run(flow, "gru", "key-6", {}):  # still at work
            found = tracked_runs.finished_cells("smoke", "gru")
    assert [run.run_id for run in found] == mine[::-1]
    assert found[0].parameters["model.hidden_size"] == "8"
    assert found[0].parameters["cell"] == "gru"
    assert tracked_runs.finished_cells("it's nobody's", "gru") == []


def test_the_text_of_a_cell_is_noted_by_a_run_above_it(home: Path) -> None:
    with open_parent() as flow:
        with tracking.child_run(flow, "gru", "key", {}) as cell:
            pass
        with tracking.child_run(replace(flow, parent_run_id=cell), "gru", "key-2", {}) as below:  # as of a trial
            pass
        runs = [tracked_runs.find_model_run(run_id) for run_id in (cell, below)]
        assert [tracked_runs.text_of(run) for run in runs] == ["", ""]
        tracking.set_tags(flow.parent_run_id, {tracked_runs.TEXT: "a" * 64})
        assert [tracked_runs.text_of(run) for run in runs] == ["a" * 64] * 2
        client().delete_run(cell)
        assert [tracked_runs.text_of(run) for run in runs] == ["a" * 64, ""]
