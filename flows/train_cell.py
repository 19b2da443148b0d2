"""The training of one cell as a flow run of its own, on any worker of the pool; and the stage that asks for it.

Both sides compute the same key, so that whoever asked finds the record once the worker has written it. Workers share
the home of whoever asks, or they could not: store, records and MLflow must be the same for all.
"""

import os
import time
from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun as PrefectFlowRun
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from pydantic import TypeAdapter

from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.errors import ResourceError, Stopped
from rnnlm_core.extensions import VARIABLE
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import progress, scheduled_runs
from tasks.caching import VerifiedSerializer
from tasks.stopping import stop_requested
from tasks.tracking import FlowRun
from tasks.train import has_record, train

DEPLOYMENT = "train-cell/train-cell"
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 30.0


@flow(name="train-cell", flow_run_name="train {cell}", persist_result=False, result_serializer=VerifiedSerializer())
def train_cell(
    cell: str,
    corpus: dict[str, Any],
    vocabulary: dict[str, Any],
    model: dict[str, Any],
    config: dict[str, Any],
    run: dict[str, Any],
) -> None:
    """Train one cell for another flow run, which finds the record. `rnnlm run --on-workers` starts this.

    Args:
        cell: rnn, gru, lstm, ngram, or one of an installed package.
        corpus: the corpus, as plain data.
        vocabulary: its vocabulary, as plain data.
        model: the section `model` of the config.
        config: the section `train` of the config.
        run: on whose behalf.
    """
    with scheduled_runs.claimed():
        train(
            cell,
            TypeAdapter(Corpus).validate_python(corpus),
            TypeAdapter(BuiltVocabulary).validate_python(vocabulary),
            ModelConfig(**model),
            TrainConfig(**config),
            TypeAdapter(FlowRun).validate_python(run),
        )


@task(name="train on a worker", task_run_name="train {cell} on a worker", persist_result=False)
def train_on_a_worker(
    cell: str, corpus: Corpus, vocabulary: BuiltVocabulary, model: ModelConfig, config: TrainConfig, run: FlowRun
) -> None:
    """Have a cell trained by a worker of the pool, unless its record is there, and wait for it.

    Raises `ResourceError` if the training fails, or leaves no record here; `Stopped` when asked to end, which the
    worker is told as well.
    """
    settings = (cell, corpus, vocabulary, model, config, run)
    if has_record(*settings):
        return
    parameters = {
        "cell": cell,
        "corpus": asdict(corpus),
        "vocabulary": asdict(vocabulary),
        "model": asdict(model),
        "config": asdict(config),
        "run": asdict(run),
    }
    try:
        started: PrefectFlowRun = run_deployment(
            DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=True, job_variables=_extensions()
        )
    except ObjectNotFound:
        raise ResourceError(
            "nobody can train on a worker: no such deployment", DEPLOYMENT, "start `rnnlm up`, or deploy prefect.yaml"
        ) from None
    ended = _wait(started, cell)
    if not ended.is_completed():
        told = ended.message or ended.name
        raise ResourceError(f"training {cell} on a worker ended as {ended.name}", told, f"see flow run {started.name}")
    if not has_record(*settings):
        what = f"a worker has trained {cell}, and its record is not here"
        raise ResourceError(what, started.name, "let workers and whoever asks share RNNLM_HOME, and the same version")


def _extensions() -> dict[str, Any] | None:
    """Return what a worker must be told to know what is registered here; None leaves its own environment as it is."""
    said = os.environ.get(VARIABLE, "")
    return {"env": {VARIABLE: said}} if said else None


def _wait(run: PrefectFlowRun, cell: str) -> Any:
    """Return the last state of a flow run; raises `Stopped`, the run told to end, when that is asked for."""
    patient_until, warned = time.monotonic() + PATIENCE_SECONDS, False
    with get_client(sync_client=True) as api:
        while True:
            state = api.read_flow_run(run.id).state
            assert state is not None
            if state.is_final():
                return state
            if stop_requested.is_set():
                api.set_flow_run_state(run.id, Cancelling())
                raise Stopped("training on a worker stopped", cell, "run the same command again to go on")
            if not warned and state.type == StateType.SCHEDULED and time.monotonic() > patient_until:
                warned = True
                progress.warn("train", "no worker is free yet: start one more, or `rnnlm up --runs 4`", cell)
            time.sleep(POLL_SECONDS)
