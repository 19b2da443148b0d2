"""A logged model is loaded by MLflow alone, anywhere, without pickle."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import tracked_models
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
    run = client().get_run(train_cell("rnn", parent).run_id)
    model = client().get_logged_model(run.data.tags["rnnlm.model_uri"].removeprefix("models:/"))
    assert model.experiment_id == run.info.experiment_id == experiment_id()
    assert model.source_run_id == run.info.run_id
    assert model.tags["cell"] == "rnn"
    assert str(model.status) == "READY"
    assert model.artifact_location.startswith((home / "artifacts" / "mlflow").as_uri())
    assert list(elsewhere.iterdir()) == []


def test_the_run_of_a_cell_keeps_its_vocabulary(parent: FlowRun, train_cell: Callable[..., TrackedTraining]) -> None:
    trained = train_cell("rnn", parent)
    names = [item.path for item in client().list_artifacts(trained.run_id)]
    assert "vocabulary.json" in names
    assert tracked_models.predict(
        client().get_run(trained.run_id).data.tags["rnnlm.model_uri"], ["the "], length=3, temperature=0.0, seed=0
    )[0].startswith("the ")
