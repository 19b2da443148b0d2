"""Stage `generate`: let a trained cell write."""

from dataclasses import dataclass

from rnnlm_core import generate as core
from rnnlm_core.config import EvaluateConfig, GenerateConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.generate import Sample
from tasks import progress, tracking, workspace
from tasks.caching import stage
from tasks.train import TrackedTraining


@dataclass(frozen=True)
class Samples:
    """What a cell wrote, and the MLflow run that holds it."""

    samples: tuple[Sample, ...]
    run_id: str


@stage("rnnlm_core.generate", Samples, task_run_name="generate {cell}")
def generate(
    cell: str, training: TrackedTraining, corpus: Corpus, evaluate: EvaluateConfig, config: GenerateConfig
) -> Samples:
    """Return one sample per prefix."""
    samples = core.generate(
        training.trained.model,
        corpus.handle,
        evaluate.split,
        config,
        workspace.store(),
        lambda text: progress.warn("generate", text, cell),
    )
    text = "\n\n".join(f"[{sample.prefix}]\n{sample.text}" for sample in samples)
    tracking.log_text(training.run_id, text + "\n", "samples.txt")
    return Samples(samples, training.run_id)
