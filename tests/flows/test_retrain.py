"""The retraining and the watching flow: who becomes the champion, what is told, and when nothing is done at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import retrain as retrain_module
from flows.language_model import language_model
from flows.retrain import retrain
from flows.summary import PartlyDoneError
from flows.watch_corpus import watch_corpus
from rnnlm_core.errors import DataError, ResourceError, UsageError
from rnnlm_core.store import Handle
from rnnlm_core.training_job import Job
from tasks import tracked_registry, tracked_runs, workspace
from tasks import train as train_stage

from .conftest import TINY, invented_text


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """What was raised: (event, resource, payload); that it arrives is shown with a real server in e2e."""
    raised: list[tuple[str, str, dict[str, Any]]] = []

    def note(event: str, resource: dict[str, str], payload: dict[str, Any]) -> None:
        raised.append((event, resource["prefect.resource.id"], payload))

    monkeypatch.setattr(retrain_module, "emit_event", note)
    return raised


@pytest.fixture
def again(home: Path, text: Path, train_here: list[str]) -> Callable[..., dict[str, Any]]:
    """Return a function that retrains this test's text with the tiny settings."""

    def run(**changes: Any) -> dict[str, Any]:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return retrain("smoke", str(text), ["rnn"], {**TINY, **dotted})

    return run


def test_the_first_is_promoted_and_the_same_again_changes_nothing(
    again: Callable[..., dict[str, Any]], events: list[tuple[str, str, dict[str, Any]]], train_here: list[str]
) -> None:
    first, second = again(), again()
    assert (first["verdict"], second["verdict"]) == ("promoted", "unchanged")
    assert first["version"] == second["version"] == 1
    assert train_here == ["rnn"]
    assert [event for event, _, _ in events] == ["rnnlm.retraining.promoted", "rnnlm.retraining.unchanged"]
    assert {resource for _, resource, _ in events} == {"rnnlm.model.rnnlm-text.txt"}
    run = tracked_runs.find_model_run(first["run"])
    assert run.tags["rnnlm.verdict"] == "promoted"


def test_a_better_one_takes_the_place_and_a_much_worse_one_is_a_regression(
    again: Callable[..., dict[str, Any]], events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    first = again()
    better = again(train__epochs=6)
    worse = again(train__epochs=1)
    assert (better["verdict"], better["champion"]) == ("promoted", first["version"])
    assert better["perplexity"] < better["champion_perplexity"] == first["perplexity"]
    assert (worse["verdict"], worse["champion"]) == ("regression", better["version"])
    assert "is not below champion's" in worse["reason"]
    assert tracked_registry.champions()["rnnlm-text.txt"].number == better["version"]
    assert events[-1][0] == "rnnlm.retraining.regression"
    assert events[-1][2]["perplexity"] == worse["perplexity"]


@pytest.mark.slow
def test_within_the_tolerance_the_champion_is_kept_without_alarm(
    home: Path, text: Path, train_here: list[str], events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    retrain("smoke", str(text), ["rnn"], TINY | {"train.epochs": 6})
    kept = retrain("smoke", str(text), ["rnn"], TINY | {"train.epochs": 1}, tolerance=10)
    assert kept["verdict"] == "kept"
    assert events[-1][0] == "rnnlm.retraining.kept"


def test_on_a_changed_text_the_champion_is_measured_there(
    again: Callable[..., dict[str, Any]], text: Path, train_here: list[str]
) -> None:
    first = again(train__epochs=1)
    text.write_text(text.read_text(encoding="utf-8") + " " + invented_text(2), encoding="utf-8")
    second = again(train__epochs=6)
    assert second["verdict"] == "promoted"
    assert second["champion"] == first["version"]
    assert "(version 1, measured on this corpus)" in second["reason"]
    assert second["champion_perplexity"] != first["perplexity"]
    assert second["perplexity"] < second["champion_perplexity"]


@pytest.mark.slow
def test_a_worse_one_on_a_changed_text_does_not_take_the_place(
    again: Callable[..., dict[str, Any]], text: Path
) -> None:
    again(train__epochs=6)
    text.write_text(text.read_text(encoding="utf-8") + " " + invented_text(2), encoding="utf-8")
    worse = again(train__epochs=1)
    assert worse["verdict"] == "regression"
    assert "measured on this corpus" in worse["reason"]
    assert tracked_registry.champions()["rnnlm-text.txt"].number == 1


@pytest.mark.slow
def test_a_champion_whose_files_are_gone_is_not_compared(again: Callable[..., dict[str, Any]], text: Path) -> None:
    again(train__epochs=1)
    champion = tracked_runs.find_model_run(tracked_registry.champions()["rnnlm-text.txt"].run_id)
    workspace.store().remove(Handle("model", champion.tags["rnnlm.model_sha256"]))
    text.write_text(invented_text(2), encoding="utf-8")
    kept = again(train__epochs=6)
    assert kept["verdict"] == "kept"
    assert "its model is not here" in kept["reason"]
    assert tracked_registry.champions()["rnnlm-text.txt"].number == 1


def test_a_former_champion_is_told_why_it_is_none_now(
    again: Callable[..., dict[str, Any]], home: Path, text: Path, train_here: list[str]
) -> None:
    for epochs in (1, 6):  # not by the flow that tells verdicts
        language_model("smoke", str(text), ["rnn"], {**TINY, "train.epochs": epochs})
    outcome = again(train__epochs=1)
    assert outcome["verdict"] == "regression"
    assert outcome["champion"] == 2
    assert "is not below champion's" in outcome["reason"]


@pytest.mark.slow
def test_what_had_no_time_to_be_told_is_news_for_the_next_one(
    again: Callable[..., dict[str, Any]],
    events: list[tuple[str, str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again(train__epochs=6)
    with monkeypatch.context() as broken:
        broken.setattr(retrain_module, "_tell", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            again(train__epochs=1)
    assert again(train__epochs=1)["verdict"] == "regression"
    assert again(train__epochs=1)["verdict"] == "unchanged"
    assert [event.rpartition(".")[2] for event, _, _ in events] == ["promoted", "regression", "unchanged"]


@pytest.mark.slow
def test_a_champion_that_reads_texts_otherwise_is_not_compared(
    again: Callable[..., dict[str, Any]], text: Path
) -> None:
    again(train__epochs=1)
    kept = again(train__epochs=6, corpus__normalizer="letters")
    assert kept["verdict"] == "kept"
    assert "it reads texts that are normalised otherwise (none)" in kept["reason"]


def test_without_validation_text_nothing_is_trained(
    again: Callable[..., dict[str, Any]], train_here: list[str]
) -> None:
    with pytest.raises(UsageError, match=r"`corpus.split` must hold some: 100/0/0"):
        again(corpus__split="100/0/0", evaluate__split="train")
    assert train_here == []


@pytest.mark.slow
def test_a_cell_that_fails_is_a_failure_and_no_regression(
    home: Path,
    text: Path,
    train_here: list[str],
    events: list[tuple[str, str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retrain("smoke", str(text), ["gru"], TINY | {"train.epochs": 6})
    honest = train_stage.train_in_child

    def train(job: Job, *others: Any) -> dict[str, Any]:
        if job.cell == "gru":
            raise ResourceError("the memory was too small", "gru")
        return honest(job, *others)

    monkeypatch.setattr(train_stage, "train_in_child", train)
    with pytest.raises(PartlyDoneError):
        retrain("smoke", str(text), ["rnn", "gru"], TINY | {"train.epochs": 1})
    assert [event.rpartition(".")[2] for event, _, _ in events] == ["promoted", "failed"]


def test_a_watched_text_that_is_gone_is_told(
    home: Path, tmp_path: Path, events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    with pytest.raises(DataError, match=r"gone\.txt"):
        watch_corpus(str(tmp_path / "gone.txt"), "smoke", ["rnn"], TINY)
    assert [(event, resource) for event, resource, _ in events] == [
        ("rnnlm.retraining.failed", "rnnlm.model.rnnlm-gone.txt")
    ]


def test_a_failure_is_told_and_raised(
    home: Path, tmp_path: Path, events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        retrain("smoke", str(empty), ["rnn"], TINY)
    assert [event for event, _, _ in events] == ["rnnlm.retraining.failed"]
    assert "the file is empty" in events[0][2]["reason"]


def test_what_is_watched_is_trained_only_when_it_has_changed(home: Path, text: Path, train_here: list[str]) -> None:
    def watch() -> dict[str, Any]:
        return watch_corpus(str(text), "smoke", ["rnn"], TINY)

    first = watch()
    runs = len(tracked_runs.tracked_cells())
    second = watch()
    assert (first["verdict"], second["verdict"]) == ("promoted", "unchanged")
    assert "nothing is trained" in second["reason"]
    assert len(tracked_runs.tracked_cells()) == runs
    before = text.read_text(encoding="utf-8")
    text.write_text(invented_text(2), encoding="utf-8")
    assert watch()["run"] != first["run"]
    assert train_here == ["rnn", "rnn"]
    text.write_text(before, encoding="utf-8")  # back again: another text than last time, though it was trained once
    assert "run" in watch()
    assert train_here == ["rnn", "rnn"]
    assert "run" not in watch()


@pytest.mark.slow
def test_other_settings_on_a_watched_text_are_another_watch(home: Path, text: Path, train_here: list[str]) -> None:
    watch_corpus(str(text), "smoke", ["rnn"], TINY)
    assert "run" in watch_corpus(str(text), "smoke", ["rnn"], TINY | {"train.epochs": 3})


def test_the_state_of_an_unchanged_watch_says_so(home: Path, text: Path, train_here: list[str]) -> None:
    watch_corpus(str(text), "smoke", ["rnn"], TINY)
    state = watch_corpus(str(text), "smoke", ["rnn"], TINY, return_state=True)
    assert (state.name, state.is_completed()) == ("Unchanged", True)
    assert "holds the text of the last run" in state.message
