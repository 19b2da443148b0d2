"""A home that was moved works again once MLflow's database knows the new places, and not before."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mlflow
import pytest
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

from flows.commands.generate import load_tracked
from rnnlm_core.config import EvaluateConfig, ModelConfig, TokenizerConfig, TrainConfig
from rnnlm_core.download import resolve
from rnnlm_core.errors import IntegrityError
from tasks import health, relocation, tracked_models, tracked_runs, tracking, workspace
from tasks.corpus import corpus
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.stopping import stop_requested
from tasks.tokenize import tokenize
from tasks.tracking_database import client
from tasks.train import TrackedTraining, train
from tasks.vocabulary import vocabulary


@dataclass(frozen=True)
class Kept:
    """A home that worked at `was` and was moved to `folder`, where nobody may change it; and the run of its cell."""

    was: Path
    folder: Path
    training: TrackedTraining
    sample: list[str]


@pytest.fixture(scope="module")
def kept(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """A home with a cell and everything MLflow keeps of it, a registered version of its model among that."""
    was = tmp_path_factory.mktemp("moved") / "home"
    text = was.parent / "text.txt"
    text.write_text("the time traveller spoke and we listened until the lamps burned low. " * 87)
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        live_in(was, patch)
        stop_requested.clear()  # a flow that failed before, in another test, has left its wish to stop
        was.mkdir()
        shutil.copyfile(empty_database, was / "mlflow.db")
        place_experiment(was, (was / "artifacts" / "mlflow").as_uri())
        workspace.prepare_environment()
        tokens = tokenize.fn(download.fn(resolve(str(text))), "none", 0, "char", "none", 0, None)
        words = vocabulary.fn(tokens, (80, 10, 10), TokenizerConfig())
        ids = corpus.fn(tokens, words, (80, 10, 10), 0)
        config = TrainConfig(epochs=1, batch_size=16, num_steps=16, device="cpu")
        with tracking.parent_run("smoke", "text", {"train.epochs": 1}, "flow-run-1") as flow:
            done = train.fn("gru", ids, words, ModelConfig(hidden_size=8), config, flow)
            evaluate.fn("gru", done, ids, EvaluateConfig())
        uri = client().get_run(done.run_id).data.tags["rnnlm.model_uri"]
        client().create_registered_model("rnnlm-text")
        place = client().get_logged_model(uri.removeprefix("models:/")).artifact_location
        client().create_model_version("rnnlm-text", place, done.run_id)
        sample = tracked_models.predict(uri, ["the "], length=5)
    folder = was.with_name("kept")
    was.rename(folder)
    yield Kept(was, folder, done, sample)
    assert not was.exists()


def place_experiment(home: Path, place: str) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'rnnlm'", [place])
        database.commit()


def live_in(home: Path, patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("RNNLM_", "MLFLOW_", "PREFECT_RESULTS"))]:
        patch.delenv(name)
    patch.setenv("RNNLM_HOME", str(home))


@pytest.fixture
def moved(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of this test: the one that was moved, under a difficult name."""
    new = tmp_path / "another höme #1"
    shutil.copytree(kept.folder, new)
    live_in(new, monkeypatch)
    results = {PREFECT_RESULTS_LOCAL_STORAGE_PATH: new / "artifacts" / "results"}
    with mock.patch.dict(os.environ), temporary_settings(results):
        workspace.prepare_environment()
        yield new


def cells_of(database: Path) -> list[str]:
    """Return every text in a database."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for table in tables for row in connection.execute(f"SELECT * FROM {table}")]  # noqa: S608
    return [value for row in rows for value in row if isinstance(value, str)]


def names_of(home: Path, database: Path) -> list[str]:
    return [value for value in cells_of(database) if str(home) in value or home.as_uri() in value]


def told() -> list[str]:
    found = relocation.find_move()
    assert found is not None
    return list(relocation.relocate(found))


def test_a_moved_home_works_again_when_mlflow_knows_the_new_places(kept: Kept, moved: Path) -> None:
    lines = told()
    copy = next(moved.glob("mlflow.db.before-move-*"))
    assert lines[0] == f"copied {moved / 'mlflow.db'} to {copy}"
    assert [line.partition(": ")[0].removeprefix("told MLflow the new place of ") for line in lines[1:]] == [
        "1 experiment", "2 runs", "1 logged model", "1 model version", "1 source of a model version", "1 dataset",
    ]  # fmt: skip
    assert names_of(kept.was, moved / "mlflow.db") == []
    assert len(names_of(kept.was, copy)) == 7
    assert relocation.find_move() is None

    run = client().get_run(kept.training.run_id)
    assert run.info.artifact_uri.startswith(moved.as_uri())
    assert (
        json.loads(Path(client().download_artifacts(kept.training.run_id, "config.json")).read_text())["cell"] == "gru"
    )
    assert tracked_models.predict(run.data.tags["rnnlm.model_uri"], ["the "], length=5) == kept.sample
    assert mlflow.pyfunc.load_model("models:/rnnlm-text/1").predict(["the "], params={"length": 5}) == kept.sample
    assert {load_tracked(name)[0].about["best_epoch"] for name in (kept.training.run_id, "models:/rnnlm-text/1")} == {1}
    source = mlflow.data.get_source(run.inputs.dataset_inputs[0])
    assert (Path(source.load()) / "train.parquet").is_relative_to(moved)
    assert list(health.verify()) == []
    assert not kept.was.exists()


def test_nothing_is_read_or_written_in_a_moved_home_before(kept: Kept, moved: Path) -> None:
    with pytest.raises(IntegrityError, match=r"the folder was moved: .*mlflow.db still names .*: run `rnnlm doctor`"):
        tracking.set_tags(kept.training.run_id, {"a": "b"})
    with pytest.raises(IntegrityError, match="the folder was moved"):
        tracked_runs.tracked_cells()
    (fault,) = health.verify()
    assert fault.startswith(f"the folder was moved: {moved / 'mlflow.db'} still names {kept.was}")
    assert not kept.was.exists()


def test_the_plan_tells_what_would_be_done_and_changes_nothing(kept: Kept, moved: Path) -> None:
    before = (moved / "mlflow.db").read_bytes()
    found = relocation.find_move()
    assert found == relocation.Move(moved / "mlflow.db", kept.was, moved)
    lines = list(relocation.plan(found))
    assert lines[0].startswith(f"would copy {moved / 'mlflow.db'} to ")
    assert f"would tell MLflow the new place of 2 runs: {kept.was} → {moved}" in lines
    assert (moved / "mlflow.db").read_bytes() == before
    assert sorted(path.name for path in moved.glob("*mlflow.db*")) == ["mlflow.db"]


def test_a_change_that_breaks_off_leaves_the_database_as_it_was(kept: Kept, moved: Path) -> None:
    with closing(sqlite3.connect(moved / "mlflow.db")) as database:
        database.execute("CREATE TRIGGER full BEFORE UPDATE ON datasets BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(sqlite3.IntegrityError, match="disk full"):
        told()
    assert len(names_of(kept.was, moved / "mlflow.db")) == 7
    with closing(sqlite3.connect(moved / "mlflow.db")) as database:
        database.execute("DROP TRIGGER full")
    assert len(told()) == 7


def test_a_copy_of_a_home_that_is_still_there_gets_places_of_its_own(kept: Kept, moved: Path) -> None:
    shutil.copytree(kept.folder, kept.was)
    try:
        assert len(told()) == 7
        assert names_of(kept.was, moved / "mlflow.db") == []
        assert len(names_of(kept.was, kept.was / "mlflow.db")) == 7
    finally:
        shutil.rmtree(kept.was)


def test_a_database_that_was_moved_without_its_artifacts_is_left_alone(kept: Kept, moved: Path) -> None:
    kept.was.mkdir()
    (moved / "artifacts").rename(kept.was / "artifacts")
    try:
        with pytest.raises(IntegrityError, match="only a part of the folder was moved: 3 folders of runs"):
            told()
        assert len(names_of(kept.was, moved / "mlflow.db")) == 7
        (moved / "artifacts").symlink_to(kept.was / "artifacts")  # another name for the same folder
        assert relocation.find_move() is None
    finally:
        shutil.rmtree(kept.was)


def test_a_place_that_somebody_chose_is_no_move(home: Path) -> None:
    for place in ("s3://bucket/runs", "file:///large/disk", "mlflow-artifacts:/1"):
        place_experiment(home, place)
        assert relocation.find_move() is None, place
    assert workspace.home() == home


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/old/home/artifacts/x", "/new/place/artifacts/x"),
        ("file:///old/home", "file:///new/place"),
        ("file:///old/home/a%20b", "file:///new/place/a%20b"),
        ("/old/home2/x", "/old/home2/x"),
        ("file:///old/home2", "file:///old/home2"),
        ("models:/m-1", "models:/m-1"),
        ("s3://old/home/x", "s3://old/home/x"),
        ('{"uri": "/old/home/x", "n": 1}', '{"uri": "/new/place/x", "n": 1}'),
        ('{"uri":"/elsewhere"}', '{"uri":"/elsewhere"}'),
        ("{no json", "{no json"),
        (None, None),
    ],
)
def test_addresses_below_the_old_home_alone_are_rewritten(before: str | None, after: str | None) -> None:
    assert relocation.Move(Path("db"), Path("/old/home"), Path("/new/place")).address(before) == after
