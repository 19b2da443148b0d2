"""docs/performance.md: the tables of one run between two marks; what stands around them is written by hand."""

from pathlib import Path
from typing import Any

from benchmarks.rows import Figure, Row
from rnnlm_core.errors import DataError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
START = "<!-- measured: begin, written by `make bench` -->"
END = "<!-- measured: end -->"
TITLES = {
    "step": "One update at the book's size",
    "word": "One update at word level",
    "cells": "Three cells, whole",
    "target": "Time to the book's training perplexity",
    "text": "Text to corpus",
    "memory": "Memory of the text stages (peak resident set)",
    "generate": "Generation",
    "overhead": "What the pipeline costs when nothing is to be done",
}
HEADS = (
    "case",
    "unit",
    "ours",
    "beside",
    "theirs",
    "processor time, ours / theirs",
    "ratio",
    "target",
    "met",
    "% of bound",
)


def render(results: dict[str, Any], page: str) -> str:
    """Return the page with the tables of `results` between its marks.

    Raises `DataError` when the page has no marks.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise DataError("the page has no place for the tables", PAGE.name, f"put `{START}` and `{END}` into it")
    return f"{before}{START}\n\n{tables(results)}\n{END}{after}"


def tables(results: dict[str, Any]) -> str:
    """Return the measured part of the page: the machine, then a table per case."""
    parts = [_machine(results)]
    if results["quick"]:
        parts.append("**Tiny sizes (`--quick`): no figures to believe.**\n")
    rows = [Row.from_json(fields) for fields in results["rows"]]
    for case, about in results["cases"].items():
        of_case = [row for row in rows if row.case == case]
        parts += [f"### {TITLES[case]} (`{case}`)\n", _line(HEADS), _line(["---"] * len(HEADS))]
        parts += [_line(_cells(row)) for row in of_case]
        notes = dict.fromkeys(f"- {row.name}: {row.note}." for row in of_case if row.note)
        parts += ["", *notes] if notes else []
        parts.append(
            f"\n{about['seconds']:.0f} s, load {about['load_before']} before and {about['load_after']} after.\n"
        )
    return "\n".join(parts)


def _machine(results: dict[str, Any]) -> str:
    about = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    where = "" if about["device"] == "cpu" else f"trained on {about['device']}; "
    return (
        f"{about['date']} · {where}{about['processor']}, {about['cores']} cores, {about['system']}, "
        f"PyTorch's own number of threads {about['threads']} · {versions}\n"
    )


def _cells(row: Row) -> list[str]:
    target = "–" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g}"
    return [
        row.name,
        row.unit,
        _figure(row.ours),
        row.peer_name or "–",
        _figure(row.peer),
        " / ".join(_number(one.cpu if one else None) for one in (row.ours, row.peer)),
        "–" if row.ratio is None else f"**{row.ratio:.2f}**",
        target,
        {True: "yes", False: "no", None: "–" if row.target is None else "no"}[row.met],
        "–" if row.bound is None else f"{row.bound:.0f}",
    ]


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    if figure.count == 1:
        return _number(figure.median)
    return f"{_number(figure.median)} ({_number(figure.p25)}, {_number(figure.best)})"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
