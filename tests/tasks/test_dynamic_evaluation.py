"""The stage `dynamic_evaluation`: what its key depends on, where its figures go, and when it gives up."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rnnlm_core import dynamic_evaluation as core
from rnnlm_core.config import EvaluateConfig
from rnnlm_core.errors import Stopped
from rnnlm_core.outcomes import Evaluated
from tasks import tracking, workspace
from tasks.caching import cache_key
from tasks.dynamic_evaluation import dynamic_evaluation, note
from tasks.evaluate import evaluate
from tasks.stopping import stop_requested
from tasks.tracking import FlowRun
from tasks.tracking_database import client
from tasks.train import TrackedTraining

LEARNING = EvaluateConfig(dynamic_rate=0.001)


@pytest.fixture
def trained(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> TrackedTraining:
    return train_cell("gru", parent)


def test_what_is_off_is_no_part_of_a_key() -> None:
    def key(config: Any) -> str | None:
        return cache_key("evaluate", {"config": config}, "rnnlm_core.evaluate")

    before_the_keys_were = {"split": "valid"}
    assert key(EvaluateConfig(split="valid")) == key(before_the_keys_were)
    assert key(EvaluateConfig(split="valid", dynamic_rate=0.1).static) == key(before_the_keys_were)
    settings = [LEARNING, EvaluateConfig(dynamic_rate=0.02), EvaluateConfig(dynamic_rate=0.001, dynamic_rule="sgd"),
                EvaluateConfig(dynamic_rate=0.001, dynamic_decay=0.1),
                EvaluateConfig(dynamic_rate=0.001, dynamic_steps=6), EvaluateConfig()]  # fmt: skip
    assert len({key(config) for config in settings}) == len(settings)


def test_the_figure_stands_beside_the_static_one(built: Any, trained: TrackedTraining) -> None:
    static = evaluate.fn("gru", trained, built.corpus, LEARNING.static).evaluated
    learnt = dynamic_evaluation.fn("gru", trained, built.corpus, LEARNING, "cpu")
    note(trained.run_id, learnt, {"evaluate.dynamic_rate": "0.001", "evaluate.dynamic_rule": "rms"})
    data = client().get_run(trained.run_id).data
    assert data.metrics["test/perplexity"] == data.metrics["perplexity"] == static.perplexity
    assert data.metrics["test/dynamic_perplexity"] == learnt.perplexity < static.perplexity
    assert data.metrics["test/dynamic_loss"] == learnt.loss
    assert data.metrics["test/dynamic_bits_per_char"] == learnt.bits_per_char
    assert data.tags["rnnlm.dynamic_evaluation.test"] == "evaluate.dynamic_rate=0.001 evaluate.dynamic_rule=rms"


def test_it_is_done_in_a_process_of_its_own_whatever_the_threads_of_this_one(
    built: Any, trained: TrackedTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = core.evaluate_dynamically(trained.trained.model, built.corpus.handle, LEARNING, workspace.store())
    monkeypatch.delattr(core, "evaluate_dynamically")
    assert dynamic_evaluation.fn("gru", trained, built.corpus, LEARNING, "cpu") == here


def test_each_split_keeps_the_settings_of_its_own_figures(trained: TrackedTraining) -> None:
    test = Evaluated("test", 1.5, math.exp(1.5), 2.2, 0.0, 100, "none")
    note(trained.run_id, test, {"evaluate.dynamic_rate": "0.001"})
    note(trained.run_id, replace(test, split="valid"), {"evaluate.dynamic_rate": "0.5"})
    tags = client().get_run(trained.run_id).data.tags
    told = {split: tags[f"rnnlm.dynamic_evaluation.{split}"] for split in ("test", "valid")}
    assert told == {"test": "evaluate.dynamic_rate=0.001", "valid": "evaluate.dynamic_rate=0.5"}


def test_figures_of_which_nobody_has_said_the_settings_have_none(
    trained: TrackedTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the figures and their settings."""
    learnt = Evaluated("test", 1.5, math.exp(1.5), 2.2, 0.0, 100, "none")
    note(trained.run_id, learnt, {"evaluate.dynamic_rate": "0.001"})

    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(tracking, "log_metrics", die)
    with pytest.raises(SystemExit):
        note(trained.run_id, learnt, {"evaluate.dynamic_rate": "0.5"})
    assert client().get_run(trained.run_id).data.tags["rnnlm.dynamic_evaluation.test"] == ""


def test_who_is_asked_to_stop_stops(built: Any, trained: TrackedTraining) -> None:
    stop_requested.set()
    with pytest.raises(Stopped, match="dynamic evaluation stopped: gru: run the same command again"):
        dynamic_evaluation.fn("gru", trained, built.corpus, LEARNING, "cpu")
