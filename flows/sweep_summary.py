"""What a sweep comes to: its trials, the best of them, and how to have it again."""

import shlex
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact
from rich.table import Table

from flows.tables import plain_table
from rnnlm_core.search import Plan
from tasks import tracked_trials, tracking
from tasks.studies import COMPLETE, FAILED, PRUNED, Finished
from tasks.tracking import FlowRun
from tasks.wording import figure

SHOWN = 10


def summarize(plan: Plan, trials: Sequence[Finished], run_id: str) -> dict[str, Any]:
    """Return the sweep in the shape of `rnnlm sweep --json`; trials best first, those that failed last."""
    rows = [_row(plan, trial) for trial in trials]
    rows.sort(key=_rank)
    states = [row["state"] for row in rows]
    best = rows[0] if COMPLETE in states else None
    return {
        "sweep": plan.name,
        "preset": plan.preset,
        "corpus": plan.source.name,
        "cells": list(plan.config.cells),
        "search": {dimension.key: dimension.text for dimension in plan.dimensions},
        "trials": rows,
        "counts": {state: states.count(state) for state in (COMPLETE, PRUNED, FAILED)},
        "best": best and {**best, **_again(plan, trials, best)},
        "parent_run_id": run_id,
    }


def _row(plan: Plan, trial: Finished) -> dict[str, Any]:
    best = trial.outcome.best
    return {
        "number": trial.number,
        "state": trial.outcome.state,
        "cell": plan.cell(trial.values),
        "settings": plan.changed(trial.values),
        "valid_perplexity": best and best[1],
        "best_epoch": best and best[0],
        "epochs": max(trial.outcome.curve, default=0),
        "reason": trial.outcome.reason,
        "run_id": trial.run_id,
        "training_run_id": trial.outcome.training_run_id,
    }


def _rank(row: dict[str, Any]) -> tuple[Any, ...]:
    state = (COMPLETE, PRUNED, FAILED).index(row["state"])
    value = float("inf") if row["valid_perplexity"] is None else row["valid_perplexity"]
    return (state, value, row["number"])


def _again(plan: Plan, trials: Sequence[Finished], best: dict[str, Any]) -> dict[str, str]:
    (values,) = (trial.values for trial in trials if trial.number == best["number"])
    told = f"The best of {len(trials)} trials: validation perplexity {figure(best['valid_perplexity'])}."
    return {
        "command": shlex.join(["rnnlm", *plan.command(values)]),
        "preset_function": plan.preset_function(values, told),
    }


def publish(summary: dict[str, Any], run: FlowRun) -> None:
    """Write the result on the sweep's run in MLflow, and into Prefect's page."""
    counts, best = summary["counts"], summary["best"]
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    tags = {f"rnnlm.trials_{state}": str(number) for state, number in counts.items()}
    note = f"{len(summary['trials'])} trials ({told})."
    if best is not None:
        note += f" The best is trial {best['number']}:\n\n    {best['command']}\n"
        tags |= {"rnnlm.best_trial": str(best["number"]), "rnnlm.best_run": best["training_run_id"]}
    figures = None if best is None else (len(summary["trials"]), best["valid_perplexity"])
    tracked_trials.describe_sweep(run, note, tags, figures)
    table = markdown_table(summary)
    tracking.log_text(run.parent_run_id, table, "trials.md")
    create_markdown_artifact(key="sweep", markdown=f"{note}\n{table}", description=summary["sweep"])


def table_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of the table of trials."""
    keys = [key for key in summary["search"] if key != "cell"]
    heads = ["trial", "cell", *(key.partition(".")[2] for key in keys), "valid", "epoch", "state", "run id"]
    rows = [
        [
            str(row["number"]),
            row["cell"],
            *(str(row["settings"].get(key, "–")) for key in keys),
            figure(row["valid_perplexity"]),
            str(row["best_epoch"] or "–"),
            row["state"],
            row["training_run_id"],
        ]
        for row in summary["trials"]
    ]
    return heads, rows


def trials_table(summary: dict[str, Any]) -> Table:
    """Return the best trials as a table for people."""
    heads, rows = table_rows(summary)
    shown = rows[:SHOWN]
    counts = ", ".join(f"{number} {state}" for state, number in summary["counts"].items() if number)
    more = f", the best {len(shown)} of them" if len(shown) < len(rows) else ""
    table = plain_table(*heads)
    for row in shown:
        table.add_row(*row)
    table.title = f"sweep {summary['sweep']} · trials: {counts}{more} · validation perplexity"
    return table


def markdown_table(summary: dict[str, Any]) -> str:
    """Return all trials as a Markdown table."""
    heads, rows = table_rows(summary)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)) + "\n"
