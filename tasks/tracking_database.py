"""Where MLflow keeps its runs: the database is created as a whole, checked before it is believed, and found again."""

import functools
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rnnlm_core.errors import IntegrityError, ResourceError
from tasks import workspace

EXPERIMENT = "rnnlm"


def client() -> MlflowClient:
    """Return a client of the workspace's MLflow store, which is created if it is not there."""
    uri = workspace.tracking_uri()
    if uri.startswith("sqlite:///"):
        _create_database(Path(uri.removeprefix("sqlite:///")))
    mlflow.set_tracking_uri(uri)
    return _client(uri)


@functools.cache
def _client(uri: str) -> MlflowClient:
    if uri.startswith(("http://", "https://")):
        try:  # MLflow itself would try for minutes without a word
            requests.get(f"{uri.rstrip('/')}/health", timeout=10)
        except requests.RequestException as error:
            reason = f"{uri} ({type(error).__name__})"
            raise ResourceError("MLflow does not answer", reason, "start it, or unset MLFLOW_TRACKING_URI") from error
    return MlflowClient(tracking_uri=uri)


def _create_database(path: Path) -> None:
    """Create the database as a whole: two processes that create one together, or a kill, would leave it broken."""
    if path.exists():
        _check_database(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        draft.unlink(missing_ok=True)
        location = (workspace.artifacts() / "mlflow").as_uri()
        MlflowClient(tracking_uri=f"sqlite:///{draft}").create_experiment(EXPERIMENT, artifact_location=location)
        draft.replace(path)


@functools.cache
def _check_database(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(16)
    if header != b"SQLite format 3\0":
        raise IntegrityError(
            "not an MLflow database",
            f"{path} ({path.stat().st_size} bytes)",
            "restore it, or move it away to start anew",
        )
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        try:
            connection.execute("SELECT count(*) FROM experiments")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise ResourceError("the MLflow database is locked", path, "wait for the other program") from error
            raise IntegrityError(
                "not an MLflow database", f"{path} ({error})", "restore it, or move it away to start anew"
            ) from error


def experiment_id() -> str:
    """Return the id of the experiment that holds all runs."""
    found = client().get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise ResourceError(
                f"the MLflow experiment `{EXPERIMENT}` was deleted",
                workspace.tracking_uri(),
                f"restore it with `mlflow experiments restore -x {found.experiment_id}`",
            )
        return str(found.experiment_id)
    location = (workspace.artifacts() / "mlflow").as_uri() if _is_local() else None
    return str(client().create_experiment(EXPERIMENT, artifact_location=location))


def _is_local() -> bool:
    return workspace.tracking_uri().startswith("sqlite:")


def local_database() -> Path | None:
    """Return the place of MLflow's database if it is a file that exists."""
    uri = workspace.tracking_uri()
    path = Path(uri.removeprefix("sqlite:///"))
    return path if uri.startswith("sqlite:///") and path.exists() else None


def is_missing(error: MlflowException) -> bool:
    """Whether MLflow answered that there is no such thing."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def unreachable(error: MlflowException) -> ResourceError:
    """Return our error for any other answer."""
    return ResourceError("MLflow does not answer", f"{workspace.tracking_uri()} ({error})", "see that it is running")
