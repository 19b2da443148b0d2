"""What MLflow is told: a parent run per flow run, a child run per trained cell.

Runs are opened with an explicit client and run id, never through a global active run, so that threads do not meet.
The same training is the same run: a cell that is trained again under the same key writes into the run it had.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow import environment_variables
from mlflow.entities import Metric, Param, Run, RunTag

from rnnlm_core.config_rules import concerns
from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.errors import RnnlmError, Stopped
from rnnlm_core.outcomes import Epoch
from tasks import processes, progress, run_origin, tracked_models, tracked_runs
from tasks.tracked_runs import TrackedRun
from tasks.tracking_database import client, experiment_id
from tasks.wording import parameter_text

PARENT = "mlflow.parentRunId"
FLUSH_SECONDS = 2.0
TRAINING_KEYS = ("corpus", "tokenizer", "model", "train")
CONFIG_FILE = "config.json"
SWEEP = "rnnlm sweep"
OF_AN_END = ("rnnlm.error", "rnnlm.pruned_at_epoch")


@dataclass(frozen=True)
class FlowRun:
    """The flow run on whose behalf a stage works: what its child runs are told. No part of any cache key."""

    parent_run_id: str
    preset: str
    corpus: str
    parameters: tuple[tuple[str, str], ...]
    prefect_flow_run_id: str
    config: str = "{}"
    """Every key and value of the config, as JSON."""

    def cache_identity(self) -> tuple[()]:
        """Who asks changes nothing."""
        return ()

    def training_settings(self, cell: str) -> dict[str, str]:
        """Return the parameters a training depends on; what comes after it may be done again with other ones."""
        return {key: value for key, value in self.parameters if _is_of_training(cell, key)}

    def label(self, cell: str) -> str:
        """Return what the screen calls the training of a cell."""
        return cell

    def enough(self, epoch: Epoch) -> bool:  # noqa: ARG002 - a sweep looks at it
        """Whether a training may end after this epoch, because nobody wants its result any more."""
        return False


def _is_of_training(cell: str, key: str) -> bool:
    return key.split(".", maxsplit=1)[0] in TRAINING_KEYS and concerns(cell, key)


@contextmanager
def parent_run(preset: str, corpus: str, parameters: dict[str, Any], prefect_flow_run_id: str) -> Iterator[FlowRun]:
    """Open the parent run of a flow run; it ends FINISHED, FAILED or KILLED as the block ends."""
    texts = tuple((key, parameter_text(value)) for key, value in parameters.items())
    flow = FlowRun("", preset, corpus, texts, prefect_flow_run_id, json.dumps(parameters, ensure_ascii=False, indent=1))
    tags = {
        **about(flow),
        "rnnlm.kind": "pipeline",
        "rnnlm.cells": ",".join(parameters.get("cells", ())),
        tracked_runs.CONFIG: config_sha256(parameters),
    }
    flow = replace(flow, parent_run_id=_create(f"{preset} · {corpus}", tags, dict(texts)))
    with _closing(flow.parent_run_id):
        log_text(flow.parent_run_id, flow.config, CONFIG_FILE)
        yield flow


def config_sha256(parameters: Mapping[str, Any]) -> str:
    """Return the digest of a whole config."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()


def about(flow: FlowRun, command: str = "rnnlm run", cell: str = "") -> dict[str, str]:
    """Return the tags that parent and children share: what to filter by, and where they come from."""
    parameters = flow.training_settings(cell) if cell else dict(flow.parameters)
    keys = {"rnnlm.level": "tokenizer.level", "rnnlm.implementation": "model.implementation"}
    return {
        "rnnlm.preset": flow.preset,
        "rnnlm.corpus": flow.corpus,
        **{tag: parameters[key] for tag, key in keys.items() if key in parameters},
        **run_origin.origin(flow.preset, command),
        **_owner(flow),
    }


def _owner(flow: FlowRun) -> dict[str, str]:
    """Return the tags that name the flow run on whose behalf a run is under way."""
    flow_run_id = flow.prefect_flow_run_id
    return {"prefect.flow_run_id": flow_run_id, **run_origin.prefect_link(flow_run_id), **processes.this_process()}


@contextmanager
def child_run(flow: FlowRun, cell: str, key: str, tags: dict[str, str]) -> Iterator[str]:
    """Open the run of one training, or open again the run that a training with the same key had."""
    # What comes after training may be done again with other settings, in this same run.
    settings = flow.training_settings(cell) | {"cell": cell}
    found = tracked_runs.newest(f"tags.`rnnlm.key` = '{key}'")
    if found is not None:
        run_id = _open_again(found, {PARENT: flow.parent_run_id, **_owner(flow)}, settings)
    else:
        own = {
            **about(flow, cell=cell),
            PARENT: flow.parent_run_id,
            "rnnlm.kind": "cell",
            "rnnlm.cell": cell,
            "rnnlm.key": key,
        }
        run_id = _create(f"{cell} · {flow.corpus}", {**own, **tags}, settings)
    with _closing(run_id):
        log_text(run_id, _settings_file(flow, cell), CONFIG_FILE)
        yield run_id


def _settings_file(flow: FlowRun, cell: str) -> str:
    """Return, as JSON, what of the config a training depends on."""
    config = {key: value for key, value in json.loads(flow.config).items() if _is_of_training(cell, key)}
    return json.dumps({"preset": flow.preset, "cell": cell, **config}, ensure_ascii=False, indent=1)


@contextmanager
def sweep_run(
    name: str, sweep_id: str, preset: str, corpus: str, parameters: dict[str, str], prefect_flow_run_id: str
) -> Iterator[FlowRun]:
    """Open the run of a sweep, or open again the one it has; it ends FINISHED, FAILED or KILLED as the block ends."""
    query = f"tags.`rnnlm.kind` = 'sweep' AND tags.`rnnlm.sweep_id` = '{sweep_id}'"
    flow = FlowRun("", preset, corpus, tuple(parameters.items()), prefect_flow_run_id)
    tags = {**about(flow, SWEEP), "rnnlm.kind": "sweep", "rnnlm.sweep": name, "rnnlm.sweep_id": sweep_id}
    run_id = find_or_create(query, f"sweep {name}", tags, parameters)
    with _closing(run_id):
        yield replace(flow, parent_run_id=run_id)


def find_or_create(query: str, name: str, tags: dict[str, str], parameters: dict[str, str]) -> str:
    """Open the newest run that a query finds again, or a new one, and return its id."""
    found = tracked_runs.newest(query)
    return _create(name, tags, parameters) if found is None else _open_again(found, tags, parameters)


def _open_again(found: Run, tags: dict[str, str], parameters: dict[str, str]) -> str:
    """Say that this process goes on with a run; how it ended before is forgotten."""
    run_id = str(found.info.run_id)
    set_tags(run_id, tags | processes.this_process())
    client().update_run(run_id, status="RUNNING")
    for tag in [tag for tag in OF_AN_END if tag in found.data.tags]:
        client().delete_tag(run_id, tag)
    # Those that a process had no time to note: MLflow never changes one.
    _log_parameters(run_id, {key: value for key, value in parameters.items() if key not in found.data.params})
    return run_id


def _create(name: str, tags: dict[str, str], parameters: dict[str, str]) -> str:
    all_tags = {"mlflow.runName": name, **processes.this_process(), **tags}
    run_id = str(client().create_run(experiment_id(), tags=all_tags).info.run_id)
    crashpoint("run created")
    _log_parameters(run_id, parameters)
    return run_id


def _log_parameters(run_id: str, parameters: dict[str, str]) -> None:
    client().log_batch(run_id, params=[Param(key, value) for key, value in parameters.items()])


@contextmanager
def _closing(run_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # Exceptions that are no `Exception` are somebody's wish to end: Ctrl-C, a cancelled flow.
        status = "FAILED" if isinstance(error, Exception) and not isinstance(error, Stopped) else "KILLED"
        try:
            client().set_tag(run_id, "rnnlm.error", repr(error)[:500])
            client().set_terminated(run_id, status)
        except RnnlmError as fault:  # what ended the run says more than that this could not be noted
            progress.warn("mlflow", f"run {run_id} stays open until the next start: {fault}")
        raise
    else:
        client().set_terminated(run_id, "FINISHED")


def link_children(flow: FlowRun, children: dict[str, str], trained: Sequence[str]) -> None:
    """Note on the parent which run holds each cell, and which of them this flow run found already trained."""
    for cell, run_id in children.items():
        client().set_tag(flow.parent_run_id, f"rnnlm.child.{cell}", run_id)
    found = [cell for cell in children if cell not in trained]
    if found:
        client().set_tag(flow.parent_run_id, "rnnlm.found_trained", ",".join(found))


class EpochLog:
    """Writes the metrics of epochs in batches; epochs that the run already has are not written twice."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        history = client().get_metric_history(run_id, "train/loss")
        self.last = max((metric.step for metric in history), default=0)
        self.waiting: list[Metric] = []
        self.flushed = time.monotonic()

    def add(self, epoch: Epoch, used: Mapping[str, float] | None = None) -> None:
        """Note an epoch, and what its process had `used` of the machine by then; it reaches MLflow within seconds."""
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
            **{f"system/{name}": value for name, value in (used or {}).items()},
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


def log_metrics(run_id: str, metrics: dict[str, float], of_model: bool = False) -> None:
    """Write final figures (one value each, step 0); those `of_model` stand with the model of the run as well.

    What is said already is not written again, though a stage may have to be done again.
    """
    now = int(time.time() * 1000)
    run = client().get_run(run_id).data
    model = tracked_models.find_model(run.tags.get("rnnlm.model_uri", "")) if of_model else None
    model_id = model.model_id if model else None
    said = dict(run.metrics)
    if model:
        shown = {metric.key: metric.value for metric in model.metrics or []}
        said = {key: value for key, value in said.items() if shown.get(key) == value}
    new = [Metric(key, value, now, 0, model_id=model_id) for key, value in metrics.items() if said.get(key) != value]
    client().log_batch(run_id, metrics=new)


def set_tags(run_id: str, tags: dict[str, str]) -> None:
    """Set several tags of a run."""
    client().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_text(run_id: str, text: str, name: str) -> None:
    """Store a text among a run's artifacts."""
    client().log_text(run_id, text, name)


def log_table(run_id: str, columns: list[str], rows: list[list[Any]], name: str) -> None:
    """Store a table among a run's artifacts, as MLflow's pages show and compare them; it takes the place of the last.

    MLflow's own `log_table` would add the rows to those of the last time.
    """
    log_text(run_id, json.dumps({"columns": columns, "data": rows}, ensure_ascii=False), name)
    set_tags(run_id, {"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})


def log_file(run_id: str, path: Path, folder: str = "") -> None:
    """Store a file among a run's artifacts."""
    client().log_artifact(run_id, str(path), folder or None)


def close_dead_runs() -> list[TrackedRun]:
    """End as KILLED every run that says RUNNING though its process is gone; return them."""
    closed = []
    query = f"attributes.status = 'RUNNING' AND tags.`rnnlm.host` = '{processes.host()}'"
    for run in client().search_runs([experiment_id()], query):
        tags = run.data.tags
        if not processes.is_alive(tags.get("rnnlm.pid", ""), tags.get("rnnlm.started", "")):
            client().set_tag(run.info.run_id, "rnnlm.error", "its process ended without closing it")
            client().set_terminated(run.info.run_id, "KILLED")
            closed.append(tracked_runs.tracked(run))
    return closed


def variables() -> list[str]:
    """Return the names of the environment variables that MLflow reads."""
    return [name for name in vars(environment_variables) if name.startswith("MLFLOW_")]
