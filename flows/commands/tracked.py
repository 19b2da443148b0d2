"""`rnnlm compare` and `rnnlm results`: what MLflow has kept."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.screen import check_writable, news_on_screen, show


def compare(
    corpus: Annotated[str, typer.Option(help="Only runs on this corpus.")] = "",
    last: Annotated[int, typer.Option(help="How many runs, newest first.", min=1, max=1000)] = 20,
) -> None:
    """Print the table of tracked runs, newest first."""
    from tasks import workspace

    workspace.prepare_environment()
    from flows.tables import runs_table
    from tasks.tracked_runs import tracked_cells

    with news_on_screen():
        runs = tracked_cells(corpus, last)
    if not runs:
        where = f" on corpus {corpus}" if corpus else ""
        typer.echo(f"no tracked runs{where}: train with `rnnlm run`", err=True)
        return
    show(runs_table(runs))


def results(
    output: Annotated[Path | None, typer.Option(help="Write the page to this file instead of printing it.")] = None,
) -> None:
    """Print the published figures that were reproduced, theirs beside ours, from the tracked runs."""
    from tasks import workspace

    if output is not None:
        check_writable(output)
    workspace.prepare_environment()
    from flows.results import results_page
    from rnnlm_core.store import write_atomically

    page = results_page()
    if output is None:
        typer.echo(page, nl=False)
    else:
        write_atomically(output.resolve(), page.encode())
