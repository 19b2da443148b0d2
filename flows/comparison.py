"""Cells side by side, with the same columns wherever they are shown: on the screen, in Markdown, as JSON."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rnnlm_core.config import NGRAM
from tasks.tracked_runs import TrackedRun, train_minutes
from tasks.wording import figure, markdown_text

ORDERS = ("started", "valid", "test")
COLUMNS = (
    "cell", "implementation", "parameters", "train", "valid", "test", "bits/char", "tokens/s", "minutes", "champion",
)  # fmt: skip
"""Perplexity on train, valid and test; minutes of training; whether it is the champion of its corpus."""


@dataclass(frozen=True)
class CellFigures:
    """What a cell came to; None for what a config does not ask for, or what a run has not got to."""

    cell: str
    implementation: str
    parameters: int | None
    train_perplexity: float | None
    valid_perplexity: float | None
    test_perplexity: float | None
    bits_per_char: float | None
    tokens_per_second: float | None
    minutes: float | None
    champion: bool

    @property
    def texts(self) -> list[str]:
        """One text per column."""
        perplexities = [self.train_perplexity, self.valid_perplexity, self.test_perplexity]
        return [
            self.cell,
            self.implementation,
            _number(self.parameters),
            *map(figure, [*perplexities, self.bits_per_char]),
            _number(self.tokens_per_second),
            "–" if self.minutes is None else f"{self.minutes:,.1f}",
            "yes" if self.champion else "",
        ]


@dataclass(frozen=True)
class TrackedCell:
    """A run of a cell and its figures."""

    run: TrackedRun
    figures: CellFigures

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data, with what identifies the run first."""
        started = datetime.fromtimestamp(self.run.started, UTC).isoformat(timespec="seconds")
        about = {key: self.run.tags.get(f"rnnlm.{key}") for key in ("corpus", "preset")}
        return {"run_id": self.run.run_id, "started": started, "status": self.run.status, **about, **vars(self.figures)}


def sorted_by(order: str, cells: Sequence[TrackedCell]) -> list[TrackedCell]:
    """Return cells newest first (`started`) or by perplexity, `valid` or `test`: lowest first, those without last."""
    if order == "started":
        return sorted(cells, key=lambda cell: -cell.run.started)

    def perplexity(cell: TrackedCell) -> float:
        value = cell.figures.valid_perplexity if order == "valid" else cell.figures.test_perplexity
        return math.inf if value is None or math.isnan(value) else value

    return sorted(cells, key=perplexity)


def of_runs(runs: Sequence[TrackedRun], champions: Collection[str]) -> list[TrackedCell]:
    """Return runs with their figures; `champions` are the ids of those whose models are champions."""
    return [TrackedCell(run, _of_run(run, run.run_id in champions)) for run in runs]


def _of_run(run: TrackedRun, champion: bool) -> CellFigures:
    metrics = run.metrics
    parameters = metrics.get("model/parameters")
    return CellFigures(
        cell=run.tags.get("rnnlm.cell", "?"),
        implementation="–" if run.tags.get("rnnlm.cell") == NGRAM else run.parameters.get("model.implementation", "?"),
        parameters=None if parameters is None else int(parameters),
        train_perplexity=metrics.get("best/train_perplexity"),
        valid_perplexity=metrics.get("best/valid_perplexity"),
        test_perplexity=metrics.get("test/perplexity"),
        bits_per_char=metrics.get(f"{run.tags.get('rnnlm.evaluated_split', 'test')}/bits_per_char"),
        tokens_per_second=metrics.get("perf/median_tokens_per_second"),
        minutes=train_minutes(run),
        champion=champion,
    )


def markdown_table(cells: Sequence[CellFigures], names: Mapping[str, str] | None = None) -> str:
    """Return the comparison as a Markdown table; `names` says, in Markdown, what to write for each cell."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for one in cells:
        cell, *rest = map(markdown_text, one.texts)
        lines.append("| " + " | ".join([(names or {}).get(one.cell, cell), *rest]) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
