"""The runs there are: by cell, by preset, by reference."""

import math
import sys
from dataclasses import dataclass

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from rnnlm_core.config import known_names
from rnnlm_core.errors import DataError, suggestion
from rnnlm_core.extensions import NAME
from tasks.tracking_database import client, experiment_id, has_database, is_missing, unreachable

MINUTES = "perf/train_minutes"
TEXT = "rnnlm.text_sha256"
CONFIG = "rnnlm.config_sha256"
VERDICT = "rnnlm.verdict"
PROCESSOR = "rnnlm.processor"
VERSIONS = "rnnlm.versions"
REVISION = "mlflow.source.git.commit"


def dynamic_tag(split: str) -> str:
    """Return the tag of a run that says which settings made its figures of dynamic evaluation on a split."""
    return f"rnnlm.dynamic_evaluation.{split}"


@dataclass(frozen=True)
class TrackedRun:
    """A run as `rnnlm compare` and `--model` need it."""

    run_id: str
    status: str
    started: float
    tags: dict[str, str]
    metrics: dict[str, float]
    parameters: dict[str, str]


def newest(query: str) -> Run | None:
    """Return the newest run that a query of MLflow finds."""
    found = client().search_runs([experiment_id()], query, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found else None


def run_exists(run_id: str) -> bool:
    """Say whether a run is there and not deleted."""
    if not has_database():
        return False
    try:
        return str(client().get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if is_missing(error):
            return False
        raise unreachable(error) from error


def finished_cells(preset: str, cell: str) -> list[TrackedRun]:
    """Return the finished trainings of one cell under a preset, newest first."""
    query = (
        f"attributes.status = 'FINISHED' AND tags.`rnnlm.kind` = 'cell' AND tags.`rnnlm.preset` = '{_quoted(preset)}' "
        f"AND tags.`rnnlm.cell` = '{_quoted(cell)}'"
    )
    found = client().search_runs([experiment_id()], query, order_by=["attributes.start_time DESC"])
    return [tracked(run) for run in found]


def last_text(config_sha256: str) -> str | None:
    """Return the digest of the text of the newest run of a config whose verdict was told, None if there is none."""
    query = (
        "attributes.status = 'FINISHED' AND tags.`rnnlm.kind` = 'pipeline' "
        f"AND tags.`{CONFIG}` = '{_quoted(config_sha256)}' AND tags.`{VERDICT}` != ''"
    )
    found = newest(query) if has_database() else None
    return None if found is None else found.data.tags.get(TEXT)


def tracked_cells(corpus: str = "", last: int = 20) -> list[TrackedRun]:
    """Return the newest cell runs, newest first."""
    query = "tags.`rnnlm.kind` = 'cell'" + (f" AND tags.`rnnlm.corpus` = '{_quoted(corpus)}'" if corpus else "")
    found = client().search_runs([experiment_id()], query, max_results=last, order_by=["attributes.start_time DESC"])
    return [tracked(run) for run in found]


def find_model_run(reference: str) -> TrackedRun:
    """Return the run a model reference names: a cell, of the newest run that has it, or a run id."""
    if NAME.fullmatch(reference):  # a cell, of a package that is not installed any more perhaps
        query = f"tags.`rnnlm.kind` = 'pipeline' AND tags.`rnnlm.child.{reference}` != ''"
        parent = newest(query)
        if parent is not None:
            reference = parent.data.tags[f"rnnlm.child.{reference}"]
        elif reference in known_names("cell"):
            raise DataError("no trained model", reference, "train one first with `rnnlm run`")
    try:
        return tracked(client().get_run(reference))
    except MlflowException as error:
        if not is_missing(error):
            raise unreachable(error) from error
        cells = known_names("cell")
        meant = suggestion(reference, cells)
        remedy = f"give a cell ({', '.join(cells)}), a run id, or models:/NAME@ALIAS"
        remedy = meant if meant.startswith("did you mean") else remedy
        raise DataError("no such model", reference, remedy) from error


def text_of(run: TrackedRun) -> str:
    """Return the digest of the text that a cell was trained on, "" if that is not known here.

    It is noted by the run above: of a trial, by that of the whole sweep.
    """
    tags = run.tags
    while TEXT not in tags:
        parent = tags.get("mlflow.parentRunId", "")
        if not parent or not run_exists(parent):
            return ""
        tags = client().get_run(parent).data.tags
    return str(tags[TEXT])


def last_trained_cells() -> list[TrackedRun]:
    """Return the cell runs of the newest run that has trained any: those that are there and have a model."""
    if has_database():
        query = "tags.`rnnlm.kind` = 'pipeline'"
        order = ["attributes.start_time DESC"]
        for parent in client().search_runs([experiment_id()], query, max_results=100, order_by=order):
            names = [parent.data.tags.get(f"rnnlm.child.{cell}", "") for cell in known_names("cell")]
            runs = [tracked(client().get_run(name)) for name in names if name and run_exists(name)]
            if trained := [run for run in runs if run.tags.get("rnnlm.model_sha256")]:
                return trained
    raise DataError("no trained model", "", "train one first with `rnnlm run`")


def run_of_model(sha256: str) -> TrackedRun | None:
    """Return the newest run that trained the model with this digest, None if it was trained elsewhere."""
    found = newest(f"tags.`rnnlm.kind` = 'cell' AND tags.`rnnlm.model_sha256` = '{_quoted(sha256)}'")
    return tracked(found) if found is not None else None


def curve(run_id: str, metric: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a metric."""
    return [(m.step, m.value) for m in client().get_metric_history(run_id, metric)]


def logged(value: float) -> float:
    """Return a metric as it was logged: MLflow's databases keep an infinity as the largest number."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def train_minutes(run: TrackedRun) -> float | None:
    """Return how long the epochs of a training took together, None before the first has ended."""
    if MINUTES in run.metrics:
        return run.metrics[MINUTES]
    seconds = [value for _, value in curve(run.run_id, "perf/epoch_seconds")]  # an older run, or one under way
    return sum(seconds) / 60 if seconds else None


def tracked(run: Run) -> TrackedRun:
    """Return a run of MLflow as ours."""
    return TrackedRun(
        str(run.info.run_id),
        run.info.status,
        run.info.start_time / 1000,
        dict(run.data.tags),
        {name: logged(value) for name, value in run.data.metrics.items()},
        dict(run.data.params),
    )


def _quoted(text: str) -> str:
    return text.replace("'", "")
