"""What MLflow is told: a parent run per flow run, a child run per trained cell.

Runs are opened with an explicit client and run id, never through a global active run, so that threads do not meet.
The same training is the same run: a cell that is trained again under the same key writes into the run it had.
"""

import functools
import os
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from rnnlm_core.errors import DataError, IntegrityError, ResourceError
from rnnlm_core.train import Epoch
from tasks import workspace

EXPERIMENT = "rnnlm"
PARENT = "mlflow.parentRunId"
FLUSH_SECONDS = 2.0
TRAINING_KEYS = ("corpus", "tokenizer", "model", "train")
LONGEST_PARAMETER = 6000
_registering = threading.Lock()


@dataclass(frozen=True)
class FlowRun:
    """The flow run on whose behalf a stage works: what its child runs are told. No part of any cache key."""

    parent_run_id: str
    preset: str
    corpus: str
    parameters: tuple[tuple[str, str], ...]
    prefect_flow_run_id: str

    def cache_identity(self) -> tuple[()]:
        """Who asks changes nothing."""
        return ()


@dataclass(frozen=True)
class TrackedRun:
    """A run as `rnnlm compare` and `--model` need it."""

    run_id: str
    status: str
    started: float
    tags: dict[str, str]
    metrics: dict[str, float]
    parameters: dict[str, str]


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


def run_exists(run_id: str) -> bool:
    """Say whether a run is there and not deleted."""
    try:
        return str(client().get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if _is_missing(error):
            return False
        raise _unreachable(error) from error


def _is_missing(error: MlflowException) -> bool:
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def _unreachable(error: MlflowException) -> ResourceError:
    return ResourceError("MLflow does not answer", f"{workspace.tracking_uri()} ({error})", "see that it is running")


@contextmanager
def parent_run(preset: str, corpus: str, parameters: dict[str, Any], prefect_flow_run_id: str) -> Iterator[FlowRun]:
    """Open the parent run of a flow run; it ends FINISHED, FAILED or KILLED as the block ends."""
    name = f"{preset} · {corpus}"
    texts = tuple((key, parameter_text(value)) for key, value in parameters.items())
    run_id = _create(name, {"rnnlm.kind": "pipeline", "rnnlm.preset": preset, "rnnlm.corpus": corpus,
                            "prefect.flow_run_id": prefect_flow_run_id}, dict(texts))  # fmt: skip
    with _closing(run_id):
        yield FlowRun(run_id, preset, corpus, texts, prefect_flow_run_id)


@contextmanager
def child_run(flow: FlowRun, cell: str, key: str, tags: dict[str, str]) -> Iterator[str]:
    """Open the run of one training, or open again the run that a training with the same key had."""
    found = _find(f"tags.`rnnlm.key` = '{key}'")
    if found is not None:
        run_id = str(found.info.run_id)
        client().update_run(run_id, status="RUNNING")
        client().set_tag(run_id, PARENT, flow.parent_run_id)
        if "rnnlm.error" in found.data.tags:
            client().delete_tag(run_id, "rnnlm.error")
        for tag, value in _process_tags().items():
            client().set_tag(run_id, tag, value)
    else:
        about = {
            PARENT: flow.parent_run_id,
            "rnnlm.kind": "cell",
            "rnnlm.cell": cell,
            "rnnlm.key": key,
            "rnnlm.preset": flow.preset,
            "rnnlm.corpus": flow.corpus,
            "prefect.flow_run_id": flow.prefect_flow_run_id,
        }
        # What comes after training may be done again with other settings, in this same run.
        settings = {key: value for key, value in flow.parameters if key.split(".")[0] in TRAINING_KEYS}
        run_id = _create(f"{cell} · {flow.corpus}", {**about, **tags}, {**settings, "cell": cell})
    with _closing(run_id):
        yield run_id


def _create(name: str, tags: dict[str, str], parameters: dict[str, str]) -> str:
    all_tags = {"mlflow.runName": name, **_process_tags(), **_revision(), **tags}
    run_id = str(client().create_run(experiment_id(), tags=all_tags).info.run_id)
    client().log_batch(run_id, params=[Param(key, value) for key, value in parameters.items()])
    return run_id


@contextmanager
def _closing(run_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # Exceptions that are no `Exception` are somebody's wish to end: Ctrl-C, a cancelled flow.
        status = "FAILED" if isinstance(error, Exception) and type(error).__name__ != "Stopped" else "KILLED"
        client().set_tag(run_id, "rnnlm.error", repr(error)[:500])
        client().set_terminated(run_id, status)
        raise
    else:
        client().set_terminated(run_id, "FINISHED")


def link_children(flow: FlowRun, children: dict[str, str], trained: Sequence[str]) -> None:
    """Note on the parent which run holds each cell, and which of them this flow run found already trained."""
    for cell, run_id in children.items():
        client().set_tag(flow.parent_run_id, f"rnnlm.child.{cell}", run_id)
    found = [cell for cell in children if cell not in trained]
    if found:
        note = "Already trained, nothing repeated: " + ", ".join(f"{cell} in run {children[cell]}" for cell in found)
        client().set_tag(flow.parent_run_id, "mlflow.note.content", note)
        client().set_tag(flow.parent_run_id, "rnnlm.found_trained", ",".join(found))


class EpochLog:
    """Writes the metrics of epochs in batches; epochs that the run already has are not written twice."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        history = client().get_metric_history(run_id, "train/loss")
        self.last = max((metric.step for metric in history), default=0)
        self.waiting: list[Metric] = []
        self.flushed = time.monotonic()

    def add(self, epoch: Epoch) -> None:
        """Note an epoch; it reaches MLflow within seconds."""
        if epoch.number <= self.last:
            return
        self.last = epoch.number
        values = {
            "train/loss": epoch.train_loss,
            "train/perplexity": epoch.train_perplexity,
            "valid/loss": epoch.valid_loss,
            "valid/perplexity": epoch.valid_perplexity,
            "optim/learning_rate": epoch.learning_rate,
            "optim/gradient_norm": epoch.gradient_norm,
            "perf/tokens_per_second": epoch.tokens_per_second,
            "perf/epoch_seconds": epoch.seconds,
        }
        now = int(time.time() * 1000)
        self.waiting += [Metric(k, v, now, epoch.number) for k, v in values.items() if v is not None]
        if time.monotonic() - self.flushed > FLUSH_SECONDS or len(self.waiting) > 900:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self.waiting:
            client().log_batch(self.run_id, metrics=self.waiting)
        self.waiting, self.flushed = [], time.monotonic()


def log_metrics(run_id: str, metrics: dict[str, float]) -> None:
    """Write final figures (one value each, step 0)."""
    now = int(time.time() * 1000)
    client().log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])


def set_tags(run_id: str, tags: dict[str, str]) -> None:
    """Set several tags of a run."""
    client().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_text(run_id: str, text: str, name: str) -> None:
    """Store a text among a run's artifacts."""
    client().log_text(run_id, text, name)


def log_file(run_id: str, path: Path, folder: str = "") -> None:
    """Store a file among a run's artifacts."""
    client().log_artifact(run_id, str(path), folder or None)


def log_model(run_id: str, folder: Path, cell: str, example: str) -> str:
    """Log a saved model so that MLflow loads it back and generates with it; return its address.

    `example` is a text the model can continue; MLflow tries it, so a model that does not load is not logged.

    The model is stored as source and safetensors: nothing is pickled, and no package of ours needs to be installed
    where it is loaded.
    """
    from mlflow.models import Model

    import rnnlm_core

    client()
    code = Path(__file__).with_name("logged_model.py")
    package = Path(rnnlm_core.__file__).parent
    # Created here, in the run's experiment: MLflow itself would put it into its default one, under the current folder.
    model = client().create_logged_model(experiment_id(), name="model", source_run_id=run_id, tags={"cell": cell})
    with _registering:  # MLflow runs the model's source through a global variable
        logged = Model.log(
            artifact_path=None,
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(code),
            code_paths=[str(package)],
            artifacts={"model": str(folder)},
            signature=_signature(),
            input_example=([example], {"length": 20, "temperature": 0.0, "seed": 0}),
            pip_requirements=_requirements(),
        )
    return str(logged.model_uri)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    parameters = [
        ParamSpec("length", "long", 200),
        ParamSpec("temperature", "double", 0.0),
        ParamSpec("top_k", "long", 0),
        ParamSpec("top_p", "double", 1.0),
        ParamSpec("repetition_penalty", "double", 1.0),
        ParamSpec("seed", "long", 0),
    ]
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema(parameters))


@functools.cache
def _requirements() -> list[str]:
    from importlib.metadata import version

    names = ("mlflow", "torch", "numpy", "safetensors", "pyarrow", "tokenizers")
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def local_database() -> Path | None:
    """Return the place of MLflow's database if it is a file that exists."""
    uri = workspace.tracking_uri()
    path = Path(uri.removeprefix("sqlite:///"))
    return path if uri.startswith("sqlite:///") and path.exists() else None


def close_dead_runs() -> list[TrackedRun]:
    """End as KILLED every run that says RUNNING though its process is gone; return them."""
    closed = []
    query = f"attributes.status = 'RUNNING' AND tags.`rnnlm.host` = '{socket.gethostname()}'"
    for run in client().search_runs([experiment_id()], query):
        if not _alive(run.data.tags):
            client().set_tag(run.info.run_id, "rnnlm.error", "its process ended without closing it")
            client().set_terminated(run.info.run_id, "KILLED")
            closed.append(_tracked(run))
    return closed


def _process_tags() -> dict[str, str]:
    me = psutil.Process()
    return {"rnnlm.host": socket.gethostname(), "rnnlm.pid": str(me.pid), "rnnlm.started": f"{me.create_time():.2f}"}


def _alive(tags: dict[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags["rnnlm.pid"]))
        return f"{process.create_time():.2f}" == tags["rnnlm.started"]
    except (KeyError, ValueError, psutil.NoSuchProcess):
        return False


@functools.cache
def _revision() -> dict[str, str]:
    """Return the git revision of the project as a tag, if it is a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            cwd=workspace.PROJECT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": done.stdout.strip()}


def parameter_text(value: Any) -> str:
    """Return a value of the config as MLflow keeps it."""
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= LONGEST_PARAMETER else text[: LONGEST_PARAMETER - 1] + "…"


def _find(query: str) -> Run | None:
    found = client().search_runs([experiment_id()], query, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found else None


def finished_cells(preset: str, cell: str) -> list[TrackedRun]:
    """Return the finished trainings of one cell under a preset, newest first."""
    query = (
        f"attributes.status = 'FINISHED' AND tags.`rnnlm.kind` = 'cell' AND tags.`rnnlm.preset` = '{_quoted(preset)}' "
        f"AND tags.`rnnlm.cell` = '{_quoted(cell)}'"
    )
    found = client().search_runs([experiment_id()], query, order_by=["attributes.start_time DESC"])
    return [_tracked(run) for run in found]


def tracked_cells(corpus: str = "", last: int = 20) -> list[TrackedRun]:
    """Return the newest cell runs, newest first."""
    query = "tags.`rnnlm.kind` = 'cell'" + (f" AND tags.`rnnlm.corpus` = '{_quoted(corpus)}'" if corpus else "")
    found = client().search_runs([experiment_id()], query, max_results=last, order_by=["attributes.start_time DESC"])
    return [_tracked(run) for run in found]


def find_model_run(reference: str) -> TrackedRun:
    """Return the run a model reference names: a cell name of the last run, or a run id."""
    if reference in ("rnn", "gru", "lstm"):
        query = f"tags.`rnnlm.kind` = 'pipeline' AND tags.`rnnlm.child.{reference}` != ''"
        parent = _find(query)
        if parent is None:
            raise DataError("no trained model", reference, "train one first with `rnnlm run`")
        reference = parent.data.tags[f"rnnlm.child.{reference}"]
    try:
        return _tracked(client().get_run(reference))
    except MlflowException as error:
        if not _is_missing(error):
            raise _unreachable(error) from error
        raise DataError(
            "no such model", reference, "give a cell of the last run (rnn, gru, lstm), a run id, or models:/NAME@ALIAS"
        ) from error


def model_files(uri: str) -> Path:
    """Bring the files of a logged or registered model here and return their folder."""
    client()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except MlflowException as error:
        raise DataError("no such model", uri, "`rnnlm compare` lists the runs there are") from error
    (files,) = (folder / "artifacts").iterdir()  # MLflow keeps the name that the folder had
    return files


def curve(run_id: str, metric: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a metric."""
    return [(m.step, m.value) for m in client().get_metric_history(run_id, metric)]


def predict(uri: str, texts: list[str], **parameters: Any) -> list[str]:
    """Load a logged model the way anyone would, with one MLflow call, and let it continue texts."""
    client()
    return list(mlflow.pyfunc.load_model(uri).predict(texts, params=parameters))


def _tracked(run: Run) -> TrackedRun:
    return TrackedRun(
        str(run.info.run_id),
        run.info.status,
        run.info.start_time / 1000,
        dict(run.data.tags),
        dict(run.data.metrics),
        dict(run.data.params),
    )


def _quoted(text: str) -> str:
    return text.replace("'", "")
