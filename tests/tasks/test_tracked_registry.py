"""The registry: one version per logged model, a champion that only a better one replaces, and a trace of each move."""

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rnnlm_core.champion import Verdict
from rnnlm_core.errors import DataError, UsageError
from tasks import tracked_champion, tracked_registry, tracking
from tasks.tracked_champion import enrol, promote, register, roll_back
from tasks.tracked_registry import Version, champions, model_of, versions
from tasks.tracking import FlowRun
from tasks.tracking_database import client, experiment_id

NAME = "rnnlm-text"
SETTINGS = {"corpus.split": "90/5/5", "tokenizer.level": "char", "model.hidden_size": "8"}
Trained = Callable[..., str]


@pytest.fixture
def trained(home: Path) -> Trained:
    """Return a function that leaves the run of a training with these figures and a logged model; returns its id."""
    keys = itertools.count()

    def train(valid: float | None, test: float = 9.0, corpus_sha256: str = "a" * 64, cell: str = "gru",
              **settings: str) -> str:  # fmt: skip
        changed = {key.replace("__", "."): value for key, value in settings.items()}
        flow = FlowRun("parent", "quickstart", "text", tuple((SETTINGS | changed).items()), "flow-run")
        tags = {"rnnlm.corpus_sha256": corpus_sha256}
        with tracking.child_run(flow, cell, f"key-{next(keys)}", tags) as run_id:
            figures = {"best/train_perplexity": 5.0, "test/perplexity": test}
            tracking.log_metrics(run_id, figures | ({} if valid is None else {"best/valid_perplexity": valid}))
            model = client().create_logged_model(experiment_id(), name="model", source_run_id=run_id)
            tracking.set_tags(run_id, {"rnnlm.model_uri": model.model_uri, "rnnlm.model_sha256": "f" * 64})
        return run_id

    return train


def enter(run_id: str) -> Version:
    return register(run_id, "quickstart", "text")


def told(version: Version) -> dict[str, str]:
    """Return what MLflow itself has as the tags of a version."""
    return dict(client().get_model_version(version.name, str(version.number)).tags)


def moves() -> list[str]:
    """Return the moves that the registered model tells of, without their dates."""
    tags = client().get_registered_model(NAME).tags
    texts = [tags[key] for key in sorted(tags) if key.startswith("rnnlm.move.")]
    return [" ".join(word for word in text.split() if not word.startswith("20")) for text in texts]


def test_a_better_model_becomes_champion_and_a_worse_one_does_not_and_both_leave_a_trace(trained: Trained) -> None:
    first = enter(trained(7.21))
    assert (first.number, first.champion, first.reason) == (1, True, "the first with a validation perplexity (7.21)")
    better = enter(trained(6.9, cell="lstm"))
    assert (better.number, better.champion) == (2, True)
    assert better.reason == "valid perplexity 6.90 is below 7.21 (version 1)"
    worse = enter(trained(7.0))
    assert (worse.number, worse.champion) == (3, False)
    assert worse.reason == "valid perplexity 7.00 is not below champion's 6.90 (version 2)"
    assert told(worse)["rnnlm.not_promoted"] == worse.reason
    assert int(client().get_registered_model(NAME).aliases["champion"]) == 2
    assert told(better)["rnnlm.previous_champion"] == "version 1"
    assert told(better)["rnnlm.promoted_at"].endswith("Z")
    assert told(first)["rnnlm.no_longer_champion"].startswith("replaced by version 2 on ")
    described = (
        "lstm, hidden size 8: perplexity 6.90 on validation, 9.00 on test, 5.00 on training (preset quickstart, "
    )
    assert client().get_model_version(NAME, "2").description.startswith(described)
    assert moves() == [
        "version 1, promoted the first with a validation perplexity (7.21)",
        "version 2, promoted valid perplexity 6.90 is below 7.21 (version 1)",
    ]
    assert champions() == {NAME: better}
    assert [one.number for one in versions(NAME)] == [3, 2, 1]


def test_without_a_finite_validation_perplexity_a_version_is_kept_and_is_no_candidate(trained: Trained) -> None:
    for valid in (None, math.inf, math.nan):
        version = enter(trained(valid))
        reason = "no validation perplexity: no candidate" if valid is None else f"valid perplexity {valid} is no figure"
        assert told(version)["rnnlm.not_promoted"].startswith(reason)
    assert champions() == {}
    first = enter(trained(7.0))
    assert (first.number, first.champion) == (4, True)


def test_what_was_measured_on_something_else_is_not_compared(trained: Trained) -> None:
    enter(trained(7.0))
    for settings, reason in [
        ({}, "on another corpus (bbbbbbbbbbbb) than champion's (aaaaaaaaaaaa, version 1)"),
        ({"tokenizer__level": "word"}, "with another tokenizer (word) than champion's (char, version 1)"),
        (
            {"tokenizer__level": "bpe", "tokenizer__bpe_size": "512", "tokenizer__min_freq": "3"},
            "with another tokenizer (bpe 512, min_freq 3) than champion's (char, version 1)",
        ),
        ({"corpus__split": "80/10/10"}, "on another split (80/10/10) than champion's (90/5/5, version 1)"),
    ]:
        other = enter(trained(2.0, corpus_sha256="b" * 64, **settings))
        assert not other.champion
        assert told(other)["rnnlm.not_promoted"] == f"measured {reason}: not comparable"


def test_a_model_is_registered_once_and_its_verdict_stays(trained: Trained) -> None:
    worse, better = trained(7.0), trained(6.0)
    assert enter(worse) == enter(worse)
    enter(better)
    assert enter(better).number == 2
    again = enter(worse)
    assert (again.number, again.champion) == (1, False)
    assert again.reason.startswith("replaced by version 2 on ")
    assert len(versions(NAME)) == len(moves()) == 2


def test_a_model_trained_on_a_text_under_two_names_is_a_version_of_both(trained: Trained) -> None:
    run_id = trained(7.0)
    enter(run_id)
    assert register(run_id, "quickstart", "Other text.md").name == "rnnlm-other-text.md"
    assert {name: one.run_id for name, one in champions().items()} == {NAME: run_id, "rnnlm-other-text.md": run_id}
    model = client().get_logged_model(champions()[NAME].model_uri.removeprefix("models:/"))
    listed = json.loads(model.tags["mlflow.modelVersions"])
    assert [(one["name"], int(one["version"])) for one in listed] == [(NAME, 1), ("rnnlm-other-text.md", 1)]


def test_the_smoke_preset_on_its_own_text_is_no_measure_for_others(trained: Trained) -> None:
    run_id = trained(7.0)
    assert register(run_id, "smoke", "python-docs").name == "rnnlm-smoke"
    assert register(run_id, "smoke", "text").name == "rnnlm-text"
    assert register(run_id, "quickstart", "python-docs").name == "rnnlm-python-docs"


def test_the_place_is_rolled_back_from_holder_to_holder_and_every_move_is_told(trained: Trained) -> None:
    for valid in (8.0, 7.0, 9.0, 6.0):
        enter(trained(valid))
    before, now = roll_back(NAME)
    assert (before.number, now.number) == (4, 2)
    assert now.champion
    assert before.reason.startswith("rolled back to version 2 on ")
    assert roll_back(NAME)[1].number == 1
    with pytest.raises(UsageError, match=r"nothing to roll back to: rnnlm-text \(champion: version 1\)"):
        roll_back(NAME)
    # What was rolled back stays so when its run is cached; a new one has to beat the champion there is now.
    assert not enter(versions(NAME)[0].run_id).champion
    assert enter(trained(7.5)).reason == "valid perplexity 7.50 is below 8.00 (version 1)"
    assert roll_back(NAME)[1].number == 1
    assert moves() == [
        "version 1, promoted the first with a validation perplexity (8.00)",
        "version 2, promoted valid perplexity 7.00 is below 8.00 (version 1)",
        "version 4, promoted valid perplexity 6.00 is below 7.00 (version 2)",
        "version 2, rolled back from version 4",
        "version 1, rolled back from version 2",
        "version 5, promoted valid perplexity 7.50 is below 8.00 (version 1)",
        "version 1, rolled back from version 5",
    ]


def test_a_deleted_version_is_passed_over(trained: Trained) -> None:
    for valid in (8.0, 7.0, 6.0):
        enter(trained(valid))
    client().delete_model_version(NAME, "2")
    assert roll_back(NAME)[1].number == 1
    client().delete_model_version(NAME, "1")
    assert champions() == {}
    with pytest.raises(UsageError, match=r"nothing to roll back to: rnnlm-text \(no champion\)"):
        roll_back(NAME)
    assert enter(trained(20.0)).champion


def test_a_promotion_follows_the_rule_and_force_goes_against_it_with_a_note(trained: Trained) -> None:
    enter(trained(7.0))
    unmeasured = enter(trained(None))
    assert promote(NAME, unmeasured.number) == Verdict(False, "no validation perplexity: no candidate")
    assert champions()[NAME].number == 1
    promote(NAME, unmeasured.number, force=True)
    assert champions()[NAME].number == 2
    assert "rnnlm.not_promoted" not in told(unmeasured)
    assert moves()[-1] == "version 2, forced against the rule: no validation perplexity: no candidate"
    assert promote(NAME, 2) == Verdict(True, "it is the champion already")
    refused = enter(trained(1.0))
    assert refused.reason == "champion (version 2) has no validation perplexity: not comparable"
    assert roll_back(NAME)[1].number == 1
    assert promote(NAME, refused.number).wins  # the rule, applied again
    assert champions()[NAME].number == 3


def test_any_run_with_a_model_can_be_made_a_version_and_judged_later(trained: Trained) -> None:
    enter(trained(7.0))
    other = enrol(trained(6.0))
    assert (other.name, other.number, other.judged) == (NAME, 2, False)
    assert champions()[NAME].number == 1
    assert promote(NAME, 2).wins


def test_a_run_without_model_is_no_version(trained: Trained) -> None:
    run_id = trained(7.0)
    client().delete_tag(run_id, "rnnlm.model_uri")
    with pytest.raises(DataError, match=r"this run has no model: .*FINISHED\): run the training again"):
        enrol(run_id)
    assert versions() == []


def test_unknown_names_and_versions_list_the_known_ones(trained: Trained) -> None:
    with pytest.raises(DataError, match="no such registered model: text: known: none yet, train with `rnnlm run`"):
        model_of("text")
    enter(trained(7.0))
    assert model_of("/somewhere/text") == model_of(NAME) == NAME
    for ask in (lambda: promote("rnnlm-texd", 1), lambda: roll_back("rnnlm-texd"), lambda: model_of("rnnlm-texd")):
        with pytest.raises(DataError, match="no such registered model: rnnlm-texd: known: rnnlm-text"):
            ask()
    with pytest.raises(DataError, match="no such version: rnnlm-text/9: `rnnlm models` lists the versions"):
        promote(NAME, 9)


def test_an_alias_that_was_moved_in_mlflow_is_the_champion_and_is_noted(trained: Trained) -> None:
    for valid in (8.0, 7.0, 9.0):
        enter(trained(valid))
    client().set_registered_model_alias(NAME, "champion", "3")
    assert enter(trained(8.5)).reason == "valid perplexity 8.50 is below 9.00 (version 3)"
    assert moves()[2:] == [
        "version 3, found moved by hand in MLflow, or by a command that was killed",
        "version 4, promoted valid perplexity 8.50 is below 9.00 (version 3)",
    ]
    assert [roll_back(NAME)[1].number for _ in range(3)] == [3, 2, 1]


def test_a_champion_without_files_is_a_fault_and_a_former_one_is_not(trained: Trained, home: Path) -> None:
    (folder := home / "artifacts" / "mlflow").mkdir(parents=True)
    for valid in (7.0, 6.0):
        enter(trained(valid))
    (fault,) = tracked_registry.faults()
    assert fault.startswith(f"the champion of {NAME}, version 2, has lost its files: {folder}/models/m-")
    assert fault.endswith(f": restore them, or `rnnlm promote --rollback {NAME}`")
    Path(fault.split(": ")[1]).mkdir(parents=True)
    assert list(tracked_registry.faults()) == []


class Killed(BaseException):
    """The process is gone: nothing after it is done."""


@pytest.mark.parametrize("point", ["version registered", "champion moved"])
def test_what_a_kill_leaves_is_mended_by_the_next_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def die(name: str) -> None:
        if name == point:
            raise Killed

    enter(trained(7.0))
    cut_short = trained(6.0)
    with monkeypatch.context() as patch:
        for module in (tracked_registry, tracked_champion):
            patch.setattr(module, "crashpoint", die)
        with pytest.raises(Killed):
            enter(cut_short)
    assert not version_of(2).judged
    # The same run again, or any other: the version without verdict gets it first.
    other = enter(trained(6.5))
    assert champions()[NAME].number == 2
    assert other.reason == "valid perplexity 6.50 is not below champion's 6.00 (version 2)"
    mended = enter(cut_short)
    assert (mended.number, mended.champion) == (2, True)
    assert mended.reason == "valid perplexity 6.00 is below 7.00 (version 1)"
    assert told(mended)["rnnlm.previous_champion"] == "version 1"
    assert moves() == [
        "version 1, promoted the first with a validation perplexity (7.00)",
        "version 2, promoted valid perplexity 6.00 is below 7.00 (version 1)",
    ]
    assert roll_back(NAME)[1].number == 1


def version_of(number: int) -> Version:
    return next(one for one in versions(NAME) if one.number == number)


def test_threads_that_decide_at_once_agree_and_register_nothing_twice(trained: Trained) -> None:
    figures = [9.0, 6.0, 8.0, 7.0]
    runs = [trained(valid) for valid in figures] * 2
    with ThreadPoolExecutor(len(runs)) as threads:
        numbers = [one.number for one in threads.map(enter, runs)]
    assert numbers[:4] == numbers[4:]
    assert sorted(numbers[:4]) == [1, 2, 3, 4]
    assert champions()[NAME].valid_perplexity == min(figures)
    assert all(one.judged for one in versions(NAME))
    taken = [int(text.split(",")[0].removeprefix("version ")) for text in moves()]
    held = [figures[numbers.index(number)] for number in taken]
    assert held == sorted(held, reverse=True)


REGISTER = "import sys; from tasks.tracked_champion import register; register(sys.argv[1], 'quickstart', 'text')"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_that_decide_at_once_agree_and_register_nothing_twice(trained: Trained, home: Path) -> None:
    runs = [trained(9.0), trained(6.0), trained(9.0)]
    runs.append(runs[1])
    root = Path(tracked_registry.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    processes = [subprocess.Popen([sys.executable, "-c", REGISTER, run], env=environment) for run in runs]
    assert [process.wait() for process in processes] == [0] * 4
    assert sorted(one.number for one in versions(NAME)) == [1, 2, 3]
    assert champions()[NAME].valid_perplexity == 6.0
