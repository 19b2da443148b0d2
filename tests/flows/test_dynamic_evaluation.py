"""Dynamic evaluation in a whole run: beside the static figures, which stay, and done once."""

from collections.abc import Callable
from typing import Any

import pytest

from rnnlm_core.errors import ConfigError
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


def test_options_of_what_is_off_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"`evaluate.dynamic_decay` has no effect without dynamic evaluation: set"):
        run(evaluate__dynamic_decay=0.1)
