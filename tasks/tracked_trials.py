"""What MLflow is told of a sweep: a run per trial under the run of the sweep, with what varies and what came of it.

A trial's run is its own, beside that of its training: a training that was done before has its run already, and two
trials may share one. So the children of a sweep are its trials, all of them, with a parameter per key that varies and
the figure they are chosen by: what the parallel coordinates of MLflow's page need.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Metric

from rnnlm_core.errors import RnnlmError
from rnnlm_core.outcomes import Epoch
from tasks import progress, tracked_notes, tracked_runs, tracking
from tasks.studies import FAILED, PRUNED, Outcome, Trial
from tasks.tracking import FlowRun
from tasks.tracking_database import client
from tasks.wording import parameter_text

CHOSEN_BY = "best/valid_perplexity"


@dataclass(frozen=True)
class TrialRun(FlowRun):
    """The run of a trial, on whose behalf one training is done."""

    trial: Trial = field(kw_only=True)

    def label(self, cell: str) -> str:
        """Return the cell with the number of the trial."""
        return f"{cell} #{self.trial.number}"

    def enough(self, epoch: Epoch) -> bool:
        """Whether other trials were better."""
        return self.trial.enough(epoch)


def open_trial(sweep: FlowRun, sweep_id: str, trial: Trial, cell: str, parameters: Mapping[str, Any]) -> TrialRun:
    """Open the run of a trial, or open again the one it has; `parameters` are those of its training, all of them."""
    query = f"tags.`rnnlm.sweep_id` = '{sweep_id}' AND tags.`rnnlm.trial` = '{trial.number}'"
    tags = {
        **tracking.about(sweep, tracking.SWEEP),
        tracking.PARENT: sweep.parent_run_id,
        "rnnlm.kind": "trial",
        "rnnlm.sweep_id": sweep_id,
        "rnnlm.trial": str(trial.number),
        "rnnlm.cell": cell,
    }
    varied = {key: parameter_text(value) for key, value in trial.values.items()} | {"cell": cell}
    run_id = tracking.find_or_create(query, f"trial {trial.number} · {cell}", tags, varied)
    texts = tuple((key, parameter_text(value)) for key, value in parameters.items())
    config = json.dumps(dict(parameters), ensure_ascii=False, indent=1)
    return TrialRun(run_id, sweep.preset, sweep.corpus, texts, sweep.prefect_flow_run_id, config, trial=trial)


def close_trial(run: TrialRun, outcome: Outcome) -> None:
    """Write what a trial came to, and end its run: FAILED if it failed, FINISHED if it is complete or was pruned."""
    run_id, now = run.parent_run_id, int(time.time() * 1000)
    said = {metric.step for metric in client().get_metric_history(run_id, "valid/perplexity")}
    curve = [Metric("valid/perplexity", value, now, step) for step, value in outcome.curve.items() if step not in said]
    for start in range(0, len(curve), 900):
        client().log_batch(run_id, metrics=curve[start : start + 900])
    if outcome.best is not None:
        tracking.log_metrics(run_id, {"best/epoch": outcome.best[0], CHOSEN_BY: outcome.best[1]})
    tags = {"rnnlm.state": outcome.state, "rnnlm.training_run": outcome.training_run_id}
    if outcome.state == PRUNED:
        tags["rnnlm.pruned_at_epoch"] = str(max(outcome.curve))
    if outcome.reason:
        tags["rnnlm.error"] = outcome.reason[:500]
    tracking.set_tags(run_id, tags)
    client().set_terminated(run_id, "FAILED" if outcome.state == FAILED else "FINISHED")


def abandon_trial(run: TrialRun) -> None:
    """End the run of a trial that is left under way as KILLED; it is opened again when the sweep goes on."""
    try:
        client().set_terminated(run.parent_run_id, "KILLED")
    except RnnlmError as fault:  # what ended the sweep says more than that this could not be noted
        progress.warn("mlflow", f"run {run.parent_run_id} stays open until the next start: {fault}")


def training_run(run: TrialRun) -> str:
    """Return the id of the run that holds the training done for a trial, "" if it never began."""
    from tasks import tracked_runs

    found = tracked_runs.newest(f"tags.`rnnlm.kind` = 'cell' AND tags.`{tracking.PARENT}` = '{run.parent_run_id}'")
    return "" if found is None else str(found.info.run_id)


def describe_sweep(sweep: FlowRun, note: str, tags: Mapping[str, str], best: tuple[int, float] | None) -> None:
    """Write on the run of a sweep what it came to; `best` is the number of trials and the best perplexity of them."""
    run_id = sweep.parent_run_id
    tracking.set_tags(run_id, dict(tags))
    tracked_notes.write_note(tracked_runs.tracked(client().get_run(run_id)), note)
    if best is not None:
        trials, value = best
        said = {metric.step for metric in client().get_metric_history(run_id, CHOSEN_BY)}
        if trials not in said:  # a sweep that went on has more than one
            client().log_batch(run_id, metrics=[Metric(CHOSEN_BY, value, int(time.time() * 1000), trials)])
