"""Stage `dynamic_evaluation`: measure a trained cell that goes on learning from what it is measured on."""

from collections.abc import Mapping

from rnnlm_core.config import EvaluateConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.dynamic_evaluation_process import Job, evaluate_in_child, stopped
from rnnlm_core.outcomes import Evaluated
from tasks import tracking, workspace
from tasks.caching import stage
from tasks.places import place
from tasks.stopping import stop_requested
from tasks.tracked_runs import dynamic_tag
from tasks.train import TrackedTraining


@stage("rnnlm_core.dynamic_evaluation", Evaluated, task_run_name="dynamic_evaluation {cell}")
def dynamic_evaluation(
    cell: str, training: TrackedTraining, corpus: Corpus, config: EvaluateConfig, device: str
) -> Evaluated:
    """Return the figures of a copy of a cell that learns from each segment once that is measured."""
    model, store = training.trained.model, workspace.store()
    with place(device, 1, cell) as (where, threads):
        if stop_requested.is_set():
            raise stopped(cell)
        job = Job(cell, model, corpus.handle, config, str(store.root), where, threads, str(store.remote or ""))
        return evaluate_in_child(job, stop_requested.is_set)


def note(run_id: str, evaluated: Evaluated, settings: Mapping[str, str]) -> None:
    """Write the figures and the settings that made them into the run of a cell, in the place of earlier ones.

    Each split has a tag of its own, as it has figures of its own. No part of the stage: a flow that finds it done says
    again which settings were asked for last.
    """
    tag = dynamic_tag(evaluated.split)
    tracking.set_tags(run_id, {tag: ""})  # whoever dies in between leaves no figure with the settings of another
    tracking.log_metrics(
        run_id,
        {
            f"{evaluated.split}/dynamic_perplexity": evaluated.perplexity,
            f"{evaluated.split}/dynamic_loss": evaluated.loss,
            f"{evaluated.split}/dynamic_bits_per_char": evaluated.bits_per_char,
        },
    )
    tracking.set_tags(run_id, {tag: " ".join(f"{key}={value}" for key, value in settings.items())})
