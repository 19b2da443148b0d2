"""The `rnnlm` command: results on standard output, everything else on standard error.

Heavy imports wait inside the commands, so that help is instant and mistakes are told before anything starts.
"""

import errno
import io
import json
import math
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnnlm_core.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    ResourceError,
    RnnlmError,
    UsageError,
    one_line,
    suggestion,
)

if TYPE_CHECKING:
    from rnnlm_core.model import SavedModel

INTERRUPTED = 130

app = typer.Typer(
    name="rnnlm",
    help="Recurrent language models (RNN, GRU, LSTM): train, compare, track and sample, on any text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


corpora_app = typer.Typer()
app.add_typer(corpora_app, name="corpora")
presets_app = typer.Typer()
app.add_typer(presets_app, name="presets")


@app.callback()
def _every_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["RNNLM_DEBUG"] = "1"


@app.command()
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
    keys = _parse_changes(changes or [])
    config = run_config(preset, corpus, chosen, keys)
    inspect(resolve(config.corpus.name), config)
    if json_file is not None:
        _check_writable(json_file)
    summary = _run_flow(preset, corpus, chosen, keys, json_file)
    _print_summary(summary)


@app.command()
def smoke() -> None:
    """Run the whole chain, tiny, and check it; exit 0 only if every check held."""
    from tasks import workspace

    workspace.prepare_environment()
    with _flows_ready():
        from flows.smoke import smoke as smoke_flow

        checks = smoke_flow()
    for check in checks:
        typer.echo(f"{'ok' if check['held'] else 'FAILED':<7} {check['what']}")
    if not all(check["held"] for check in checks):
        raise typer.Exit(1)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="A cell of the last run (gru), an MLflow run id, or models:/NAME@ALIAS.")],
    prefix: Annotated[list[str], typer.Option(help="Text to continue; several are continued as one batch.")],
    length: Annotated[int, typer.Option(help="Tokens to add (1 to 10000).")] = 200,
    temperature: Annotated[float, typer.Option(help="0 = greedy; above, the text gets freer (up to 5).")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among the so many likeliest tokens; 0 = all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens of this probability together; 1 = all.")
    ] = 1.0,
    beam: Annotated[int, typer.Option(help="Beam search with so many continuations (at temperature 0).")] = 1,
    length_penalty: Annotated[
        float | None, typer.Option(help="Beam search ranks by log P / length^this.", show_default="0.75")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, tokens that occurred are less likely.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Token that ends the text; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws the same text again (with temperature above 0).")] = None,
    unknown: Annotated[
        str, typer.Option(help="Prefix tokens outside the vocabulary: `map` to <unk>, or `error`.")
    ] = "error",
    stream: Annotated[bool, typer.Option("--stream", help="Print each token as soon as it is there.")] = False,
) -> None:
    """Print the prefix and its continuation."""
    from rnnlm_core.config import GenerateConfig, RunConfig, override

    settings: dict[str, Any] = {
        "generate.length": length,
        "generate.temperature": temperature,
        "generate.top_k": top_k,
        "generate.top_p": top_p,
        "generate.beam": beam,
        "generate.repetition_penalty": repetition_penalty,
        "generate.stop": stop or [],
        "generate.unknown": unknown,
        "generate.prefixes": prefix,
    }
    for key, value in (("generate.seed", seed), ("generate.length_penalty", length_penalty)):
        if value is not None:
            settings[key] = value
    config: GenerateConfig = override(RunConfig(), settings).generate
    if stream and (len(prefix) > 1 or beam > 1):
        raise UsageError(
            "`--stream` prints one text as it grows", "several prefixes or --beam", "leave one of them out"
        )

    from rnnlm_core.generate import continue_texts, stream_text

    with _news_on_screen():
        saved = _load(model)
    if not stream:
        for sample in continue_texts(saved, prefix, config, _warn):
            typer.echo(sample.text)
        return
    for piece in stream_text(saved, prefix[0], config, _warn):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


@app.command()
def compare(
    corpus: Annotated[str, typer.Option(help="Only runs on this corpus.")] = "",
    last: Annotated[int, typer.Option(help="How many runs, newest first.", min=1, max=1000)] = 20,
) -> None:
    """Print the table of tracked runs, newest first."""
    from tasks import workspace

    workspace.prepare_environment()
    from flows.tables import runs_table
    from tasks.tracked_runs import tracked_cells

    with _news_on_screen():
        runs = tracked_cells(corpus, last)
    if not runs:
        where = f" on corpus {corpus}" if corpus else ""
        typer.echo(f"no tracked runs{where}: train with `rnnlm run`", err=True)
        return
    _print(runs_table(runs))


@corpora_app.callback(invoke_without_command=True)
def corpora(context: typer.Context) -> None:
    """List the corpora that have a name, or `show` one."""
    from rnnlm_core.catalogue import CATALOGUE

    if context.invoked_subcommand is not None:
        return
    for entry in CATALOGUE.values():
        size = sum(file.num_bytes for file in entry.files)
        where = f"{size / 1e6:.1f} MB to download" if size else "embedded"
        typer.echo(f"{entry.name:<14} {entry.title} · {where} · {entry.licence}")


@corpora_app.command("show")
def show_corpus(
    name: Annotated[str, typer.Argument(help="A name, a path or an http(s) address.")],
    level: Annotated[str | None, typer.Option(help="char, word, byte or bpe; default: that of its figures.")] = None,
    normalizer: Annotated[str | None, typer.Option(help="Default: the corpus's own.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to put the rank-frequency plot (PNG).")] = None,
) -> None:
    """Print the most frequent tokens, pairs and triples of a text, and plot their counts (Zipf's law)."""
    import shutil

    from rnnlm_core.config import LINE_KEEPING
    from rnnlm_core.download import download, resolve
    from rnnlm_core.inspection import check_split
    from rnnlm_core.presets import run_config
    from tasks import workspace

    source = resolve(name)
    changes = {"corpus.normalizer": normalizer} if normalizer is not None else {}
    if "whole" not in dict(source.files):
        changes["corpus.split"] = "given"
    if level is not None:
        changes["tokenizer.level"] = level
    if level not in (None, "word") or normalizer not in (None, *LINE_KEEPING):
        changes["tokenizer.eos"] = "none"
    config = run_config(corpus=name, changes=changes)
    check_split(source, config.corpus)
    if plot is not None:
        _check_writable(plot)

    from flows.tables import grams_table
    from rnnlm_core.statistics import PICTURE, statistics
    from rnnlm_core.tokenize import tokenize

    typer.echo(f"reading {source.name} …", err=True)
    store = workspace.store()
    cut = config.tokenizer
    tokens = tokenize(
        download(source, store).handle, config.corpus.normalizer, cut.level, store,
        eos=cut.eos, bpe_size=cut.bpe_size, shares=config.corpus.shares,
    )  # fmt: skip
    found = statistics(tokens, store)
    counts = ", ".join(f"{split} {number:,}" for split, number in tokens.num_tokens.items())
    typer.echo(f"{source.name} · {cut.level} tokens: {counts} · normalizer {config.corpus.normalizer} · eos {cut.eos}")
    _print(grams_table(found))
    picture = store.path(found.handle) / PICTURE
    if plot is not None:
        shutil.copyfile(picture, plot)
    typer.echo(f"rank-frequency plot: {plot or picture}")


@app.command()
def verify() -> None:
    """Check every artifact, checkpoint, record, logged model and database; exit 4 if something is wrong."""
    from tasks import workspace

    workspace.prepare_environment()
    from tasks import health

    found = 0
    with _news_on_screen():
        for fault in health.verify():
            found += 1
            typer.echo(fault)
    if found:
        remedy = "`rnnlm doctor` removes what the next run makes again"
        raise IntegrityError("the project is damaged", f"{found} faults listed above", remedy)
    typer.echo("everything is whole", err=True)


@app.command()
def doctor() -> None:
    """Mend what can be mended: end dead runs, sweep leftovers, remove what is damaged and can be made again."""
    from tasks import workspace

    workspace.prepare_environment()
    with _flows_ready():
        from tasks import health

        for done in health.repair():
            typer.echo(done)
    left = list(health.verify())
    for fault in left:
        typer.echo(fault)
    if left:
        raise IntegrityError("not all of it can be mended", f"{len(left)} faults listed above", "restore these")


@presets_app.callback(invoke_without_command=True)
def presets(context: typer.Context) -> None:
    """List the presets, or `show` every key of one."""
    from rnnlm_core.presets import PRESETS

    if context.invoked_subcommand is not None:
        return
    for name, make in PRESETS.items():
        typer.echo(f"{name:<18} {(make.__doc__ or '').strip().splitlines()[0]}")


@presets_app.command("show")
def show_preset(name: Annotated[str, typer.Argument(help="One of `rnnlm presets`.")] = "quickstart") -> None:
    """Print every key of the config, as `--set` takes it, with the preset's value."""
    from rnnlm_core.config import flatten
    from rnnlm_core.presets import run_config

    for key, value in flatten(run_config(name)).items():
        typer.echo(f"{key} = {','.join(value) if isinstance(value, tuple) else value}")


@app.command()
def results(
    output: Annotated[Path | None, typer.Option(help="Write the page to this file instead of printing it.")] = None,
) -> None:
    """Print the published figures that were reproduced, theirs beside ours, from the tracked runs."""
    from tasks import workspace

    if output is not None:
        _check_writable(output)
    workspace.prepare_environment()
    from flows.results import results_page
    from rnnlm_core.store import write_atomically

    page = results_page()
    if output is None:
        typer.echo(page, nl=False)
    else:
        write_atomically(output.resolve(), page.encode())


def _warn(text: str) -> None:
    typer.echo(f"warning: {one_line(text)}", err=True)


def _parse_changes(changes: list[str]) -> dict[str, str]:
    mistakes = [
        f"`--set` takes KEY=VALUE: {change}: for example --set train.epochs=3"
        for change in changes
        if not change.partition("=")[0].strip() or "=" not in change
    ]
    if mistakes:
        raise ConfigError(*mistakes)
    return {key.strip(): value for key, _, value in (change.partition("=") for change in changes)}


def _check_writable(path: Path) -> None:
    """Raise `ResourceError` if no file of this name can be written; tried out, because permissions are not all."""
    try:
        place = path.resolve()
        if place.exists() and not place.is_file():  # what is written takes the place of what is there
            raise OSError(errno.EINVAL, "Is a directory" if place.is_dir() else "no regular file")
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        remedy = "give the name of a file in a folder that exists"
        raise ResourceError("cannot write the results", f"{path} ({error.strerror})", remedy) from error


def _run_flow(
    preset: str, corpus: str | None, cells: list[str] | None, changes: dict[str, str], json_file: Path | None
) -> dict[str, Any]:
    from tasks import workspace

    workspace.prepare_environment()
    with _flows_ready():
        from flows.language_model import language_model
        from flows.summary import PartlyDoneError

        try:
            summary: dict[str, Any] = language_model(preset, corpus, cells, changes)
        except PartlyDoneError as error:
            summary = error.summary.as_json()
            _write_json(json_file, summary)
            _print_summary(summary)
            raise
    _write_json(json_file, summary)
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


@contextmanager
def _flows_ready() -> Iterator[None]:
    """Have a Prefect API at hand and the news of the flow on the screen."""
    from flows.server import prefect_api

    with prefect_api() as api:
        if api.own:
            typer.echo("starting Prefect's own server (5 to 30 s) …", err=True)
        else:
            api.check()
        from prefect import tags

        import flows.language_model  # noqa: F401 - heavy: imported while the server starts
        from tasks import processes, tracking_database

        with _news_on_screen():
            tracking_database.experiment_id()  # opens MLflow's database, also while the server starts
            with api.ready(), tags(processes.flow_run_tag()):
                yield


@contextmanager
def _news_on_screen() -> Iterator[None]:
    """Show what is told while something works or waits."""
    from flows.display import Display
    from tasks.progress import listening

    with Display() as display, listening(display.hear):
        yield


def _write_json(path: Path | None, summary: dict[str, Any]) -> None:
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
        _warn(f"{place} is {value}: no figure to compare with")
    _print(summary_table(summary))
    for cell, figures in summary["cells"].items():
        typer.echo(f"{cell} writes: {figures['samples'][0]}\n")
    done, found = summary["tasks"]["executed"], summary["tasks"]["cached"]
    if done:
        typer.echo(f"{done} stages done, {found} cached, {summary['seconds']:.0f} s of work\n")
    else:
        typer.echo(f"nothing to do: all {found} stages are cached\n")
    for line in ui_commands(workspace.tracking_uri()):
        typer.echo(line)


def _print(table: Any) -> None:
    from rich.console import Console

    # As wide as it is: a terminal wraps what a table that shrinks would hide. Tokens and names are shown as they are.
    Console(width=1000, highlight=False, markup=False, emoji=False).print(table)


def _load(reference: str) -> "SavedModel":
    """Return the model a reference names: from the store, or from MLflow's copy of it."""
    from tasks import workspace

    workspace.prepare_environment()
    from rnnlm_core.model import load_model
    from rnnlm_core.store import Handle
    from tasks import tracked_models, tracked_runs

    if reference.startswith("models:/"):
        return load_model(tracked_models.model_files(reference))
    found = tracked_runs.find_model_run(reference)
    digest = found.tags.get("rnnlm.model_sha256", "")
    if not digest:
        raise DataError("this run has no model", f"{reference} ({found.status})", "run the training again")
    handle = Handle("model", digest)
    place = workspace.store().path(handle)
    fault = workspace.store().fault(handle)
    if not fault:
        return load_model(place)
    if "rnnlm.model_uri" not in found.tags:
        raise IntegrityError(f"the model {fault}, and MLflow has no copy", place, "run the training again")
    if fault != "is missing":  # that is no damage: artifacts may be removed
        _warn(f"the model {fault}, MLflow's copy is read instead: {place}")
    return load_model(tracked_models.model_files(found.tags["rnnlm.model_uri"]))


def main() -> None:
    """Run the command line; every error a user can cause is one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character gets its escape
            stream.reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        _main()
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _: object) -> None:
    """End as on Ctrl-C: what is under way closes its runs and keeps its checkpoints."""
    _fail("terminated: run the same command again to go on", 128 + number)


def _main() -> None:
    try:
        code = app(standalone_mode=False)
    except RnnlmError as error:
        _debug()
        _fail("\n".join(f"error: {line}" for line in error.lines), error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):
            message = _usage_message(error)
            _fail(f"error: {message}" if message else "", getattr(error, "exit_code", 2))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            _debug()
            rule = "cannot write" if error.errno == errno.EROFS else "no space left"
            _fail(f"error: {rule}: {error.filename or error.strerror}: free some space, or set RNNLM_HOME", 5)
        if "httpx" in sys.modules and isinstance(error, sys.modules["httpx"].TransportError):
            _debug()
            told = f"error: the Prefect server does not answer any more: {type(error).__name__}"
            _fail(f"{told}: start it again, then run the same command again", ResourceError.exit_code)
        raise
    if code == INTERRUPTED:
        _fail("interrupted: run the same command again to go on", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: Any) -> str:
    """Return what Typer says of a mistake, on one line; of an unknown option, what may have been meant."""
    if not hasattr(error, "possibilities") or not hasattr(error, "option_name"):
        return one_line(error.format_message())
    from rnnlm_core.config import close_keys

    options = [name for one in error.ctx.command.params for name in one.opts if name.startswith("--")]
    keys = close_keys(error.option_name.lstrip("-")) if "--set" in options else []
    meant = suggestion(error.option_name, [*options, "--help"])
    if keys and not suggestion(error.option_name, options).startswith("did you mean"):
        meant = f"did you mean {' or '.join(f'--set {key}=…' for key in keys)}?"
    return f"{one_line(error.message)}: {meant}"


def _debug() -> None:
    if os.environ.get("RNNLM_DEBUG"):
        traceback.print_exc()


def _fail(message: str, code: int) -> None:
    if message:
        typer.echo(message, err=True)
    sys.stdout.flush()
    sys.exit(code)
