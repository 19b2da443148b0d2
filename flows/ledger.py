"""The stages of a run as they end: which were done or found done, which cells failed, what each came to."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture, as_completed

from rnnlm_core.corpus import Corpus
from rnnlm_core.download import Source, Text
from rnnlm_core.errors import Stopped
from rnnlm_core.outcomes import Evaluated
from rnnlm_core.statistics import FACTS, Statistics
from rnnlm_core.statistics import PICTURE as ZIPF
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import progress, tracked_inputs, tracking, workspace
from tasks.evaluate import TrackedEvaluation
from tasks.generate import Samples
from tasks.progress import News
from tasks.tracked_runs import TEXT
from tasks.tracking import FlowRun
from tasks.train import TrackedTraining

Result = TypeVar("Result")
CELL_STAGES = ("train", "evaluate", "generate", "dynamic_evaluation")
ON_A_WORKER = "train on a worker"


@dataclass(frozen=True)
class CellStages:
    """The stages of one cell, under way."""

    train: PrefectFuture[TrackedTraining]
    evaluate: PrefectFuture[TrackedEvaluation]
    generate: PrefectFuture[Samples]
    on_worker: PrefectFuture[None] | None = None
    """The wait for a worker that does the training; the stage `train` then finds it done."""
    dynamic_evaluation: PrefectFuture[Evaluated] | None = None


class Ledger:
    """Waits for stages in order, tells who listens, and counts what was executed and what was found cached."""

    def __init__(self, run: FlowRun, source: Source) -> None:
        self.run, self.source = run, source
        self.started = time.monotonic()
        self.counts = {"executed": 0, "cached": 0}
        self.results: dict[tuple[str, str], Any] = {}
        self.outcomes: dict[tuple[str, str], str] = {}
        self.cells: dict[str, tuple[TrackedTraining, Samples, bool]] = {}
        self.failures: dict[str, Exception] = {}
        self.unlearnt: dict[str, Exception] = {}
        """Of cells that stay, why they have no figure of dynamic evaluation."""

    def take(self, stage: str, future: PrefectFuture[Result], cell: str = "") -> Result:
        """Wait for a stage and return its result; what it raised is raised here."""
        result = future.result()
        self.note(stage, result, future.state.name == "Cached", cell)
        return result

    def note(self, stage: str, result: object, cached: bool, cell: str = "") -> None:
        """Take a stage that is over."""
        self.counts["cached" if cached else "executed"] += 1
        self.results[stage, cell], self.outcomes[stage, cell] = result, "cached" if cached else "done"
        progress.publish(News(stage, cell, done=self.outcomes[stage, cell]))

    def take_cells(self, cells: Mapping[str, CellStages]) -> None:
        """Wait for the stages of all cells, whichever is first; the failure of one is kept, the others go on."""
        under_way = {(stage, cell): getattr(stages, stage) for cell, stages in cells.items() for stage in CELL_STAGES}
        names = {future: name for name, future in under_way.items() if future is not None}
        # First: if a worker fails, its reason is the reason.
        names = {stages.on_worker: (ON_A_WORKER, cell) for cell, stages in cells.items() if stages.on_worker} | names
        for future in as_completed(list(names)):
            stage, cell = names[future]
            try:
                if stage == ON_A_WORKER:
                    future.result()
                else:
                    self.take(stage, future, cell)
            except Exception as error:  # noqa: BLE001 - kept, and raised at the end
                self._take_failure(stage, cell, error)
        for cell, stages in cells.items():
            if cell not in self.failures:
                cached = stages.train.state.name == "Cached"
                self.cells[cell] = (self.results["train", cell], self.results["generate", cell], cached)

    def _take_failure(self, stage: str, cell: str, error: Exception) -> None:
        # What waited for a failed stage fails as well: the first failure is the reason.
        kept = self.failures
        if stage == "dynamic_evaluation" and not isinstance(error, Stopped | UnfinishedRun):
            kept = self.unlearnt  # one figure less: nothing that comes after needs it
        first = kept.setdefault(cell, error) is error
        self.outcomes[stage, cell] = "failed" if first else "not reached"
        if first:
            progress.warn(stage, f"failed: {error}", cell)

    def note_corpus(self, text: Text, corpus: Corpus, vocabulary: BuiltVocabulary) -> None:
        """Note on the parent run which corpus is read, before its cells note it too: MLflow takes a new one once."""
        tracking.set_tags(self.run.parent_run_id, {TEXT: text.handle.sha256})
        tracked_inputs.log_corpus(self.run.parent_run_id, self.run.corpus, corpus, vocabulary)

    def describe(self, eos: str, corpus: Corpus, vocabulary: BuiltVocabulary, text: Statistics) -> None:
        """Note on the parent run what the text looks like and what each split holds."""
        facts: dict[str, float] = {"vocabulary/size": vocabulary.size, "text/tokens_counted": text.num_tokens}
        for grams in text.grams:
            facts[f"text/{grams.name}_types"] = grams.num_types
            if grams.exponent is not None:
                facts[f"text/{grams.name}_zipf_exponent"] = grams.exponent
        for name, split in corpus.splits.items():
            facts |= {f"corpus/{name}_tokens": split.num_tokens, f"corpus/{name}_oov_rate": split.oov_rate}
        run_id = self.run.parent_run_id
        tracking.log_metrics(run_id, facts)
        tracking.set_tags(run_id, {"rnnlm.corpus_sha256": corpus.handle.sha256, "rnnlm.eos": eos})
        folder = workspace.store().path(text.handle)
        for file in (ZIPF, FACTS):
            tracking.log_file(run_id, folder / file, "text")

    def done(self) -> list[str]:
        """Return the cells whose stages all succeeded; raises the first failure if there is none."""
        if not self.cells:
            raise next(iter(self.failures.values()))
        return list(self.cells)

    def learnt(self, cell: str) -> Evaluated | None:
        """Return what dynamic evaluation of a cell came to, None where nobody has asked for it."""
        found: Evaluated | None = self.results.get(("dynamic_evaluation", cell))
        return found

    def dynamic_perplexity(self, cell: str) -> float | None:
        """Return the perplexity of dynamic evaluation, None where nobody has asked for it."""
        found = self.learnt(cell)
        return None if found is None else found.perplexity

    def reasons(self) -> str:
        """Return why cells, or figures of them, are not there."""
        every = [*self.failures.items(), *self.unlearnt.items()]
        return "; ".join(f"{cell}: {error}" for cell, error in every)
