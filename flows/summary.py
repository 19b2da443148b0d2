"""What a run comes to: which stages were done or found done, which cells failed, and the figures of each cell."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture, as_completed

from flows.comparison import CellFigures, markdown_table
from flows.report import publish
from rnnlm_core.compare import PICTURE, TABLE, Compared, Row
from rnnlm_core.config import NGRAM
from rnnlm_core.corpus import Corpus
from rnnlm_core.download import Source, Text
from rnnlm_core.errors import PartialError, Stopped
from rnnlm_core.outcomes import Evaluated
from rnnlm_core.statistics import FACTS, Statistics
from rnnlm_core.statistics import PICTURE as ZIPF
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import dynamic_evaluation, progress, tracked_champion, tracked_inputs, tracked_notes, tracking, workspace
from tasks.evaluate import TrackedEvaluation
from tasks.generate import Samples
from tasks.progress import News
from tasks.tracked_registry import Version
from tasks.tracked_runs import TEXT
from tasks.tracking import FlowRun
from tasks.train import TrackedTraining, minutes
from tasks.wording import figure

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


@dataclass(frozen=True)
class CellSummary:
    """One cell's figures; None where the config asks for none."""

    run_id: str
    train_perplexity: float
    valid_perplexity: float | None
    test_perplexity: float | None
    bits_per_char: float
    tokens_per_second: float
    parameters: int
    epochs: int
    cached: bool
    samples: tuple[str, ...]
    dynamic_perplexity: float | None = None
    """On the split that `bits_per_char` is of."""


@dataclass(frozen=True)
class RegisteredCell:
    """The version that holds the best cell, and whether (and why, or why not) it is the champion of its corpus."""

    name: str
    version: int
    champion: bool
    reason: str


@dataclass(frozen=True)
class RunSummary:
    """The whole run, in the shape of `rnnlm run --json`."""

    preset: str
    corpus: str
    cells: dict[str, CellSummary]
    best_cell: str
    parent_run_id: str
    seconds: float
    tasks: dict[str, int]
    report: str
    """The path of the report."""
    model: RegisteredCell | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return asdict(self)


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

    def finish(self, compared: Compared) -> RunSummary:
        """Close the books: the parent run gets table, picture and links. Raises `PartialError` if a cell failed."""
        cells = {row.cell: self._summary(row) for row in compared.rows}
        folder = workspace.store().path(compared.handle)
        tracking.link_children(
            self.run,
            {cell: summary.run_id for cell, summary in cells.items()},
            [cell for cell, summary in cells.items() if not summary.cached],
        )
        self._note_dynamic_evaluations(cells)
        best = tracked_champion.register(cells[compared.best_cell].run_id, self.run.preset, self.run.corpus)
        figures = [self._figures(row, best) for row in compared.rows]
        self._describe_result(cells, compared.best_cell, figures)
        table = markdown_table(figures)
        for name in (PICTURE, TABLE):
            tracking.log_file(self.run.parent_run_id, folder / name)
        tracking.log_text(self.run.parent_run_id, table, "comparison.md")
        devices = sorted({trained.trained.device for trained, _, _ in self.cells.values()})
        result_tags = {"rnnlm.best_cell": compared.best_cell, "rnnlm.device": ", ".join(devices)}
        tracking.set_tags(self.run.parent_run_id, result_tags)
        create_markdown_artifact(key="comparison", markdown=table, description=f"{self.run.preset} · {self.run.corpus}")
        seconds = time.monotonic() - self.started
        summary = RunSummary(
            preset=self.run.preset,
            corpus=self.run.corpus,
            cells=cells,
            best_cell=compared.best_cell,
            parent_run_id=self.run.parent_run_id,
            seconds=seconds,
            tasks=dict(self.counts),
            model=RegisteredCell(best.name, best.number, best.champion, best.reason),
            report=str(publish(self, compared, seconds)),
        )
        if self.failures:
            raise PartlyDoneError(summary, self._reasons())
        if self.unlearnt:
            raise PartlyDoneError(summary, self._reasons(), "no figure of dynamic evaluation", "all else is done")
        return summary

    def _note_dynamic_evaluations(self, cells: Mapping[str, CellSummary]) -> None:
        settings = {key: value for key, value in self.run.parameters if key.startswith("evaluate.dynamic_")}
        for cell, summary in cells.items():
            if (found := self._learnt(cell)) is not None:
                dynamic_evaluation.note(summary.run_id, found, settings)

    def _learnt(self, cell: str) -> Evaluated | None:
        found: Evaluated | None = self.results.get(("dynamic_evaluation", cell))
        return found

    def dynamic_perplexity(self, cell: str) -> float | None:
        """Return the perplexity of dynamic evaluation, None where nobody has asked for it."""
        found = self._learnt(cell)
        return None if found is None else found.perplexity

    def _reasons(self) -> str:
        every = [*self.failures.items(), *self.unlearnt.items()]
        return "; ".join(f"{cell}: {error}" for cell, error in every)

    def _describe_result(self, cells: Mapping[str, CellSummary], best: str, figures: Sequence[CellFigures]) -> None:
        """Say on the parent run's page what came of it, with links to the run of each cell."""
        links = tracked_notes.links({cell: summary.run_id for cell, summary in cells.items()})
        found = [links[cell] for cell, summary in cells.items() if summary.cached]
        one = cells[best]
        which, measured = next(
            (name, value)
            for name, value in (
                ("", one.test_perplexity),
                ("valid ", one.valid_perplexity),
                ("train ", one.train_perplexity),
            )
            if value is not None
        )
        chosen = "chosen by training" if one.valid_perplexity is None else "chosen by validation"
        result = f"{which}ppl {figure(measured)}, {chosen} perplexity"
        tracked_notes.note_pipeline(self.run, best, result, markdown_table(figures, links), found, self._reasons())

    def _figures(self, row: Row, best: Version) -> CellFigures:
        trained = self.cells[row.cell][0]
        return CellFigures(
            cell=row.cell,
            implementation="–" if row.cell == NGRAM else dict(self.run.parameters)["model.implementation"],
            parameters=row.parameters,
            train_perplexity=row.train_perplexity,
            valid_perplexity=row.valid_perplexity,
            test_perplexity=row.test_perplexity,
            bits_per_char=row.bits_per_char,
            tokens_per_second=row.tokens_per_second,
            minutes=minutes(trained.trained),
            champion=best.champion and trained.run_id == best.run_id,
            dynamic_perplexity=self.dynamic_perplexity(row.cell),
        )

    def _summary(self, row: Row) -> CellSummary:
        trained, samples, cached = self.cells[row.cell]
        return CellSummary(
            run_id=trained.run_id,
            train_perplexity=row.train_perplexity,
            valid_perplexity=row.valid_perplexity,
            test_perplexity=row.test_perplexity,
            bits_per_char=row.bits_per_char,
            tokens_per_second=row.tokens_per_second,
            parameters=row.parameters,
            epochs=row.epochs,
            cached=cached,
            samples=tuple(sample.text for sample in samples.samples),
            dynamic_perplexity=self.dynamic_perplexity(row.cell),
        )


class PartlyDoneError(PartialError):
    """Some cells, or figures of them, failed; carries the summary of what is done."""

    def __init__(
        self,
        summary: RunSummary,
        reasons: str,
        what: str = "some cells failed",
        remedy: str = "run the same command again: only they are trained",
    ) -> None:
        super().__init__(what, reasons, remedy)
        self.summary = summary
