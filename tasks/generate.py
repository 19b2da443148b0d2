"""Stage `generate`: let a trained cell write."""

from dataclasses import dataclass
from functools import partial
from typing import Final

from rnnlm_core.config import EvaluateConfig, GenerateConfig
from rnnlm_core.corpus import Corpus
from rnnlm_core.outcomes import Sample
from tasks import progress, tracking, workspace
from tasks.caching import stage
from tasks.train import TrackedTraining

TEMPERATURES: Final = (0.0, 0.5, 0.8, 1.0)
"""At which the first prefix is continued for the table `samples.json` of the run: from greedy to the model's own."""


@dataclass(frozen=True)
class Samples:
    """What a cell wrote, and the MLflow run that holds it."""

    samples: tuple[Sample, ...]
    run_id: str


@stage("rnnlm_core.generate", Samples, task_run_name="generate {cell}")
def generate(
    cell: str, training: TrackedTraining, corpus: Corpus, evaluate: EvaluateConfig, config: GenerateConfig
) -> Samples:
    """Return one sample per prefix; MLflow is also given the first prefix continued at several temperatures."""
    from rnnlm_core import generate as core
    from rnnlm_core.saved_model import load_model

    store = workspace.store()
    saved = load_model(store.open(training.trained.model))
    warn = partial(progress.warn, "generate", cell=cell)
    prefixes = core.sample_prefixes(saved, store.open(corpus.handle), evaluate.split, config, warn)
    samples = core.continue_tokens(saved, prefixes, config)
    text = "\n\n".join(f"[{sample.prefix}]\n{sample.text}" for sample in samples)
    tracking.log_text(training.run_id, text + "\n", "samples.txt")
    drawn = core.at_temperatures(saved, prefixes[0], TEMPERATURES, config)
    rows = [[t, sample.prefix, sample.text] for t, sample in zip(TEMPERATURES, drawn, strict=True)]
    tracking.log_table(training.run_id, ["temperature", "prefix", "text"], rows, "samples.json")
    return Samples(samples, training.run_id)
