"""A sweep in this process: what it tries, what it leaves in MLflow, and how it goes on."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest

from flows import cli
from flows import sweep as sweep_flow
from flows.language_model import language_model
from flows.sweep import sweep
from rnnlm_core.checkpoint import pending
from rnnlm_core.errors import ConfigError, ResourceError
from rnnlm_core.training_job import Job
from tasks import studies, tracked_runs, workspace
from tasks import train as train_stage
from tasks.progress import News
from tasks.tracking_database import client, experiment_id

FIXED = {
    "model.embedding_size": 0,
    "corpus.max_tokens": 2000,
    "corpus.split": "80/10/10",
    "train.batch_size": 16,
    "train.num_steps": 16,
    "train.device": "cpu",
    "train.epochs": 2,
    "generate.prefixes": ["the "],
    "generate.length": 5,
}
RATES = "train.learning_rate=log:0.001..0.05"
SIZES = "model.hidden_size=4,8"

Sweep = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials side by side do not come in the same order each time."""
    monkeypatch.setattr(sweep_flow, "number_of_places", lambda *_: 1)


@pytest.fixture
def run_sweep(home: Path, book: Path, train_here: list[str]) -> Sweep:
    """Return a function that sweeps a tiny model over the text."""

    def run(
        trials: int, *search: str, cells: tuple[str, ...] = ("rnn",), name: str | None = None, **changes: Any
    ) -> Any:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return sweep("smoke", str(book), list(cells), {**FIXED, **dotted}, list(search) or [RATES], trials, name)

    return run


@pytest.fixture
def prune_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that has every trial from one number on pruned after its first epoch."""

    def prune(first: int) -> None:
        monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda _, __, trial: trial.number >= first)

    return prune


def runs(kind: str) -> list[Any]:
    """Return the runs of one kind, oldest first."""
    query = f"tags.`rnnlm.kind` = '{kind}'"
    return list(client().search_runs([experiment_id()], query, order_by=["attributes.start_time ASC"]))


def settings(summary: dict[str, Any]) -> list[tuple[int, str, dict[str, Any]]]:
    return sorted((row["number"], row["cell"], row["settings"]) for row in summary["trials"])


def test_a_sweep_leaves_a_run_per_trial_with_what_varies_and_what_it_is_chosen_by(
    run_sweep: Sweep, train_here: list[str], book: Path
) -> None:
    summary = run_sweep(3, RATES, SIZES)
    (parent,) = runs("sweep")
    trials = runs("trial")
    assert parent.info.run_id == summary["parent_run_id"]
    assert [run.info.status for run in (parent, *trials)] == ["FINISHED"] * 4
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert [set(run.data.params) for run in trials] == [{"cell", "train.learning_rate", "model.hidden_size"}] * 3
    perplexities = [run.data.metrics["best/valid_perplexity"] for run in trials]
    assert summary["counts"] == {"complete": 3, "pruned": 0, "failed": 0}
    assert [row["valid_perplexity"] for row in summary["trials"]] == sorted(perplexities)
    assert summary["best"]["valid_perplexity"] == min(perplexities) == parent.data.metrics["best/valid_perplexity"]
    for trial, training in zip(trials, runs("cell"), strict=True):
        assert training.data.tags["mlflow.parentRunId"] == trial.info.run_id
        assert trial.data.tags["rnnlm.training_run"] == training.info.run_id
        curves = [tracked_runs.curve(run.info.run_id, "valid/perplexity") for run in (trial, training)]
        assert curves[0] == curves[1]
        assert [step for step, _ in curves[0]] == [1, 2]
        assert not [name for name in training.data.metrics if name.startswith("test/")]
    assert summary["best"]["command"] in parent.data.tags["mlflow.note.content"]

    train_here.clear()  # the best is trained already
    again = language_model("smoke", str(book), [summary["best"]["cell"]], {**FIXED, **summary["best"]["settings"]})
    assert train_here == []
    assert again["cells"]["rnn"]["run_id"] == summary["best"]["training_run_id"]
    assert again["cells"]["rnn"]["valid_perplexity"] == summary["best"]["valid_perplexity"]


def test_the_same_sweep_again_trains_nothing_and_a_longer_one_goes_on(
    run_sweep: Sweep, train_here: list[str], heard: list[News]
) -> None:
    first = run_sweep(2)
    assert run_sweep(2) == first
    assert train_here == ["rnn"] * 2
    longer = run_sweep(3)
    assert train_here == ["rnn"] * 3
    assert settings(longer)[:2] == settings(first)
    assert longer["parent_run_id"] == first["parent_run_id"]
    assert len(runs("sweep")) == 1
    assert len(runs("trial")) == 3
    steps = [step for step, _ in tracked_runs.curve(longer["parent_run_id"], "best/valid_perplexity")]
    assert steps == [2, 3]
    assert [news.cell for news in heard if news.stage == "trial"] == ["rnn #0", "rnn #1", "rnn #2"]


def test_equal_trials_are_trained_once_and_have_a_run_each(run_sweep: Sweep, train_here: list[str]) -> None:
    summary = run_sweep(4, SIZES)
    assert len(train_here) == 2
    assert len(summary["trials"]) == len(runs("trial")) == 4
    by_size: dict[int, set[float]] = {4: set(), 8: set()}
    for run in runs("trial"):
        assert run.info.status == "FINISHED"
        assert [step for step, _ in tracked_runs.curve(run.info.run_id, "valid/perplexity")] == [1, 2]
        by_size[int(run.data.params["model.hidden_size"])].add(run.data.metrics["best/valid_perplexity"])
    assert [len(found) for found in by_size.values()] == [1, 1]


def test_equal_trials_side_by_side_are_trained_once(
    run_sweep: Sweep, train_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_flow, "number_of_places", lambda *_: 2)
    summary = run_sweep(6, SIZES)
    assert len(train_here) == 2
    assert summary["counts"] == {"complete": 6, "pruned": 0, "failed": 0}
    assert [run.info.status for run in runs("trial")] == ["FINISHED"] * 6


def test_a_training_from_before_is_found_and_stays_where_it_was(
    run_sweep: Sweep, train_here: list[str], book: Path
) -> None:
    past = language_model("smoke", str(book), ["rnn"], {**FIXED, "model.hidden_size": 8})
    summary = run_sweep(1, RATES, model__hidden_size=8)
    assert train_here == ["rnn"]
    (trial,) = runs("trial")
    assert trial.data.tags["rnnlm.training_run"] == past["cells"]["rnn"]["run_id"]
    assert summary["best"]["valid_perplexity"] == past["cells"]["rnn"]["valid_perplexity"]
    (training,) = runs("cell")
    assert training.data.tags["mlflow.parentRunId"] == past["parent_run_id"]


def test_a_pruned_training_leaves_its_curve_and_nothing_else(
    run_sweep: Sweep, train_here: list[str], prune_from: Callable[[int], None], book: Path, home: Path
) -> None:
    prune_from(1)
    summary = run_sweep(3, RATES, train__epochs=4)
    assert summary["counts"] == {"complete": 1, "pruned": 2, "failed": 0}
    assert train_here == ["rnn"] * 3
    for trial in runs("trial")[1:]:
        assert trial.info.status == "FINISHED"
        assert trial.data.tags["rnnlm.state"] == "pruned"
        assert trial.data.tags["rnnlm.pruned_at_epoch"] == "1"
        training = client().get_run(trial.data.tags["rnnlm.training_run"])
        assert training.info.status == "KILLED"
        assert training.data.tags["rnnlm.pruned_at_epoch"] == "1"
        for run in (trial, training):
            assert [step for step, _ in tracked_runs.curve(run.info.run_id, "valid/perplexity")] == [1]
    assert pending(workspace.store()) == []
    assert len(list((home / "artifacts" / "results").glob("train-*"))) == 1  # of the complete one
    (pruned, _) = (row for row in summary["trials"] if row["state"] == "pruned")
    again = language_model("smoke", str(book), ["rnn"], {**FIXED, "train.epochs": 4, **pruned["settings"]})
    assert again["cells"]["rnn"]["run_id"] == pruned["training_run_id"]
    assert [step for step, _ in tracked_runs.curve(pruned["training_run_id"], "train/loss")] == [1, 2, 3, 4]
    run = client().get_run(pruned["training_run_id"])
    assert run.info.status == "FINISHED"
    assert "rnnlm.pruned_at_epoch" not in run.data.tags


def test_equal_trials_are_pruned_together(
    run_sweep: Sweep, train_here: list[str], prune_from: Callable[[int], None]
) -> None:
    prune_from(0)
    summary = run_sweep(4, SIZES, train__epochs=4)
    assert summary["counts"] == {"complete": 0, "pruned": 4, "failed": 0}
    assert summary["best"] is None
    assert len(train_here) == 2
    assert {row["epochs"] for row in summary["trials"]} == {1}


def test_a_trial_that_diverges_counts_and_says_why(run_sweep: Sweep, home: Path) -> None:
    summary = run_sweep(3, "train.learning_rate=0.01,1000000", train__optimizer="sgd", train__clip_norm=0)
    states = {row["settings"]["train.learning_rate"]: row for row in summary["trials"]}
    assert len(summary["trials"]) == 3
    assert states[0.01]["state"] == "complete"
    failed = states[1e6]
    assert failed["state"] == "failed"
    assert "training diverged in epoch" in failed["reason"]
    run = client().get_run(failed["run_id"])
    assert run.info.status == "FAILED"
    assert "training diverged" in run.data.tags["rnnlm.error"]
    assert pending(workspace.store()) == []


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_as_if_it_never_was(
    run_sweep: Sweep, train_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_sweep(4, RATES, SIZES, name="whole")
    inner = train_stage.train_in_child

    def run_out_of_space(job: Job, *rest: Any) -> Any:
        if len(train_here) == 2:
            raise ResourceError("no space left", "somewhere", "free some space")
        return inner(job, *rest)

    for path in (workspace.artifacts() / "results").glob("train-*"):  # what the whole sweep has trained
        path.unlink()
    train_here.clear()
    with monkeypatch.context() as patch:
        patch.setattr(train_stage, "train_in_child", run_out_of_space)
        with pytest.raises(ResourceError, match="no space left"):
            run_sweep(4, RATES, SIZES, name="stopped")
    stopped = [run for run in runs("sweep") if run.data.tags["rnnlm.sweep"] == "stopped"]
    assert [run.info.status for run in stopped] == ["FAILED"]
    assert {run.info.status for run in runs("trial")} == {"FINISHED", "KILLED"}
    summary = run_sweep(4, RATES, SIZES, name="stopped")
    assert settings(summary) == settings(whole)
    assert [row["valid_perplexity"] for row in summary["trials"]] == [r["valid_perplexity"] for r in whole["trials"]]
    assert {run.info.status for run in runs("trial") + runs("sweep")} == {"FINISHED"}
    assert len(runs("trial")) == 8


def test_a_sweep_that_is_stopped_just_after_a_trial_was_told_leaves_that_trial_finished(
    run_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = studies.Study.tell

    def tell_and_be_interrupted(*arguments: Any) -> None:
        tell(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(studies.Study, "tell", tell_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(2)
    assert [run.info.status for run in runs("trial")] == ["FINISHED"]
    run_sweep(2)
    assert [run.info.status for run in runs("trial")] == ["FINISHED"] * 2


def test_another_definition_under_the_same_name_is_refused(run_sweep: Sweep) -> None:
    run_sweep(1, RATES, name="mine")
    told = (
        r"sweep mine was begun otherwise: .*train\.epochs was 2, is 3; search train\.learning_rate was .*: give another"
    )
    with pytest.raises(ConfigError, match=told):
        run_sweep(1, SIZES, name="mine", train__epochs=3)
    assert run_sweep(1, RATES, name="mine")["counts"]["complete"] == 1


def test_several_cells_are_a_choice(run_sweep: Sweep) -> None:
    summary = run_sweep(3, SIZES, cells=("rnn", "gru"))
    assert summary["search"]["cell"] == "rnn,gru"
    assert {row["cell"] for row in summary["trials"]} == {"rnn", "gru"}


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rnnlm", *map(str, arguments)])
    with mock.patch.dict("os.environ"), pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_the_command_prints_the_best_and_says_when_there_is_nothing_to_do(
    home: Path, book: Path, train_here: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = {key: value for key, value in FIXED.items() if not key.startswith("generate")}
    sets = [word for key, value in fixed.items() for word in ("--set", f"{key}={value}")]
    arguments = [
        "sweep",
        "--preset",
        "smoke",
        "--corpus",
        book,
        "--cells",
        "rnn",
        *sets,
        "--search",
        SIZES,
        "--trials",
        2,
    ]
    assert command(monkeypatch, *arguments, "--json", home / "one.json") == 0
    first = capsys.readouterr()
    assert "trial rnn #0   complete, valid perplexity" in first.err
    written = json.loads((home / "one.json").read_text())
    assert written["best"]["command"] in first.out
    assert written["best"]["preset_function"] in first.out
    assert math.isclose(written["trials"][0]["valid_perplexity"], written["best"]["valid_perplexity"])

    train_here.clear()
    with mock.patch("flows.server.prefect_api", side_effect=AssertionError("nothing has to be started")):
        assert command(monkeypatch, *arguments, "--json", home / "two.json") == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "nothing to do: all trials are done" in second.err
    assert json.loads((home / "two.json").read_text()) == written
    assert train_here == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--search", "train.lr=1,2"], "error: unknown config key: train.lr: "),
        (
            ["--search", "train.epochs"],
            "error: `--search` takes KEY=SPACE: train.epochs: KEY=64,128,256 (one of these)",
        ),
        (["--preset", "lyrics"], "error: a sweep chooses by the validation split, and there is none"),
        (["--trials", "0"], "error: Invalid value for '--trials'"),
        (["--name", "a b"], "error: `--name` must be up to 100 letters"),
        (["--serch", "a=1"], "error: No such option: --serch: did you mean --search?"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("RNNLM_HOME", str(tmp_path / "home"))
    assert command(monkeypatch, "sweep", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(told)
    assert not (tmp_path / "home").exists()
