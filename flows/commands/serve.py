"""`rnnlm serve`: trained models behind HTTP, and a page to try them."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.generate import load_tracked
from flows.commands.screen import news_on_screen, warn
from rnnlm_core.errors import UsageError

if TYPE_CHECKING:
    from flows.service.models import ModelFacts, ServedModel


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A cell (gru: the newest one), an MLflow run id, or models:/NAME@ALIAS; may be repeated.",
            show_default="the cells of the last run",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.", min=0, max=65535)] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which browsers may ask, beside localhost and addresses; may be repeated."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Most tokens of a request.", min=1, max=10_000)] = 2000,
    max_beam: Annotated[int, typer.Option(help="Widest beam search of a request.", min=1, max=1000)] = 16,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.", min=1, max=1 << 24)] = 64 * 1024,
    max_seconds: Annotated[float, typer.Option(help="Longest time of a request.", min=0.1, max=86_400)] = 30.0,
    max_waiting: Annotated[int, typer.Option(help="Most requests in line; others are told to come back.", min=0)] = 256,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Requests that are worked on at once.", show_default="one per processor or model", min=1, max=256
        ),
    ] = None,
) -> None:
    """Serve models over HTTP, with a page to try a prompt; Ctrl-C ends it."""
    from tasks import workspace

    workspace.prepare_environment()
    from flows.service.limits import Limits
    from flows.service.server import Server, address_of, is_loopback, listen
    from rnnlm_core.recurrence import settled

    settled()  # builds the kernel if there is none yet: no request shall wait for that

    references = model or []
    if twice := {name for name in references if references.count(name) > 1}:
        raise UsageError("`--model` must name each model once", ", ".join(sorted(twice)), "leave the others out")
    with listen(host, port) as listener:
        models = _load(references)
        # The page asks all models at once, and each is to be seen writing.
        workers = threads or max(workspace.cpu_slots(), len(models))
        limits = Limits(
            length=max_length, beam=max_beam, body=max_body, seconds=max_seconds, waiting=max_waiting, workers=workers
        )

        def on_start() -> None:
            advice = ": keep it on this machine" if is_loopback(listener) else ""
            typer.echo(f"serving {_listed(models)} on {address_of(listener)} (no login{advice})")
            sys.stdout.flush()

        if not is_loopback(listener):
            warn("there is no login: everybody who reaches this address can use these models")

        from flows.service.app import create_app

        Server(create_app(models, limits, allowed_host or ()), on_start).run([listener])
    typer.echo("stopped", err=True)


def _load(references: list[str]) -> "dict[str, ServedModel]":
    from flows.service.models import served_model
    from tasks import tracked_runs

    with news_on_screen():
        if references:
            return {name: served_model(name, *load_tracked(name)) for name in references}
        runs = tracked_runs.last_trained_cells()
        return {(cell := run.tags["rnnlm.cell"]): served_model(cell, load_tracked(run.run_id)[0], run) for run in runs}


def _listed(models: "dict[str, ServedModel]") -> str:
    """Return what is served, by corpus: "gru, rnn of python-docs"."""
    corpora: dict[str, list[ModelFacts]] = {}
    for served in models.values():
        corpora.setdefault(served.facts.corpus or "", []).append(served.facts)
    return "; ".join(
        ", ".join(facts.name for facts in several) + (f" of {corpus}" if corpus else "")
        for corpus, several in corpora.items()
    )
