"""Where MLflow keeps its runs: the database is created as a whole, checked before it is believed, and found again."""

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import mlflow
import requests
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy import make_url

from rnnlm_core.download import without_password
from rnnlm_core.errors import IntegrityError, ResourceError, RnnlmError
from tasks import database_server, patience, relocation, workspace
from tasks.database_file import create_whole, remove_drafts

EXPERIMENT = relocation.EXPERIMENT
MOST_CUTS = 3


def client() -> MlflowClient:
    """Return a client of the workspace's MLflow store, which is created if it is not there."""
    uri = workspace.tracking_uri()
    patience.be_patient()
    path = _sqlite_file(uri)
    if path is not None:
        _create_database(path)
    mlflow.set_tracking_uri(uri)
    return _client(uri)


@functools.cache
def _client(uri: str) -> MlflowClient:
    if over_http():
        try:  # MLflow itself would try for minutes without a word
            requests.get(f"{uri.rstrip('/')}/health", timeout=10).raise_for_status()
        except requests.RequestException as error:
            reason = f"{without_password(uri)} ({type(error).__name__})"
            raise ResourceError("MLflow does not answer", reason, "start it, or unset MLFLOW_TRACKING_URI") from error
    try:
        with own_errors():
            if database_server.is_postgresql(uri):
                database_server.prepare(uri, _version(), lambda: MlflowClient(tracking_uri=uri))
            return cast(MlflowClient, _Client(MlflowClient(tracking_uri=uri)))
    except ImportError as error:
        where = f"{without_password(uri)} ({error})"
        how = "`pip install '.[postgresql]'`" if database_server.is_postgresql(uri) else "install it"
        raise ResourceError("no driver for this database", where, f"{how}, or unset MLFLOW_TRACKING_URI") from error


class _Client:
    """MLflow's client, whose calls raise our errors."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        @functools.wraps(call)
        def told(*arguments: Any, **more: Any) -> Any:
            for _ in range(MOST_CUTS):
                try:
                    with own_errors():
                        return call(*arguments, **more)
                except database_server.Cut as cut:
                    # What is made twice is there twice; all else may be said again.
                    if name.startswith("create_") and not cut.undone:
                        raise
            with own_errors():
                return call(*arguments, **more)

        return told


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the error of ours that MLflow has wrapped into one of its own."""
    try:
        yield
    except MlflowException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, RnnlmError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        if is_missing(error) or is_there(error) or _is_local():
            raise
        raise unreachable(error) from error  # a server says no, or nothing


def _create_database(path: Path) -> None:
    """Create the database if there is none, and check it if there is."""
    if path.exists():
        _check_database(path)
        return

    def fill(draft: Path) -> None:
        location = (workspace.artifacts() / "mlflow").as_uri()
        with own_errors():
            MlflowClient(tracking_uri=f"sqlite:///{draft}").create_experiment(EXPERIMENT, artifact_location=location)

    create_whole(path, fill)


def sweep_drafts() -> list[Path]:
    """Remove what processes left that were killed while they created the database; return what was removed."""
    path = _sqlite_file(workspace.tracking_uri())
    return [] if path is None else remove_drafts(path)


@functools.cache
def _check_database(path: Path) -> None:
    """Raise `IntegrityError` before MLflow opens, and changes, what it cannot use."""
    with path.open("rb") as file:
        header = file.read(16)
    if header != b"SQLite format 3\0":
        raise _no_database(path, f"{path.stat().st_size} bytes")
    # Not read-only: the first to open it after a kill takes back what was half written.
    address = f"{path.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, factory=patience.PatientConnection)) as database:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _no_database(path, found)
        try:
            database.execute("SELECT count(*) FROM experiments")
            version = database.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError as error:
            raise _no_database(path, str(error)) from error
        move = relocation.move_of(database, path, path.parent) if path == workspace.home() / "mlflow.db" else None
    if version != (_version(),):
        raise IntegrityError(
            "an MLflow database of another version",
            f"{path} ({version[0] if version else 'unfinished'}, this MLflow has {_version()})",
            "use the MLflow that wrote it, or copy it and try `mlflow db upgrade`, or move it away to start anew",
        )
    if move is not None:  # MLflow would make the folders of the old place again, and write there
        raise move.error()


def _version() -> str:
    """Return the version of the tables that this MLflow works with."""
    migrations = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return str(migrations.get_current_head())


def _no_database(path: Path, reason: str) -> IntegrityError:
    return IntegrityError("not an MLflow database", f"{path} ({reason})", "restore it, or move it away to start anew")


def experiment_id() -> str:
    """Return the id of the experiment that holds all runs."""
    found = client().get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise ResourceError(
                f"the MLflow experiment `{EXPERIMENT}` was deleted",
                without_password(workspace.tracking_uri()),
                f"restore it with `mlflow experiments restore -x {found.experiment_id}`",
            )
        if not _is_local():
            _check_folder(found)
        return str(found.experiment_id)
    folder = None if over_http() else workspace.artifacts() / "mlflow"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        location = None if folder is None else folder.as_uri()
        return str(client().create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException as error:
        if not is_there(error):
            raise
        return experiment_id()  # another process was faster


def _check_folder(experiment: Experiment) -> None:
    """Raise `ResourceError` rather than let MLflow make another machine's folder here, and put our files there."""
    place = urlsplit(experiment.artifact_location)
    folder = Path(unquote(place.path))
    if place.scheme in ("", "file") and folder != workspace.artifacts() / "mlflow" and not folder.is_dir():
        raise ResourceError(
            "MLflow keeps the files of its runs in a folder that is not on this machine",
            folder,
            "mount it here, or make it if it is to be here, or begin a new database through an `mlflow server`",
        )


def _is_local() -> bool:
    return _sqlite_file(workspace.tracking_uri()) is not None


def over_http() -> bool:
    """Whether a server stands before the database: it knows where the files of the runs are."""
    return workspace.tracking_uri().startswith(("http://", "https://"))


def has_database() -> bool:
    """Whether there is anything to ask: a file that does not exist yet is not made by a question."""
    return not _is_local() or local_database() is not None


def local_database() -> Path | None:
    """Return the place of MLflow's database if it is a file that exists."""
    path = _sqlite_file(workspace.tracking_uri())
    return path if path is not None and path.exists() else None


def _sqlite_file(uri: str) -> Path | None:
    """Return the file behind an address such as `sqlite:////folder/mlflow.db?timeout=9`, None for other databases."""
    if not uri.startswith("sqlite"):
        return None
    return Path(str(make_url(uri).database))


def is_missing(error: MlflowException) -> bool:
    """Whether MLflow answered that there is no such thing."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def is_there(error: MlflowException) -> bool:
    """Whether MLflow answered that another process has made this already."""
    return bool(error.error_code == "RESOURCE_ALREADY_EXISTS")


def unreachable(error: MlflowException) -> ResourceError:
    """Return our error for any other answer."""
    uri = workspace.tracking_uri()
    where = f"{without_password(uri)} ({str(error).replace(uri, without_password(uri))})"
    return ResourceError("MLflow does not answer", where, "see that it is running")
