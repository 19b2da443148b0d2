"""Cells side by side, with the same columns wherever they are shown: on the screen, in Markdown, as JSON."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rnnlm_core.config import CELLS, NGRAM
from tasks.tracked_runs import TrackedRun, train_minutes
from tasks.wording import figure, markdown_text

ORDERS = ("started", "valid", "test")
COLUMNS = (
    "cell", "implementation", "parameters", "train", "valid", "test", "bits/char", "tokens/s", "minutes", "champion",
)  # fmt: skip
"""Perplexity on train, valid, test; minutes of training; whether it is the champion of its corpus."""
DYNAMIC = "dynamic"
"""The column that stands after `test` where somebody has asked for it: the perplexity of dynamic evaluation."""


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
    dynamic_perplexity: float | None = None
    """Of dynamic evaluation, on the split that `bits_per_char` is of."""

    @property
    def texts(self) -> dict[str, str]:
        """One text per column."""
        return {
            "cell": self.cell,
            "implementation": self.implementation,
            "parameters": _number(self.parameters),
            "train": figure(self.train_perplexity),
            "valid": figure(self.valid_perplexity),
            "test": figure(self.test_perplexity),
            DYNAMIC: figure(self.dynamic_perplexity),
            "bits/char": figure(self.bits_per_char),
            "tokens/s": _number(self.tokens_per_second),
            "minutes": "–" if self.minutes is None else f"{self.minutes:,.1f}",
            "champion": "yes" if self.champion else "",
        }


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


def implementation_of(cell: str, asked: str) -> str:
    """Return how a cell is written: n-grams not at all, those of other packages as one step, ours as was asked."""
    if cell == NGRAM:
        return "–"
    return asked if cell in CELLS or not cell else "step"


def of_runs(runs: Sequence[TrackedRun], champions: Collection[str]) -> list[TrackedCell]:
    """Return runs with their figures; `champions` are the ids of those whose models are champions."""
    return [TrackedCell(run, _of_run(run, run.run_id in champions)) for run in runs]


def _of_run(run: TrackedRun, champion: bool) -> CellFigures:
    metrics = run.metrics
    split = run.tags.get("rnnlm.evaluated_split", "test")
    parameters = metrics.get("model/parameters")
    return CellFigures(
        cell=run.tags.get("rnnlm.cell", "?"),
        implementation=implementation_of(
            run.tags.get("rnnlm.cell", ""), run.parameters.get("model.implementation", "?")
        ),
        parameters=None if parameters is None else int(parameters),
        train_perplexity=metrics.get("best/train_perplexity"),
        valid_perplexity=metrics.get("best/valid_perplexity"),
        test_perplexity=metrics.get("test/perplexity"),
        bits_per_char=metrics.get(f"{split}/bits_per_char"),
        tokens_per_second=metrics.get("perf/median_tokens_per_second"),
        minutes=train_minutes(run),
        champion=champion,
        dynamic_perplexity=metrics.get(f"{split}/dynamic_perplexity"),
    )


def columns(cells: Sequence[CellFigures]) -> list[str]:
    """Return the columns of a table of these cells."""
    after = COLUMNS.index("test") + 1
    dynamic = [DYNAMIC] if any(one.dynamic_perplexity is not None for one in cells) else []
    return [*COLUMNS[:after], *dynamic, *COLUMNS[after:]]


def markdown_table(cells: Sequence[CellFigures], names: Mapping[str, str] | None = None) -> str:
    """Return the comparison as a Markdown table; `names` says, in Markdown, what to write for each cell."""
    heads = columns(cells)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in cells:
        texts = {column: markdown_text(text) for column, text in one.texts.items()}
        texts["cell"] = (names or {}).get(one.cell, texts["cell"])
        lines.append("| " + " | ".join(texts[column] for column in heads) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
