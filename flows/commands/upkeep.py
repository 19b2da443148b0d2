"""`rnnlm verify` and `rnnlm doctor`: what is wrong, and what can be mended."""

from typing import Annotated

import typer

from flows.commands.screen import flows_ready, news_on_screen
from rnnlm_core.errors import IntegrityError, UsageError

Copies = Annotated[
    bool,
    typer.Option(
        "--remote", metavar="", help="Also read every copy in the store that `RNNLM_STORE` names, to its last byte."
    ),
]


def verify(remote: Copies = False) -> None:
    """Check every artifact, checkpoint, record, logged model and database; exit 4 if something is wrong."""
    from tasks import workspace

    workspace.prepare_environment()
    _check_remote(remote)
    from tasks import health

    found = 0
    with news_on_screen():
        for fault in health.verify(remote):
            found += 1
            typer.echo(fault)
    if found:
        remedy = "`rnnlm doctor` removes what the next run makes again"
        raise IntegrityError("the project is damaged", f"{found} faults listed above", remedy)
    unread = f" (`--remote` would read the copies in {workspace.remote()} too)" if workspace.remote() else ""
    typer.echo("everything is whole" + ("" if remote else unread), err=True)


def doctor(
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only show what `verify` finds and, after a move of the folder, what would be changed in MLflow.",
        ),
    ] = False,
    remote: Copies = False,
) -> None:
    """Mend what can be mended: end dead runs, sweep leftovers, remove what is damaged and can be made again.

    After a move of the project folder MLflow is told the new places first; its database is copied before.
    """
    from tasks import workspace

    workspace.prepare_environment()
    _check_remote(remote)
    with news_on_screen():
        _relocate(dry_run)
    if dry_run:
        if not _show_faults(remote):
            typer.echo("nothing is damaged", err=True)
        return
    with flows_ready():
        from tasks import health

        for done in health.repair(remote):
            typer.echo(done)
    if left := _show_faults(remote):
        raise IntegrityError("not all of it can be mended", f"{left} faults listed above", "restore these")


def _relocate(dry_run: bool) -> None:
    """Settle the places of a moved folder, before MLflow is opened; or say what would be changed."""
    from tasks import relocation

    move = relocation.find_move()
    if move is not None:
        for line in relocation.plan(move) if dry_run else relocation.relocate(move):
            typer.echo(line)


def _check_remote(asked: bool) -> None:
    from tasks import workspace

    if asked and workspace.remote() is None:
        raise UsageError("`--remote` needs a store that hosts share", "", "set `RNNLM_STORE`, or leave the option out")


def _show_faults(remote: bool) -> int:
    """Print what is wrong, and return how much of it there is."""
    from tasks import health

    found = list(health.verify(remote))
    for fault in found:
        typer.echo(fault)
    return len(found)
