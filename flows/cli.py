"""The `rnnlm` command: results on standard output, everything else on standard error.

Heavy imports wait inside the commands, so that help is instant and mistakes are told before anything starts.
"""

import errno
import io
import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

from flows.commands import evaluate, export, generate, known, models, run, serve, sweep, tracked, up, upkeep
from rnnlm_core.errors import ResourceError, RnnlmError, one_line, suggestion

INTERRUPTED = 130

app = typer.Typer(
    name="rnnlm",
    help="Recurrent language models (RNN, GRU, LSTM): train, compare, track and sample, on any text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    run.run,
    run.smoke,
    sweep.sweep,
    generate.generate,
    evaluate.evaluate,
    export.export,
    serve.serve,
    tracked.compare,
    tracked.results,
    models.models,
    models.promote,
    up.up,
    up.down,
    upkeep.verify,
    upkeep.doctor,
):
    app.command()(command)
for name, every, one in (
    ("corpora", known.corpora, known.show_corpus),
    ("presets", known.presets, known.show_preset),
):
    listed = typer.Typer()
    listed.callback(invoke_without_command=True)(every)
    listed.command("show")(one)
    app.add_typer(listed, name=name)


@app.callback()
def _every_command(
    debug: Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["RNNLM_DEBUG"] = "1"


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
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Prefect sends its last events; asked again, it would not end sooner
        _fail("interrupted: run the same command again to go on", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: Any) -> str:
    """Return what Typer says of a mistake, on one line; of an unknown option, what may have been meant."""
    if not hasattr(error, "possibilities") or not hasattr(error, "option_name"):
        said = one_line(error.format_message())
        return (
            f"{said}: every value has an option, a text is given as --corpus FILE" if "extra argument" in said else said
        )
    from rnnlm_core.config_values import close_keys

    options = [name for one in error.ctx.command.params for name in one.opts if name.startswith("--")]
    keys = close_keys(error.option_name.lstrip("-")) if "--set" in options else []
    meant = suggestion(error.option_name, [*options, "--help"])
    exact = any(key.endswith(f".{error.option_name.lstrip('-').replace('-', '_')}") for key in keys)
    if keys and (exact or not suggestion(error.option_name, options).startswith("did you mean")):
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


if __name__ == "__main__":
    main()
