"""Tables for people: the result of a run, and the tracked runs."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.comparison import DYNAMIC, TrackedCell, columns
from rnnlm_core.download import without_password
from rnnlm_core.errors import one_line
from rnnlm_core.statistics import Statistics
from tasks.tracked_registry import Version
from tasks.wording import figure
from tasks.workspace import PROJECT

NUMBERS = (
    "train", "valid", "test", "dynamic", "bits/char", "tokens/s", "weights", "parameters", "epochs", "minutes",
    "version",
)  # fmt: skip

LESS_WANTED = (
    "implementation", "tokens/s", "parameters", "bits/char", "minutes", "train", "status", "preset", "dynamic",
    "started", "champion", "valid",
)  # fmt: skip
"""Columns of the tracked runs in the order in which a terminal that is too narrow does without them."""
LESS_WANTED_OF_VERSIONS = ("why (not)", "registered", "text", "test")
"""The same of the registered versions."""


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the comparison of a run's cells; the best is marked."""
    dynamic = [DYNAMIC] if any(f["dynamic_perplexity"] is not None for f in summary["cells"].values()) else []
    table = plain_table(
        "cell", "train", "valid", "test", *dynamic, "bits/char", "tokens/s", "weights", "epochs", "cached"
    )
    for cell, f in summary["cells"].items():
        table.add_row(
            f"{cell} *" if cell == summary["best_cell"] else cell,
            figure(f["train_perplexity"]),
            figure(f["valid_perplexity"]),
            figure(f["test_perplexity"]),
            *(figure(f["dynamic_perplexity"]) for _ in dynamic),
            figure(f["bits_per_char"]),
            f"{f['tokens_per_second']:,.0f}",
            f"{f['parameters']:,}",
            str(f["epochs"]),
            "yes" if f["cached"] else "no",
        )
    table.title = f"{summary['preset']} · {summary['corpus']} · perplexity on train, valid, test (* best)"
    return table


def verdict_line(summary: dict[str, Any]) -> str:
    """Return what the registry made of the best cell, in one line."""
    model, cell = summary["model"], summary["best_cell"]
    version = f"version {model['version']}"
    if model["champion"]:
        return f"champion of {model['name']}: {cell}, {version} ({model['reason']})"
    return f"{cell} is {version} of {model['name']} and not its champion: {model['reason']}"


def runs_table(cells: Sequence[TrackedCell], width: int | None = None) -> Table:
    """Return tracked cell runs, one line each; what does not fit into `width` is left out, and named below."""
    heads = ["started", *columns([cell.figures for cell in cells]), "corpus", "preset", "status", "run id"]
    rows = [
        {
            "started": moment(cell.run.started),
            **cell.figures.texts,
            "corpus": cell.run.tags.get("rnnlm.corpus", "?"),
            "preset": cell.run.tags.get("rnnlm.preset", "?"),
            "status": cell.run.status.lower(),
            "run id": cell.run.run_id,
        }
        for cell in cells
    ]
    return _fitting(heads, rows, width, LESS_WANTED, " (all are in --json FILE)")


def _fitting(
    heads: list[str], rows: Sequence[dict[str, str]], width: int | None, less_wanted: Sequence[str], advice: str = ""
) -> Table:
    """Return a table without the `less_wanted` columns that `width` has no room for, which its caption names."""
    left_out = [head for head in less_wanted if head in heads]
    dropped: list[str] = []
    while True:
        table = plain_table(*(head for head in heads if head not in dropped))
        for row in rows:
            table.add_row(*(row[head] for head in heads if head not in dropped))
        if dropped:
            table.caption = f"left out for want of width: {', '.join(dropped)}{advice}"
        if width is None or len(dropped) == len(left_out) or table_width(table) <= width:
            return table
        dropped.append(left_out[len(dropped)])


def plain_console() -> Console:
    """Return a console that shows tokens and names as they are, and tables as wide as they are."""
    return Console(width=1000, highlight=False, markup=False, emoji=False)


def table_width(table: Table) -> int:
    """Return how wide a table is where nothing hinders it, its caption apart."""
    return plain_console().measure(table).maximum


def versions_table(versions: Sequence[Version], width: int | None = None) -> Table:
    """Return the versions of registered models, one line each, with what tells why (not) the champion."""
    heads = ["model", "text", "version", "cell", "valid", "test", "registered", "champion", "why (not)"]
    rows = [
        {
            "model": one.name,
            "text": one_line(one.tags.get("rnnlm.corpus", "")),
            "version": str(one.number),
            "cell": one.cell,
            "valid": figure(one.valid_perplexity),
            "test": figure(one.test_perplexity),
            "registered": moment(one.created),
            "champion": "yes" if one.champion else "",
            "why (not)": one_line(one.reason),
        }
        for one in versions
    ]
    return _fitting(heads, rows, width, LESS_WANTED_OF_VERSIONS, " (`rnnlm models | less -S` has all)")


def moment(seconds: float) -> str:
    """Return a time since 1970 as the minute it was here."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def grams_table(found: Statistics) -> Table:
    """Return the most frequent n-grams side by side, with the number of types and Zipf's exponent of each n."""
    heads = []
    for grams in found.grams:
        exponent = "" if grams.exponent is None else f", α {grams.exponent:.2f}"
        heads.append(f"{grams.name}s ({grams.num_types:,} types{exponent})")
    table = plain_table(*heads)
    for row in zip_longest(*(grams.top for grams in found.grams)):
        table.add_row(*("" if entry is None else f"{_shown(entry[0])}  {entry[1]:,}" for entry in row))
    return table


def _shown(tokens: tuple[str, ...]) -> str:
    """Return tokens as they can be told apart in a line: white space and what cannot be printed quoted."""
    return " ".join(token if token.isprintable() and not token.isspace() else repr(token) for token in tokens)


def ui_commands(tracking_uri: str) -> list[str]:
    """Return the two commands that open the user interfaces (of an MLflow that runs already, its address)."""
    shown = without_password(tracking_uri)
    if tracking_uri.startswith(("http://", "https://")):
        runs = shown
    elif shown == tracking_uri:
        runs = _command("mlflow", f"ui --backend-store-uri {shlex.quote(tracking_uri)}")
    else:  # the shell knows the password, and no screen or log needs to
        runs = _command("mlflow", f'ui --backend-store-uri "$MLFLOW_TRACKING_URI"  # {shown}')
    # In the project folder Prefect finds its home by itself.
    its_own = Path.cwd() == PROJECT and Path(os.environ["PREFECT_HOME"]) == PROJECT / ".prefect"
    elsewhere = "" if its_own else f"PREFECT_HOME={shlex.quote(os.environ['PREFECT_HOME'])} "
    return [
        "see the runs in MLflow:     " + runs,
        "see the stages in Prefect:  " + elsewhere + _command("prefect", "server start"),
    ]


def _command(name: str, arguments: str) -> str:
    """Return a command as it can be typed here: by name if that finds ours, else by path."""
    ours = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found) == ours:
        return f"{name} {arguments}"
    here = Path.cwd()
    return f"{ours.relative_to(here) if ours.is_relative_to(here) else ours} {arguments}"


def plain_table(*columns: str) -> Table:
    """Return an empty table with these heads; columns of figures stand to the right."""
    table = Table(
        box=SIMPLE_HEAD,
        title_justify="left",
        title_style="",
        caption_justify="left",
        caption_style="",
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        numeric = column in NUMBERS
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    return table
