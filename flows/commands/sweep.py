"""`rnnlm sweep`: the settings with the lowest validation perplexity."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.run import parse_cells, parse_changes, write_json
from flows.commands.screen import check_writable, flows_ready, show
from rnnlm_core.errors import PartialError


def sweep(
    preset: Annotated[str, typer.Option(help="Config to start from; `rnnlm presets` lists them.")] = "quickstart",
    corpus: Annotated[str | None, typer.Option(help="Another text: a name, a path or an http(s) address.")] = None,
    cells: Annotated[
        str | None, typer.Option(help="Cells, comma-separated: rnn,gru,lstm,ngram. Of several, each trial has one.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Fix a config key; may be repeated.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=SPACE",
            help="Vary a key of model.* or train.*: KEY=64,128,256 (one of these), KEY=0..0.6 (between) or "
            "KEY=log:0.1..4 (between, in the logarithm); may be repeated, and replaces the default: learning_rate, "
            "hidden_size, num_layers, dropout, clip_norm and weight_decay around the values of the preset.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="How many trials the sweep shall have in the end.", min=1, max=100_000)
    ] = 20,
    name: Annotated[
        str | None, typer.Option(help="What the sweep is called; default: after all of the above but --trials.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all trials to this file as JSON.")] = None,
) -> None:
    """Search the settings with the lowest validation perplexity; the same command goes on with the same sweep.

    Trials that are worse than half of the others are pruned. The test split is not looked at.
    """
    from rnnlm_core.inspection import inspect
    from rnnlm_core.search import make_plan

    chosen = parse_cells(cells)
    keys = parse_changes(changes or [])
    plan = make_plan(preset, corpus, chosen, keys, search, name)
    inspect(plan.source, plan.hungriest)
    if json_file is not None:
        check_writable(json_file)
    typer.echo(f"sweep {plan.name}", err=True)
    summary = _done(plan, trials)
    if summary is None:
        with flows_ready():
            from flows.sweep import sweep as sweep_flow

            summary = sweep_flow(preset, corpus, chosen, keys, search, trials, name)
    else:
        typer.echo("nothing to do: all trials are done", err=True)
    write_json(json_file, summary)
    _print_summary(summary)


def _done(plan: Any, trials: int) -> dict[str, Any] | None:
    """Return what a sweep has come to if it has as many trials already, without starting anything."""
    from tasks import workspace

    workspace.prepare_environment()
    from flows.sweep_summary import summarize
    from tasks.studies import find_study

    if plan.source.cache_identity() is None:  # it may hold another text today
        return None
    found = find_study(plan)
    if found is None:
        return None
    with closing(found) as study:
        run_id = study.closed_run(trials)
        return summarize(plan, study.finished(), run_id) if run_id else None


def _print_summary(summary: dict[str, Any]) -> None:
    from flows.sweep_summary import trials_table
    from flows.tables import ui_commands
    from tasks import workspace

    show(trials_table(summary))
    best = summary["best"]
    if best is None:
        reasons = "; ".join(sorted({row["reason"] for row in summary["trials"] if row["reason"]}))
        remedy = "search other values, such as a smaller train.learning_rate"
        raise PartialError("no trial of the sweep was completed", reasons or "all were pruned", remedy)
    typer.echo("the best, as a command:\n")
    typer.echo(f"{best['command']}\n")
    typer.echo("and as a preset, for rnnlm_core/presets.py:\n")
    typer.echo(best["preset_function"])
    for line in ui_commands(workspace.tracking_uri()):
        typer.echo(line)
