"""MLflow's server over PostgreSQL and an S3-compatible store: only the server has drivers, keys and addresses."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from homes import COMMAND, PROJECT, without_settings
from postgresql import PASSWORD, postgresql_server
from servers import BUCKET, ObjectStore, mlflow_server, object_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = [
    "--preset", "smoke", "--cells", "rnn",
    "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=8000", "--set", "train.device=cpu",
]  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A home that tracks through MLflow's server, and what is behind that."""

    home: Path
    mlflow: str
    store: ObjectStore
    database: str

    def rnnlm(self, *arguments: object, code: int = 0, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as a host does that knows nothing but the server's address."""
        environment = {
            **{name: value for name, value in without_settings().items() if not name.startswith("AWS_")},
            "RNNLM_HOME": str(self.home),
            "PREFECT_HOME": str(self.home / "prefect"),
            "PYTHONPATH": str(PROJECT),
            "MLFLOW_TRACKING_URI": self.mlflow,
        }
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=environment | settings, cwd=self.home, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with postgresql_server() as server, object_store() as store:
        database = server.new_database()
        with mlflow_server(database, "--artifacts-destination", f"s3://{BUCKET}/rnnlm", **store.settings) as address:
            yield Site(tmp_path_factory.mktemp("home"), address, store, database)


def test_runs_are_tracked_and_their_files_lie_in_the_bucket(site: Site) -> None:
    first = site.rnnlm("run", *SMALL, "--json", site.home / "out.json")
    assert first.stdout.startswith("smoke · python-docs")  # MLflow's own words are not among the results
    assert f"see the runs in MLflow:     {site.mlflow}\n" in first.stdout
    (run_id,) = {figures["run_id"] for figures in json.loads((site.home / "out.json").read_text())["cells"].values()}
    names = site.store.names()
    assert all(name.startswith("rnnlm/") for name in names)
    of_run = {name.rpartition("/")[2] for name in names if f"/{run_id}/" in name}
    assert {"config.json", "samples.json"} <= of_run
    assert any(name.endswith("/model.safetensors") for name in names)
    assert not (site.home / "artifacts" / "mlflow").exists()
    assert "all 9 stages are cached" in site.rnnlm("run", *SMALL).stdout
    assert site.rnnlm("verify").stderr == "everything is whole\n"
    site.rnnlm("doctor")


def test_a_model_that_this_host_lacks_is_fetched(site: Site) -> None:
    ours = ["generate", "--model", "rnn", "--prefix", "The "]
    written = site.rnnlm(*ours).stdout
    shutil.rmtree(site.home / "artifacts" / "store" / "model")
    assert site.rnnlm(*ours).stdout == written
    assert site.rnnlm(*ours[:2], "models:/rnnlm-smoke@champion", *ours[3:]).stdout == written
    site.rnnlm("promote", "rnn")
    assert "yes" in site.rnnlm("models").stdout


def test_a_store_that_is_gone_ends_the_run_and_the_same_command_goes_on(site: Site) -> None:
    again = ["run", *SMALL, "--set", "train.seed=5"]
    gone = {**site.store.settings, "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}
    with mlflow_server(site.database, "--artifacts-destination", f"s3://{BUCKET}/rnnlm", **gone) as address:
        without = Site(site.home, address, site.store, site.database)
        done = without.rnnlm(*again, code=5, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"error: MLflow does not answer: {address}")
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stderr
    assert "9 stages are cached" not in site.rnnlm(*again).stdout
    assert "9 stages are cached" in site.rnnlm(*again).stdout
    assert "running" not in site.rnnlm("compare").stdout


def test_a_database_that_is_gone_from_behind_the_server_is_one_line(tmp_path: Path) -> None:
    with postgresql_server() as server:
        database = server.new_database()
        with mlflow_server(database) as address, object_store() as store:
            site = Site(tmp_path, address, store, database)
            site.rnnlm("compare")
            server.stop()
            done = site.rnnlm("compare", code=5, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: MLflow does not answer: {address}")
    assert PASSWORD not in line
