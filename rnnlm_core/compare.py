"""Cells side by side: the table people read, and the curves of all cells in one picture."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rnnlm_core.config import NGRAM
from rnnlm_core.outcomes import Evaluated, Trained
from rnnlm_core.pictures import save_picture
from rnnlm_core.store import Handle, Store

PICTURE = "perplexity.png"
TABLE = "table.json"
# A palette that stays apart for colour-blind eyes and in print.
COLOURS = {"rnn": "#0072B2", "gru": "#D55E00", "lstm": "#009E73", "ngram": "#CC79A7"}
OTHER_COLOURS = ("#E69F00", "#56B4E9", "#000000", "#F0E442")


@dataclass(frozen=True)
class Row:
    """One cell of a comparison; figures that a config does not ask for are None."""

    cell: str
    train_perplexity: float
    valid_perplexity: float | None
    test_perplexity: float | None
    bits_per_char: float
    tokens_per_second: float
    parameters: int
    epochs: int
    best_epoch: int


@dataclass(frozen=True)
class Compared:
    """What `compare` returns: an artifact with table and picture, the rows, and the best cell."""

    handle: Handle
    rows: tuple[Row, ...]
    best_cell: str


def compare(trained: Sequence[Trained], evaluated: Sequence[Evaluated], store: Store) -> Compared:
    """Put the cells beside each other; the best has the lowest validation (else training) perplexity."""
    rows = tuple(_row(t, e) for t, e in zip(trained, evaluated, strict=True))
    best = min(rows, key=_rank)
    with store.draft("comparison") as draft:
        table = finite([asdict(row) for row in rows])
        (draft.folder / TABLE).write_text(json.dumps(table, indent=1, allow_nan=False))
        plot_perplexity(trained, draft.folder / PICTURE)
        return Compared(draft.publish(), rows, best.cell)


def _rank(row: Row) -> float:
    """Return what the best cell has least of; no comparison would tell that a NaN is not the least."""
    value = row.train_perplexity if row.valid_perplexity is None else row.valid_perplexity
    return value if math.isfinite(value) else math.inf


def finite(value: Any) -> Any:
    """Return plain data without the infinities and NaNs that JSON has no word for: None instead."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(trained: Trained, evaluated: Evaluated) -> Row:
    return Row(
        cell=trained.cell,
        train_perplexity=trained.best.train_perplexity,
        valid_perplexity=trained.best.valid_perplexity,
        test_perplexity=evaluated.perplexity if evaluated.split == "test" else None,
        bits_per_char=evaluated.bits_per_char,
        tokens_per_second=trained.tokens_per_second,
        parameters=trained.num_parameters,
        epochs=len(trained.history),
        best_epoch=trained.best_epoch,
    )


def plot_perplexity(trained: Sequence[Trained], path: Path) -> None:
    """Draw perplexity against epoch, a colour per cell: validation solid, training dotted, n-grams as a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    draw_perplexity(trained, figure.add_subplot())
    figure.legend(loc="outside upper center", frameon=False, ncols=max(1, len(trained)))  # over no curve
    save_picture(figure, path)


def draw_perplexity(trained: Sequence[Trained], axes: Any) -> None:
    """Draw the curves of `plot_perplexity` into axes of matplotlib's."""
    from matplotlib.ticker import MaxNLocator

    others = [one.cell for one in trained if one.cell not in COLOURS]
    for one in trained:
        colour = COLOURS.get(one.cell) or OTHER_COLOURS[others.index(one.cell) % len(OTHER_COLOURS)]
        if one.cell == NGRAM:  # a level for the others to get below
            level, split = one.best.valid_perplexity, "valid"
            if level is None:
                level, split = one.best.train_perplexity, "train"
            axes.axhline(level, color=colour, linestyle="--", label=f"{one.cell} {split}")
            continue
        epochs = [epoch.number for epoch in one.history]
        marker = "o" if len(epochs) <= 30 else ""
        held_out = one.history[0].valid_perplexity is not None
        axes.plot(
            epochs,
            [epoch.train_perplexity for epoch in one.history],
            color=colour,
            linestyle=":" if held_out else "-",
            marker="" if held_out else marker,
            markersize=3,
            label=f"{one.cell} train",
        )
        if held_out:
            valid = [epoch.valid_perplexity or math.nan for epoch in one.history]
            axes.plot(epochs, valid, color=colour, marker=marker, markersize=3, label=f"{one.cell} valid")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.25, which="both")
