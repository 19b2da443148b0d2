"""Dynamic evaluation in a whole run: beside the static figures, which stay, and done once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.summary import PartlyDoneError
from rnnlm_core.errors import ConfigError, Diverged, ResourceError
from tasks import dynamic_evaluation as stage
from tasks import train as train_stage
from tasks.progress import News
from tasks.tracked_runs import find_model_run

Run = Callable[..., dict[str, Any]]
RATE = {"evaluate__dynamic_rate": 0.001}


def test_it_is_one_stage_more_and_the_run_of_the_cell_says_what_was_asked_for_last(
    run: Run, heard: list[News], train_here: list[str]
) -> None:
    static = run()["cells"]["rnn"]
    assert static["dynamic_perplexity"] is None
    found = {}
    for rule, tasks in (
        ("rms", {"executed": 1, "cached": 9}),
        ("sgd", {"executed": 1, "cached": 9}),
        ("rms", {"executed": 0, "cached": 10}),
    ):
        heard.clear()
        summary = run(**RATE, evaluate__dynamic_rule=rule)
        assert summary["tasks"] == tasks
        done = {news.stage for news in heard if news.done == "done"}
        assert done == ({"dynamic_evaluation"} if tasks["executed"] else set())
        figures = summary["cells"]["rnn"]
        learnt = figures["dynamic_perplexity"]
        assert figures == {**static, "cached": True, "dynamic_perplexity": learnt}
        assert found.setdefault(rule, learnt) == learnt
        tracked = find_model_run(figures["run_id"])
        assert tracked.metrics["test/dynamic_perplexity"] == learnt
        told = {"rate": 0.001, "rule": rule, "decay": 0.0, "steps": 5}
        shown = " ".join(f"evaluate.dynamic_{key}={value}" for key, value in told.items())
        assert tracked.tags["rnnlm.dynamic_evaluation.test"] == shown
    assert found["rms"] < found["sgd"] < static["test_perplexity"]
    assert train_here == ["rnn"]


def test_a_dynamic_evaluation_that_diverges_costs_its_figure_and_not_the_cell(
    run: Run, heard: list[News], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any) -> None:
        raise Diverged("dynamic evaluation diverged", "loss nan", "lower evaluate.dynamic_rate")

    monkeypatch.setattr(stage, "evaluate_in_child", diverge)
    with pytest.raises(
        PartlyDoneError, match="no figure of dynamic evaluation: rnn: dynamic evaluation diverged"
    ) as caught:
        run(**RATE)
    assert caught.value.exit_code == 7
    summary = caught.value.summary
    assert summary.cells["rnn"].test_perplexity is not None
    assert summary.cells["rnn"].dynamic_perplexity is None
    assert "No figure of dynamic evaluation of rnn" in Path(summary.report).read_text(encoding="utf-8")
    (warning,) = (news for news in heard if news.warning)
    assert (warning.stage, warning.cell) == ("dynamic_evaluation", "rnn")
    assert not any("dynamic" in name for name in find_model_run(summary.cells["rnn"].run_id).metrics)


def test_where_the_training_failed_that_is_the_reason(
    run: Run, heard: list[News], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Any, *_: Any) -> None:
        raise ResourceError("out of memory", job.cell, "lower train.batch_size")

    monkeypatch.setattr(train_stage, "train_in_child", fail)
    with pytest.raises(ResourceError, match="out of memory: rnn"):
        run(**RATE)
    assert [news.stage for news in heard if news.warning] == ["train"]


def test_options_of_what_is_off_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"`evaluate.dynamic_decay` has no effect without dynamic evaluation: set"):
        run(evaluate__dynamic_decay=0.1)
