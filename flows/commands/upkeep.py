"""`rnnlm verify` and `rnnlm doctor`: what is wrong, and what can be mended."""

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


def doctor() -> None:
    """Mend what can be mended: end dead runs, sweep leftovers, remove what is damaged and can be made again."""
    from tasks import workspace

    workspace.prepare_environment()
    with flows_ready():
        from tasks import health

        for done in health.repair():
            typer.echo(done)
    left = list(health.verify())
    for fault in left:
        typer.echo(fault)
    if left:
        raise IntegrityError("not all of it can be mended", f"{len(left)} faults listed above", "restore these")
