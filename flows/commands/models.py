"""`rnnlm models` and `rnnlm promote`: the versions of each corpus's model, and which one is the champion."""

import re
from typing import Annotated

import typer

from flows.commands.screen import news_on_screen, show, terminal_width
from rnnlm_core.errors import UsageError

VERSION = re.compile(r"(?:models:/)?([^/@:]+)/(\d+)")


def models(
    corpus: Annotated[str, typer.Option(help="Only the model of this corpus (a name, path or address).")] = "",
) -> None:
    """List the registered models: each version, its perplexity, and why it is (not) the champion."""
    from tasks import workspace

    workspace.prepare_environment()
    from flows.tables import versions_table
    from tasks.tracked_registry import model_of, versions

    with news_on_screen():
        found = versions(model_of(corpus) if corpus else "")
    if not found:
        typer.echo("no registered models: train with `rnnlm run`", err=True)
        return
    show(versions_table(found, terminal_width()))


def promote(
    reference: Annotated[
        str, typer.Argument(help="A cell (gru: the newest one), an MLflow run id, or NAME/VERSION.", metavar="REF")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Move the champion even against the rule.")
    ] = False,
    rollback: Annotated[
        str, typer.Option(help="Give the champion's place of this corpus or model back.", metavar="CORPUS|NAME")
    ] = "",
) -> None:
    """Make a model the champion of its corpus, if its validation perplexity is lower; or roll back."""
    from tasks import workspace

    if bool(reference) == bool(rollback) or (rollback and force):
        given = " ".join(
            word for word in (reference, "--force" if force else "", "--rollback" if rollback else "") if word
        )
        raise UsageError("give a REF, or --rollback CORPUS", given or "nothing", "for example `rnnlm promote gru`")
    workspace.prepare_environment()
    from tasks import tracked_champion, tracked_registry, tracked_runs

    with news_on_screen():
        if rollback:
            before, now = tracked_champion.roll_back(tracked_registry.model_of(rollback))
            typer.echo(f"champion of {now.name}: {now.cell}, version {now.number} again, after version {before.number}")
            return
        if found := VERSION.fullmatch(reference):
            name, number = found[1], int(found[2])
        elif "@" in reference:
            raise UsageError("an alias is no version", reference, "give NAME/VERSION, as `rnnlm models` lists them")
        else:
            version = tracked_champion.enrol(tracked_runs.find_model_run(reference).run_id)
            name, number = version.name, version.number
        verdict = tracked_champion.promote(name, number, force=force)
    if not (verdict.wins or force):
        remedy = "`--force` makes it the champion all the same"
        raise UsageError("not promoted", f"version {number} of {name}: {verdict.reason}", remedy)
    forced = "" if verdict.wins else "forced: "
    typer.echo(f"champion of {name}: version {number} ({forced}{verdict.reason})")
