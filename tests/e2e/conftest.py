"""A model as its users have it: trained by the command in a home of its own, once for all tests of logged models."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from homes import COMMAND, PROJECT, without_settings
from mlflow import MlflowClient

SMALL = [
    "--preset", "smoke", "--cells", "gru",
    "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=8000", "--set", "train.device=cpu",
]  # fmt: skip


@dataclass(frozen=True)
class LoggedModel:
    """A home and the model that was logged there."""

    home: Path
    uri: str

    @property
    def tracking_uri(self) -> str:
        """The home's database, as MLflow calls it."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    @contextmanager
    def tracked_here(self) -> Iterator[MlflowClient]:
        """Let MLflow work in this home: it looks models up where its global address says."""
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.tracking_uri)
        try:
            yield MlflowClient()
        finally:
            mlflow.set_tracking_uri(before)

    def register(self, name: str) -> str:
        """Make this model the champion of a name, and return the address that says so."""
        with self.tracked_here() as client:
            client.create_registered_model(name)
            version = client.create_model_version(name, self.uri, model_id=self.uri.removeprefix("models:/"))
            client.set_registered_model_alias(name, "champion", version.version)
        return f"models:/{name}@champion"

    def rnnlm(self, *arguments: object) -> str:
        """Run a command in this home and return what it printed."""
        own = {"RNNLM_HOME": str(self.home), "PREFECT_HOME": str(self.home / "prefect"), "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=without_settings() | own, cwd=self.home, capture_output=True, text=True, timeout=1000, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def logged(tmp_path_factory: pytest.TempPathFactory) -> LoggedModel:
    """A GRU of 16 units."""
    model = LoggedModel(tmp_path_factory.mktemp("logged"), "")
    model.rnnlm("run", *SMALL, "--json", model.home / "out.json")
    run_id = json.loads((model.home / "out.json").read_text())["cells"]["gru"]["run_id"]
    with model.tracked_here() as client:
        return LoggedModel(model.home, client.get_run(run_id).data.tags["rnnlm.model_uri"])
