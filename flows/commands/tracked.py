"""`rnnlm compare` and `rnnlm results`: what MLflow has kept."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.screen import check_writable, news_on_screen, show, terminal_width, write_json


def compare(
    corpus: Annotated[str, typer.Option(help="Only runs on this corpus.")] = "",
    last: Annotated[int, typer.Option(help="How many runs, the newest ones.", min=1, max=1000)] = 20,
    sort: Annotated[str, typer.Option(help="started (newest first), valid or test (lowest first).")] = "started",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the runs to this file as JSON.")] = None,
) -> None:
    """Print the table of tracked runs, newest first."""
    from rnnlm_core.errors import suggestion, unknown_name
    from tasks import workspace

    workspace.prepare_environment()
    from flows.comparison import ORDERS, of_runs, sorted_by
    from flows.tables import runs_table
    from tasks.tracked_registry import champions
    from tasks.tracked_runs import tracked_cells

    if sort not in ORDERS:
        raise unknown_name("order", sort, list(ORDERS))
    if json_file is not None:
        check_writable(json_file)
    with news_on_screen():
        runs = tracked_cells(corpus, last)
        cells = sorted_by(sort, of_runs(runs, {one.run_id for one in champions().values()}))
    if json_file is not None:
        write_json(json_file, {"runs": [cell.as_json() for cell in cells]})
    if not cells:
        there = sorted({run.tags["rnnlm.corpus"] for run in tracked_cells(last=1000) if "rnnlm.corpus" in run.tags})
        if corpus and there:
            typer.echo(f"no tracked runs on corpus {corpus}: {suggestion(corpus, there)}", err=True)
        else:
            typer.echo("no tracked runs: train with `rnnlm run`", err=True)
        return
    show(runs_table(cells, terminal_width()))


def results(
    output: Annotated[Path | None, typer.Option(help="Write the page to this file instead of printing it.")] = None,
    missing: Annotated[
        str | None,
        typer.Option(
            metavar="SECTION",
            help="Print the commands of the rows instead that are not run yet or lack a figure, or of `all` sections.",
        ),
    ] = None,
) -> None:
    """Print the published figures that were reproduced, theirs beside ours.

    What was measured elsewhere or earlier is read from the file `.json` beside the page (docs/results.json if none is
    written), the rest from the tracked runs; with `--output` the file takes up what is new.
    """
    from rnnlm_core.errors import UsageError
    from tasks import workspace

    if output is not None:
        if missing is not None:
            raise UsageError("`--missing` writes no page", f"--output {output}", "leave out one of the two")
        if output.suffix == ".json":
            raise UsageError("the page must not be called as its records are", str(output), "call it …md")
        check_writable(output)
    workspace.prepare_environment()
    from flows.measured import read_measured, write_measured
    from flows.results import missing_commands, results_page, with_tracked
    from rnnlm_core.store import write_atomically

    place = (output or workspace.PROJECT / "docs" / "results.md").with_suffix(".json")
    records = with_tracked(read_measured(place))
    if missing is not None:
        typer.echo("".join(f"{command}\n" for command in missing_commands(records, missing)), nl=False)
    elif output is None:
        typer.echo(results_page(records), nl=False)
    else:
        write_measured(place, records)
        write_atomically(output.resolve(), results_page(records).encode())
