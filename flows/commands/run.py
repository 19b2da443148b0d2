"""`rnnlm run` and `rnnlm smoke`: the chain, and what it came to."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.screen import check_writable, flows_ready, show, warn
from rnnlm_core.errors import ConfigError


def run(
    preset: Annotated[
        str, typer.Option(help="Complete config to start from; `rnnlm presets` lists them.")
    ] = "quickstart",
    corpus: Annotated[str | None, typer.Option(help="Another text: a name, a path or an http(s) address.")] = None,
    cells: Annotated[str | None, typer.Option(help="Cells to train, comma-separated: rnn,gru,lstm.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; may be repeated.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this file as JSON.")] = None,
) -> None:
    """Train the cells on a text, measure them, let them write, and compare."""
    from rnnlm_core.download import resolve
    from rnnlm_core.inspection import inspect
    from rnnlm_core.presets import run_config

    chosen = [part.strip() for part in cells.split(",") if part.strip()] if cells is not None else None
    keys = parse_changes(changes or [])
    config = run_config(preset, corpus, chosen, keys)
    inspect(resolve(config.corpus.name), config)
    if json_file is not None:
        check_writable(json_file)
    summary = _run_flow(preset, corpus, chosen, keys, json_file)
    _print_summary(summary)


def smoke() -> None:
    """Run the whole chain, tiny, and check it; exit 0 only if every check held."""
    from tasks import workspace

    workspace.prepare_environment()
    with flows_ready():
        from flows.smoke import smoke as smoke_flow

        checks = smoke_flow()
    for check in checks:
        typer.echo(f"{'ok' if check['held'] else 'FAILED':<7} {check['what']}")
    if not all(check["held"] for check in checks):
        raise typer.Exit(1)


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
    preset: str, corpus: str | None, cells: list[str] | None, changes: dict[str, str], json_file: Path | None
) -> dict[str, Any]:
    from tasks import workspace

    workspace.prepare_environment()
    with flows_ready():
        from flows.language_model import language_model
        from flows.summary import PartlyDoneError

        try:
            summary: dict[str, Any] = language_model(preset, corpus, cells, changes)
        except PartlyDoneError as error:
            summary = error.summary.as_json()
            write_json(json_file, summary)
            _print_summary(summary)
            raise
    write_json(json_file, summary)
    return summary


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield (dotted place, value) of every infinity and NaN in plain data."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _not_finite(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _not_finite(part, f"{place}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, value


def write_json(path: Path | None, summary: dict[str, Any]) -> None:
    """Write a summary to a file, if one is given, in JSON that everybody reads."""
    from rnnlm_core.compare import finite
    from rnnlm_core.store import write_atomically

    if path is not None:
        # `null` alone would look like a figure that nobody asked for.
        flag = {place: str(value) for place, value in _not_finite(summary)}
        content = {**finite(summary), **({"not_finite": flag} if flag else {})}
        write_atomically(path.resolve(), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _print_summary(summary: dict[str, Any]) -> None:
    from flows.tables import summary_table, ui_commands
    from tasks import workspace

    for place, value in _not_finite(summary):
        warn(f"{place} is {value}: no figure to compare with")
    show(summary_table(summary))
    for cell, figures in summary["cells"].items():
        typer.echo(f"{cell} writes: {figures['samples'][0]}\n")
    done, found = summary["tasks"]["executed"], summary["tasks"]["cached"]
    if done:
        typer.echo(f"{done} stages done, {found} cached, {summary['seconds']:.0f} s of work\n")
    else:
        typer.echo(f"nothing to do: all {found} stages are cached\n")
    for line in ui_commands(workspace.tracking_uri()):
        typer.echo(line)
