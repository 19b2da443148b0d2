"""The database of sweeps: made as a whole, believed only when it is one, and what a trial remembers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rnnlm_core.errors import IntegrityError
from rnnlm_core.outcomes import Epoch
from rnnlm_core.search import make_plan
from tasks import health, studies, workspace
from tasks.database_file import remove_drafts
from tasks.studies import COMPLETE, FAILED, Outcome, find_study, open_study

PLAN = make_plan("smoke", cells=["gru"], search=["train.learning_rate=log:0.001..0.1", "model.hidden_size=8,16"])


def epoch(number: int, loss: float) -> Epoch:
    return Epoch(number, 4, 1.0, loss, 0.1, 1.0, 1.0, 1.0)


def test_a_question_makes_nothing(bare_home: Path) -> None:
    assert find_study(PLAN) is None
    assert not workspace.sweeps_database().exists()


def test_the_first_trial_is_the_preset_and_the_next_depend_on_the_history_alone(bare_home: Path) -> None:
    study = open_study(make_plan("smoke", cells=["gru"], search=["model.hidden_size=64,128"]))
    assert study.ask().values == {"model.hidden_size": 64}

    def history(name: str, again: bool) -> list[object]:
        plan = make_plan("smoke", cells=["gru"], search=["model.dropout=0..0.5"], name=name)
        values = []
        for number in range(13):  # beyond those at random
            trial = (open_study(plan) if again else study_of[name]).ask()
            values.append(trial.values)
            (open_study(plan) if again else study_of[name]).tell(
                trial, Outcome(COMPLETE, {1: 10.0 + trial.values["model.dropout"] * number}), "run"
            )
        return values

    study_of = {"one": open_study(make_plan("smoke", cells=["gru"], search=["model.dropout=0..0.5"], name="one"))}
    assert history("one", again=False) == history("two", again=True)


def test_a_trial_that_was_left_goes_on_with_its_values_and_its_curve(bare_home: Path) -> None:
    left = open_study(PLAN).ask()
    assert not left.enough(epoch(1, 2.0))
    study = open_study(PLAN)
    (again,) = study.unfinished()
    assert (again.number, again.values, again.curve) == (left.number, left.values, left.curve)
    for number, loss in [(1, 2.0), (2, 1.0)]:  # a training that resumes tells all of its epochs
        assert not again.enough(epoch(number, loss))
    study.tell(again, Outcome(COMPLETE, again.curve, "training"), "run")
    (done,) = open_study(PLAN).finished()
    assert done.values == left.values
    assert done.outcome.best == (2, pytest.approx(2.718, rel=1e-3))
    assert open_study(PLAN).unfinished() == []


def test_a_trial_worse_than_half_of_the_complete_ones_is_pruned_but_not_at_its_end(bare_home: Path) -> None:
    study = open_study(PLAN)
    for _ in range(studies.FULL_TRIALS):
        trial = study.ask()
        assert not any(trial.enough(epoch(number, 1.0)) for number in (1, 2, 3, 4))
        study.tell(trial, Outcome(COMPLETE, trial.curve), "run")
    worse = study.ask()
    assert [worse.enough(epoch(number, 2.0)) for number in (1, 2)] == [False, True]
    resumed = open_study(PLAN).unfinished()[0]
    assert [resumed.enough(epoch(number, 2.0)) for number in (1, 2)] == [False, True]
    assert not worse.enough(epoch(4, 2.0))


def test_a_failed_trial_counts_with_its_reason(bare_home: Path) -> None:
    study = open_study(PLAN)
    study.tell(study.ask(), Outcome(FAILED, {}, "", "training diverged"), "run")
    (failed,) = open_study(PLAN).finished()
    assert (failed.outcome.state, failed.outcome.reason, failed.outcome.best) == (FAILED, "training diverged", None)
    study.end("parent", 1)
    assert study.closed_run(1) == "parent"
    assert study.closed_run(2) == ""
    study.tell(study.ask(), Outcome(COMPLETE, {1: 3.0}), "run")
    assert study.closed_run(1) == ""  # not all of it is told


def spoil_all(path: Path) -> None:
    path.write_bytes(b"no database at all")


def spoil_a_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 3] = b"\xff" * 8192
    path.write_bytes(content)


def another_database(path: Path) -> None:
    import sqlite3
    from contextlib import closing

    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE other (x)")


@pytest.mark.parametrize("spoil", [spoil_all, spoil_a_page, another_database])
def test_what_is_no_database_of_sweeps_is_refused_and_kept(bare_home: Path, spoil: Callable[[Path], None]) -> None:
    open_study(PLAN)
    path = workspace.sweeps_database()
    spoil(path)
    content = path.read_bytes()
    for ask in (open_study, find_study):
        with pytest.raises(IntegrityError, match=f"{path} .*: restore it, or move it away"):
            ask(PLAN)
    assert path.read_bytes() == content
    if spoil is not another_database:
        assert any(str(path) in line for line in health.verify())


def test_the_draft_of_a_killed_process_is_removed(bare_home: Path) -> None:
    draft = workspace.sweeps_database().with_name(".sweeps.db.1.tmp")
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_bytes(b"half")
    assert remove_drafts(workspace.sweeps_database()) == [draft]
    assert not draft.exists()
