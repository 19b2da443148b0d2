"""`rnnlm run` and `rnnlm smoke`: the chain, and what it came to."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.screen import check_writable, flows_ready, not_finite, show, warn, write_json
from rnnlm_core.errors import ConfigError, RnnlmError, UsageError


def run(
    preset: Annotated[
        str, typer.Option(help="Complete config to start from; `rnnlm presets` lists them.")
    ] = "quickstart",
    corpus: Annotated[str | None, typer.Option(help="Another text: a name, a path or an http(s) address.")] = None,
    cells: Annotated[
        str | None, typer.Option(help="Cells to train, comma-separated: rnn,gru,lstm; ngram is the baseline to beat.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that train a cell together: --set train.processes=N.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; may be repeated.")
    ] = None,
    runner: Annotated[
        str,
        typer.Option(metavar="local|dask[:HOST:PORT]|ray[:HOST:PORT]", help="Who works on the shards of a long text."),
    ] = "local",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this file as JSON.")] = None,
    on_workers: Annotated[
        bool,
        typer.Option(
            "--on-workers", metavar="", help="Train each cell as a flow run of its own, on any worker of the pool."
        ),
    ] = False,
) -> None:
    """Train the cells on a text, measure them, let them write, and compare."""
    from flows import runners
    from rnnlm_core.download import resolve
    from rnnlm_core.inspection import inspect
    from rnnlm_core.presets import run_config

    chosen = parse_cells(cells)
    keys = parse_changes(changes or [])
    if processes is not None:
        if keys.get("train.processes", str(processes)) != str(processes):
            asked = f"{processes} and {keys['train.processes']}"
            raise UsageError("`--processes` and `--set train.processes` are one setting", asked, "give one of them")
        keys["train.processes"] = str(processes)
    config = run_config(preset, corpus, chosen, keys)
    runners.check(runners.parse(runner))
    inspect(resolve(config.corpus.name), config)
    if json_file is not None:
        check_writable(json_file)
    summary = _run_flow(preset, corpus, chosen, keys, runner, json_file, on_workers)
    _print_summary(summary)


def smoke(
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append what came of it to this file, in Markdown, also when a check failed; "
            'for CI: --summary "$GITHUB_STEP_SUMMARY".',
        ),
    ] = None,
) -> None:
    """Run the whole chain, tiny, and check it; exit 0 only if every check held."""
    from tasks import workspace

    if summary is not None:
        check_writable(summary, append=True)
    workspace.prepare_environment()
    try:
        with flows_ready():
            from flows.smoke import ChecksFailedError
            from flows.smoke import smoke as smoke_flow

            try:
                outcome = smoke_flow()
            except ChecksFailedError as error:
                outcome = error.outcome
    except Exception as error:
        _summarize_error(error, summary)
        raise
    for check in outcome["checks"]:
        typer.echo(f"{'ok' if check['held'] else 'FAILED':<7} {check['what']}")
    if summary is not None:
        from flows import smoke_summary

        smoke_summary.append(summary, smoke_summary.of_outcome(outcome))
    if not all(check["held"] for check in outcome["checks"]):
        raise typer.Exit(1)


def _summarize_error(error: Exception, summary: Path | None) -> None:
    if summary is not None:
        from flows import smoke_summary

        try:
            smoke_summary.append(summary, smoke_summary.of_error(error))
        except RnnlmError as problem:  # what ended the flow is what the command ends with
            warn(str(problem))


def parse_cells(cells: str | None) -> list[str] | None:
    """Return the names that are asked for, separated by commas or blanks."""
    return None if cells is None else cells.replace(",", " ").split()


def parse_changes(changes: list[str]) -> dict[str, str]:
    mistakes = [
        f"`--set` takes KEY=VALUE: {change}: for example --set train.epochs=3"
        for change in changes
        if not change.partition("=")[0].strip() or "=" not in change
    ]
    if mistakes:
        raise ConfigError(*mistakes)
    return {key.strip(): value for key, _, value in (change.partition("=") for change in changes)}


def _run_flow(
    preset: str,
    corpus: str | None,
    cells: list[str] | None,
    changes: dict[str, str],
    runner: str,
    json_file: Path | None,
    on_workers: bool,
) -> dict[str, Any]:
    from tasks import workspace

    workspace.prepare_environment()
    with flows_ready():
        from flows.language_model import language_model
        from flows.summary import PartlyDoneError

        try:
            summary: dict[str, Any] = language_model(preset, corpus, cells, changes, runner, on_workers)
        except PartlyDoneError as error:
            summary = error.summary.as_json()
            write_json(json_file, summary)
            _print_summary(summary)
            raise
    write_json(json_file, summary)
    return summary


def _print_summary(summary: dict[str, Any]) -> None:
    from flows.tables import summary_table, ui_commands, verdict_line
    from tasks import workspace

    for place, value in not_finite(summary):
        warn(f"{place} is {value}: no figure to compare with")
    show(summary_table(summary))
    for cell, figures in summary["cells"].items():
        typer.echo(f"{cell} writes: {figures['samples'][0]}\n")
    typer.echo(verdict_line(summary) + "\n")
    done, found = summary["tasks"]["executed"], summary["tasks"]["cached"]
    if done:
        typer.echo(f"{done} stages done, {found} cached, {summary['seconds']:.0f} s of work\n")
    else:
        typer.echo(f"nothing to do: all {found} stages are cached\n")
    typer.echo(f"read the report:            {summary['report']}")
    for line in ui_commands(workspace.tracking_uri()):
        typer.echo(line)
