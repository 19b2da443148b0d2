"""A logged model is loaded by MLflow alone, anywhere, without pickle."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from rnnlm_core.config import EvaluateConfig, GenerateConfig
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.generate import continue_texts
from rnnlm_core.saved_model import load_model
from rnnlm_core.score import Scored, score_texts
from tasks import tracked_models, workspace
from tasks.evaluate import evaluate
from tasks.tracking import FlowRun
from tasks.tracking_database import client, experiment_id
from tasks.train import TrackedTraining

LOAD = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
def write(**parameters):
    return model.predict(["the time ", "we listened"], params=parameters)
drawn = [write(length=30, temperature=1.0, seed=seed) for seed in (5, 5, 6)]
plain = write(length=30)
likeliest = [write(length=30, temperature=1.0, top_k=1), write(length=30, temperature=1.0, top_p=1e-9)]
scored = model.predict(["the time ", "we listened"], params={"mode": "score"})
print(json.dumps({
    "scored": scored, "beam": write(length=5, beam=2, stop=["."], length_penalty=0.5),
    "greedy": write(length=7), "drawn": drawn, "prefect": "prefect" in sys.modules,
    "plain": plain, "likeliest": likeliest, "penalized": write(length=30, repetition_penalty=50.0),
    "parameters": {spec.name: spec.default for spec in model.metadata.signature.params},
}))
"""


def test_mlflow_alone_loads_the_model_elsewhere_without_pickle_and_lets_it_write(
    parent: FlowRun, train_cell: Callable[..., TrackedTraining], tmp_path: Path
) -> None:
    trained = train_cell("gru", parent)
    address = client().get_run(trained.run_id).data.tags["rnnlm.model_uri"]
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
        "mode": "generate", "length": 200, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "beam": 1,
        "length_penalty": 0.75, "repetition_penalty": 1.0, "stop": [], "seed": 0, "unknown": "error",
    }  # fmt: skip
    saved = load_model(workspace.store().path(trained.trained.model))
    assert written["scored"] == [asdict(scored) for scored in score_texts(saved, ["the time ", "we listened"])]
    search = GenerateConfig(length=5, beam=2, stop=(".",), length_penalty=0.5)
    assert written["beam"] == [one.text for one in continue_texts(saved, ["the time ", "we listened"], search)]
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
    run = client().get_run(train_cell("rnn", parent).run_id)
    model = client().get_logged_model(run.data.tags["rnnlm.model_uri"].removeprefix("models:/"))
    assert model.experiment_id == run.info.experiment_id == experiment_id()
    assert model.source_run_id == run.info.run_id
    assert model.tags["cell"] == "rnn"
    assert str(model.status) == "READY"
    assert model.artifact_location.startswith((home / "artifacts" / "mlflow").as_uri())
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def address(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> str:
    """Where MLflow has the model of a trained cell."""
    return client().get_run(train_cell("rnn", parent).run_id).data.tags["rnnlm.model_uri"]


def test_what_a_model_cannot_do_is_told_in_one_line_and_is_the_callers_mistake(address: str) -> None:
    model = mlflow.pyfunc.load_model(address)
    for parameters, told in (
        ({"mode": "rate"}, "unknown mode: rate: did you mean"),
        ({"mode": "score", "length": 5, "top_k": 2}, "no effect in mode `score`: length=5, top_k=2: leave them out"),
        ({"mode": "score", "unknown": "mop"}, "unknown policy for tokens outside the vocabulary: mop"),
        ({"length": 0}, "`generate.length` must be"),
        ({"top_k": 3}, "`generate.top_k` has no effect at temperature 0"),
    ):
        with pytest.raises(MlflowException, match=re.escape(told)) as caught:
            model.predict(["the "], params=parameters)
        assert isinstance(caught.value.__cause__, UsageError)
        assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="text too short, needs at least 2 tokens"):
        model.predict(["t"], params={"mode": "score"})
    for mode, what in (("score", "text"), ("generate", "prefix")):
        with pytest.raises(DataError, match=f"{what} has characters outside the vocabulary: '%'"):
            tracked_models.predict(address, ["the %"], mode=mode)


def test_what_is_read_as_unk_on_request_is_warned_of(address: str, caplog: pytest.LogCaptureFixture) -> None:
    (scored,) = mlflow.pyfunc.load_model(address).predict(["the %"], params={"mode": "score", "unknown": "map"})
    assert scored["text"] == "the %"
    assert "text has characters outside the vocabulary, read as <unk>: '%'" in caplog.messages


def test_a_score_that_is_no_number_is_none_for_json_has_no_infinity(address: str, monkeypatch: Any) -> None:
    model = mlflow.pyfunc.load_model(address)
    source = sys.modules[type(model.unwrap_python_model()).__module__]
    endless = Scored("é", 2, 1.0, math.e, math.inf)
    monkeypatch.setattr(source, "score_texts", lambda *_: (endless,))
    (record,) = model.predict(["é"], params={"mode": "score"})
    assert record == {**asdict(endless), "bits_per_char": None}


def test_the_card_is_among_the_models_files_and_on_its_page(
    address: str, built: Any, tmp_path: Path, text: Path
) -> None:
    model = client().get_logged_model(address.removeprefix("models:/"))
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(tmp_path / "copy")))
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    assert model.tags["mlflow.note.content"] == card
    assert f'mlflow.pyfunc.load_model("{address}")' in card
    assert built.corpus.handle.sha256 in card
    assert "| model.hidden_size | 8 |" in card
    assert model.params["model.hidden_size"] == "8"
    # What travels with the model names no place of this machine but those that MLflow itself notes.
    ours = [path for path in folder.rglob("*") if path.is_file() and path.name != "MLmodel"]
    assert str(text.parent).encode() not in b"".join(path.read_bytes() for path in ours)


def test_the_models_page_has_the_figures_of_training_and_of_the_evaluation_once(
    built: Any, parent: FlowRun, train_cell: Callable[..., TrackedTraining]
) -> None:
    trained = train_cell("gru", parent)
    address = client().get_run(trained.run_id).data.tags["rnnlm.model_uri"]

    def figures() -> dict[str, list[float]]:
        said: dict[str, list[float]] = {}
        for metric in client().get_logged_model(address.removeprefix("models:/")).metrics:
            said.setdefault(metric.key, []).append(metric.value)
        return said

    assert figures()["best/valid_perplexity"] == [trained.trained.best.valid_perplexity]
    assert "test/perplexity" not in figures()
    measured = evaluate.fn("gru", trained, built.corpus, EvaluateConfig()).evaluated
    assert figures()["test/perplexity"] == [measured.perplexity]
    assert figures()["test/bits_per_char"] == [measured.bits_per_char]
    evaluate.fn("gru", trained, built.corpus, EvaluateConfig())
    assert figures()["test/perplexity"] == [measured.perplexity]
    history = client().get_metric_history(trained.run_id, "test/perplexity")
    assert [metric.value for metric in history] == [measured.perplexity]


def test_a_model_that_was_deleted_takes_no_figures_and_the_run_has_them(
    built: Any, parent: FlowRun, train_cell: Callable[..., TrackedTraining]
) -> None:
    trained = train_cell("rnn", parent)
    run = client().get_run(trained.run_id)
    client().delete_logged_model(run.data.tags["rnnlm.model_uri"].removeprefix("models:/"))
    measured = evaluate.fn("rnn", trained, built.corpus, EvaluateConfig()).evaluated
    assert client().get_run(trained.run_id).data.metrics["test/perplexity"] == measured.perplexity


def test_the_requirements_are_those_of_this_environment_and_few(address: str, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(tmp_path / "copy")))
    asked = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert set(asked) == {"mlflow-skinny", "torch", "numpy", "pandas", "safetensors", "sqlalchemy", "alembic"}
    assert {name: version(name).split("+")[0] for name in asked} == asked


def test_the_run_of_a_cell_keeps_its_vocabulary(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> None:
    trained = train_cell("rnn", parent)
    names = [item.path for item in client().list_artifacts(trained.run_id)]
    assert "vocabulary.json" in names
    assert tracked_models.predict(
        client().get_run(trained.run_id).data.tags["rnnlm.model_uri"], ["the "], length=3, temperature=0.0, seed=0
    )[0].startswith("the ")
