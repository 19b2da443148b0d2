"""`rnnlm verify` and `rnnlm doctor`: what is wrong, and what can be mended."""

from typing import Annotated

import typer

from flows.commands.screen import flows_ready, news_on_screen
from rnnlm_core.errors import IntegrityError


def verify() -> None:
    """Check every artifact, checkpoint, record, logged model and database; exit 4 if something is wrong."""
    from tasks import workspace

    workspace.prepare_environment()
    from tasks import health

    found = 0
    with news_on_screen():
        for fault in health.verify():
            found += 1
            typer.echo(fault)
    if found:
        remedy = "`rnnlm doctor` removes what the next run makes again"
        raise IntegrityError("the project is damaged", f"{found} faults listed above", remedy)
    typer.echo("everything is whole", err=True)


def doctor(
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only show what `verify` finds and, after a move of the folder, what would be changed in MLflow.",
        ),
    ] = False,
) -> None:
    """Mend what can be mended: end dead runs, sweep leftovers, remove what is damaged and can be made again.

    After a move of the project folder MLflow is told the new places first; its database is copied before.
    """
    from tasks import workspace

    workspace.prepare_environment()
    with news_on_screen():
        _relocate(dry_run)
    if dry_run:
        _show_faults()
        return
    with flows_ready():
        from tasks import health

        for done in health.repair():
            typer.echo(done)
    if left := _show_faults():
        raise IntegrityError("not all of it can be mended", f"{left} faults listed above", "restore these")


def _relocate(dry_run: bool) -> None:
    """Settle the places of a moved folder, before MLflow is opened; or say what would be changed."""
    from tasks import relocation

    move = relocation.find_move()
    if move is not None:
        for line in relocation.plan(move) if dry_run else relocation.relocate(move):
            typer.echo(line)


def _show_faults() -> int:
    """Print what is wrong, and return how much of it there is."""
    from tasks import health

    found = list(health.verify())
    for fault in found:
        typer.echo(fault)
    return len(found)
