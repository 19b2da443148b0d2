"""Stage `evaluate`: measure a trained cell on a held-out split."""

from dataclasses import dataclass

from rnnlm_core.config import EvaluateConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.outcomes import Evaluated
from tasks import tracked_notes, tracking, workspace
from tasks.caching import stage
from tasks.train import TrackedTraining


@dataclass(frozen=True)
class TrackedEvaluation:
    """The figures of a cell and the MLflow run that holds them."""

    evaluated: Evaluated
    run_id: str


@stage("rnnlm_core.evaluate", TrackedEvaluation, task_run_name="evaluate {cell}")
def evaluate(
    cell: str,  # noqa: ARG001 - names the task run
    training: TrackedTraining,
    corpus: Corpus,
    config: EvaluateConfig,
) -> TrackedEvaluation:
    """Return perplexity, bits per character and OOV rate of a cell."""
    from rnnlm_core import evaluate as core

    done = core.evaluate(training.trained.model, corpus.handle, config.split, workspace.store())
    tracking.log_metrics(
        training.run_id,
        {
            f"{done.split}/perplexity": done.perplexity,
            f"{done.split}/loss": done.loss,
            f"{done.split}/bits_per_char": done.bits_per_char,
            f"{done.split}/oov_rate": done.oov_rate,
            "perplexity": done.perplexity,
        },
        of_model=True,
    )
    tracking.set_tags(training.run_id, {"rnnlm.evaluated_split": done.split})
    tracked_notes.note_cell(training.run_id, training.trained, done)
    return TrackedEvaluation(done, training.run_id)
