"""MLflow is told everything once, and never left believing that something dead still runs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from rnnlm_core.config import EvaluateConfig, TrainConfig
from rnnlm_core.errors import DataError, IntegrityError, Stopped, UsageError
from rnnlm_core.train import Epoch
from tasks import tracking
from tasks.corpus import Corpus
from tasks.evaluate import evaluate
from tasks.tracking import FlowRun
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
    return tracking.client().get_run(run_id)


def steps(run_id: str, metric: str) -> list[int]:
    return [step for step, _ in tracking.curve(run_id, metric)]


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
    assert len(shown) == tracking.LONGEST_PARAMETER
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
    assert tracking.curve(parent.parent_run_id, "train/loss") == [(n, 3.0 / n) for n in (1, 2, 3, 4)]


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
    assert tags["mlflow.note.content"] == "Already trained, nothing repeated: rnn in run run-r"


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


@pytest.mark.parametrize("content", [b"", b"not a database at all", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_named_and_kept(bare_home: Path, content: bytes) -> None:
    path = bare_home / "mlflow.db"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not an MLflow database") as caught:
        tracking.client()
    assert str(path) in str(caught.value)
    assert "restore it, or move it away to start anew" in str(caught.value)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(bare_home: Path) -> None:
    import sqlite3

    path = bare_home / "mlflow.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE other (x)")
    database.commit()
    database.close()
    with pytest.raises(IntegrityError, match="no such table: experiments"):
        tracking.client()


def test_two_processes_that_create_the_database_at_once_both_have_it(bare_home: Path) -> None:
    ask = (
        "from tasks import workspace; workspace.prepare_environment(); from tasks import tracking;"
        "print(tracking.experiment_id()); tracking._create('mine', {}, {})"
    )
    project = Path(tracking.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    both = [
        subprocess.Popen([sys.executable, "-c", ask], env=environment, text=True, cwd=bare_home,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0] != ""
    experiment = tracking.experiment_id()
    assert len(tracking.client().search_runs([experiment])) == 2
    assert [path.name for path in bare_home.glob(".mlflow.db*")] == []


def test_an_address_without_scheme_is_refused(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns/mine.db")
    with pytest.raises(UsageError, match=r"`MLFLOW_TRACKING_URI` must be an address .*: mlruns/mine.db: correct"):
        tracking.client()
    assert list(bare_home.rglob("*.db")) == []


def test_another_tracking_address_is_used_as_it_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlflow.db").rename(tmp_path / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    with open_parent() as flow:
        assert tracking.run_exists(flow.parent_run_id)
    assert not (home / "mlflow.db").exists()


def test_a_model_reference_is_a_run_id_or_a_cell_of_the_last_run(home: Path) -> None:
    ids = []
    for key in ("key-1", "key-2"):
        with open_parent() as flow, tracking.child_run(flow, "gru", key, {}) as run_id:
            tracking.link_children(flow, {"gru": run_id}, ["gru"])
        ids.append(run_id)
    assert tracking.find_model_run("gru").run_id == ids[1]
    assert tracking.find_model_run(ids[0]).run_id == ids[0]
    with pytest.raises(DataError, match="no trained model: lstm: train one first with `rnnlm run`"):
        tracking.find_model_run("lstm")
    with pytest.raises(DataError, match="no such model: nonsense: give a cell of the last run"):
        tracking.find_model_run("nonsense")


def test_tracked_cells_are_listed_newest_first_and_by_corpus(home: Path) -> None:
    with open_parent() as flow:
        for number, corpus in enumerate(["one", "two", "one"]):
            with tracking.child_run(replace(flow, corpus=corpus), "gru", f"key-{number}", {}) as run_id:
                tracking.log_metrics(run_id, {"perplexity": float(number)})
    assert [run.metrics["perplexity"] for run in tracking.tracked_cells()] == [2, 1, 0]
    assert [run.metrics["perplexity"] for run in tracking.tracked_cells("one")] == [2, 0]
    assert [run.metrics["perplexity"] for run in tracking.tracked_cells(last=1)] == [2]
    assert tracking.tracked_cells("it's nobody's") == []
    assert {run.parameters["model.hidden_size"] for run in tracking.tracked_cells()} == {"8"}


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
            found = tracking.finished_cells("smoke", "gru")
    assert [run.run_id for run in found] == mine[::-1]
    assert found[0].parameters["model.hidden_size"] == "8"
    assert found[0].parameters["cell"] == "gru"
    assert tracking.finished_cells("it's nobody's", "gru") == []


def test_a_parameter_is_kept_as_it_is_typed() -> None:
    values = [0.5, 2.0, 1e-3, 20, "90/5/5", ("rnn", "gru"), ()]
    assert [tracking.parameter_text(value) for value in values] == [
        "0.5", "2.0", "0.001", "20", "90/5/5", "rnn,gru", "",
    ]  # fmt: skip


LOAD = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
def write(**parameters):
    return model.predict(["the time ", "we listened"], params=parameters)
drawn = [write(length=30, temperature=1.0, seed=seed) for seed in (5, 5, 6)]
plain = write(length=30)
likeliest = [write(length=30, temperature=1.0, top_k=1), write(length=30, temperature=1.0, top_p=1e-9)]
print(json.dumps({
    "greedy": write(length=7), "drawn": drawn, "prefect": "prefect" in sys.modules,
    "plain": plain, "likeliest": likeliest, "penalized": write(length=30, repetition_penalty=50.0),
    "parameters": {spec.name: spec.default for spec in model.metadata.signature.params},
}))
"""


def test_mlflow_alone_loads_the_model_elsewhere_without_pickle_and_lets_it_write(
    parent: FlowRun, train_cell: Callable[..., TrackedTraining], tmp_path: Path
) -> None:
    trained = train_cell("gru", parent)
    address = read(trained.run_id).data.tags["rnnlm.model_uri"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RNNLM_", "PYTHON"))}
    environment |= {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, address],
        env=environment, cwd=elsewhere, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout.splitlines()[-1])
    first, second = written["greedy"]
    assert first.startswith("the time ")
    assert len(first) == len("the time ") + 7
    assert second.startswith("we listened")
    assert len(second) == len("we listened") + 7
    same, again, other = written["drawn"]
    assert same == again != other
    assert [len(text) for text in same] == [39, 41]
    assert written["likeliest"] == [written["plain"]] * 2
    assert written["penalized"] != written["plain"]
    assert written["parameters"] == {
        "length": 200, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0,
    }  # fmt: skip
    assert written["prefect"] is False
    assert list((tmp_path / "home").rglob("*.pkl")) == []


def test_the_model_lies_in_the_experiment_of_its_run_and_at_home(
    parent: FlowRun,
    train_cell: Callable[..., TrackedTraining],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = read(train_cell("rnn", parent).run_id)
    model = tracking.client().get_logged_model(run.data.tags["rnnlm.model_uri"].removeprefix("models:/"))
    assert model.experiment_id == run.info.experiment_id == tracking.experiment_id()
    assert model.source_run_id == run.info.run_id
    assert model.tags["cell"] == "rnn"
    assert str(model.status) == "READY"
    assert model.artifact_location.startswith((home / "artifacts" / "mlflow").as_uri())
    assert list(elsewhere.iterdir()) == []


def test_the_run_of_a_cell_keeps_its_vocabulary(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> None:
    trained = train_cell("rnn", parent)
    names = [item.path for item in tracking.client().list_artifacts(trained.run_id)]
    assert "vocabulary.json" in names
    assert tracking.predict(
        read(trained.run_id).data.tags["rnnlm.model_uri"], ["the "], length=3, temperature=0.0, seed=0
    )[0].startswith("the ")


def test_a_corpus_of_one_run_is_told_by_its_digest(
    parent: FlowRun, train_cell: Callable[..., TrackedTraining], built: Any
) -> None:
    corpus: Corpus = built.corpus
    tags = read(train_cell("rnn", parent).run_id).data.tags
    assert tags["rnnlm.corpus_sha256"] == corpus.handle.sha256
    assert tags["rnnlm.vocabulary_sha256"] == built.vocabulary.handle.sha256
