"""What a run comes to: the figures of each cell, the version that is registered, the report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefect.artifacts import create_markdown_artifact

from flows.comparison import CellFigures, markdown_table
from flows.ledger import Ledger
from flows.report import publish
from rnnlm_core.compare import PICTURE, TABLE, Compared, Row
from rnnlm_core.config import CELLS, NGRAM
from rnnlm_core.errors import PartialError
from tasks import dynamic_evaluation, tracked_champion, tracked_notes, tracking, workspace
from tasks.tracked_registry import Version
from tasks.train import minutes
from tasks.wording import figure


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


def finish(ledger: Ledger, compared: Compared) -> RunSummary:
    """Close the books: the parent run gets table, picture and links. Raises `PartialError` if a cell failed."""
    cells = {row.cell: _summary(ledger, row) for row in compared.rows}
    folder = workspace.store().path(compared.handle)
    tracking.link_children(
        ledger.run,
        {cell: summary.run_id for cell, summary in cells.items()},
        [cell for cell, summary in cells.items() if not summary.cached],
    )
    _note_dynamic_evaluations(ledger, cells)
    best = tracked_champion.register(cells[compared.best_cell].run_id, ledger.run.preset, ledger.run.corpus)
    figures = [_figures(ledger, row, best) for row in compared.rows]
    _describe_result(ledger, cells, compared.best_cell, figures)
    table = markdown_table(figures)
    for name in (PICTURE, TABLE):
        tracking.log_file(ledger.run.parent_run_id, folder / name)
    tracking.log_text(ledger.run.parent_run_id, table, "comparison.md")
    devices = sorted({trained.trained.device for trained, _, _ in ledger.cells.values()})
    result_tags = {"rnnlm.best_cell": compared.best_cell, "rnnlm.device": ", ".join(devices)}
    tracking.set_tags(ledger.run.parent_run_id, result_tags)
    create_markdown_artifact(key="comparison", markdown=table, description=f"{ledger.run.preset} · {ledger.run.corpus}")
    seconds = time.monotonic() - ledger.started
    summary = RunSummary(
        preset=ledger.run.preset,
        corpus=ledger.run.corpus,
        cells=cells,
        best_cell=compared.best_cell,
        parent_run_id=ledger.run.parent_run_id,
        seconds=seconds,
        tasks=dict(ledger.counts),
        model=RegisteredCell(best.name, best.number, best.champion, best.reason),
        report=str(publish(ledger, compared, seconds)),
    )
    if ledger.failures:
        raise PartlyDoneError(summary, ledger.reasons())
    if ledger.unlearnt:
        raise PartlyDoneError(summary, ledger.reasons(), "no figure of dynamic evaluation", "all else is done")
    return summary


def _note_dynamic_evaluations(ledger: Ledger, cells: Mapping[str, CellSummary]) -> None:
    settings = {key: value for key, value in ledger.run.parameters if key.startswith("evaluate.dynamic_")}
    for cell, summary in cells.items():
        if (found := ledger.learnt(cell)) is not None:
            dynamic_evaluation.note(summary.run_id, found, settings)


def _describe_result(
    ledger: Ledger, cells: Mapping[str, CellSummary], best: str, figures: Sequence[CellFigures]
) -> None:
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
    tracked_notes.note_pipeline(ledger.run, best, result, markdown_table(figures, links), found, ledger.reasons())


def _implementation(cell: str, asked: str) -> str:
    """Return how a cell is written: n-grams not at all, those of other packages as one step."""
    return asked if cell in CELLS else "–" if cell == NGRAM else "scratch"


def _figures(ledger: Ledger, row: Row, best: Version) -> CellFigures:
    trained = ledger.cells[row.cell][0]
    return CellFigures(
        cell=row.cell,
        implementation=_implementation(row.cell, dict(ledger.run.parameters)["model.implementation"]),
        parameters=row.parameters,
        train_perplexity=row.train_perplexity,
        valid_perplexity=row.valid_perplexity,
        test_perplexity=row.test_perplexity,
        bits_per_char=row.bits_per_char,
        tokens_per_second=row.tokens_per_second,
        minutes=minutes(trained.trained),
        champion=best.champion and trained.run_id == best.run_id,
        dynamic_perplexity=ledger.dynamic_perplexity(row.cell),
    )


def _summary(ledger: Ledger, row: Row) -> CellSummary:
    trained, samples, cached = ledger.cells[row.cell]
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
        dynamic_perplexity=ledger.dynamic_perplexity(row.cell),
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
