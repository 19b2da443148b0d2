"""`rnnlm generate`: a trained model continues a text."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.screen import news_on_screen, warn
from rnnlm_core.errors import DataError, IntegrityError, UsageError, one_line

if TYPE_CHECKING:
    from rnnlm_core.saved_model import SavedModel
    from tasks.tracked_runs import TrackedRun


def generate(
    model: Annotated[str, typer.Option(help="A cell (gru: the newest one), an MLflow run id, or models:/NAME@ALIAS.")],
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
    seed: Annotated[
        int | None, typer.Option(help="Another number draws another text (at temperature above 0).", show_default="0")
    ] = None,
    unknown: Annotated[
        str, typer.Option(help="Prefix tokens outside the vocabulary: `map` to <unk>, or `error`.")
    ] = "error",
    stream: Annotated[
        bool, typer.Option("--stream", metavar="", help="Print each token as soon as it is there.")
    ] = False,
) -> None:
    """Print the prefix and its continuation."""
    from rnnlm_core.config import GenerateConfig, RunConfig
    from rnnlm_core.config_values import override

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

    with news_on_screen():
        saved, run = load_tracked(model)
    if stream:
        pieces = stream_text(saved, prefix[0], config, warn)
    else:
        pieces = iter(["\n".join(sample.text for sample in continue_texts(saved, prefix, config, warn))])
    for number, piece in enumerate(pieces):
        if number == 0:
            tell_whose(model, run)
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


def tell_whose(reference: str, run: "TrackedRun | None") -> None:
    """Say what a bare cell has turned out to be: the newest one, whatever its text was."""
    if run is None or reference != run.tags.get("rnnlm.cell"):
        return
    from flows.tables import moment

    text = one_line(run.tags.get("rnnlm.corpus", "?"))
    typer.echo(f"{run.tags['rnnlm.cell']} of {text}, trained {moment(run.started)}", err=True)


def load_tracked(reference: str) -> "tuple[SavedModel, TrackedRun | None]":
    """Return the model a reference names (the store's or MLflow's copy), and the run that trained it, if known."""
    from tasks import workspace

    workspace.prepare_environment()
    from rnnlm_core.saved_model import load_model
    from rnnlm_core.store import Handle
    from tasks import tracked_models, tracked_runs

    if reference.startswith("models:/"):
        folder = tracked_models.model_files(reference)
        return load_model(folder), tracked_runs.run_of_model(folder.name)
    found = tracked_runs.find_model_run(reference)
    digest = found.tags.get("rnnlm.model_sha256", "")
    if not digest:
        raise DataError("this run has no model", f"{reference} ({found.status})", "run the training again")
    handle = Handle("model", digest)
    place = workspace.store().path(handle)
    fault = workspace.store().bring(handle)
    if not fault:
        return load_model(place), found
    if "rnnlm.model_uri" not in found.tags:
        raise IntegrityError(f"the model {fault}, and MLflow has no copy", place, "run the training again")
    if fault != "is missing":  # that is no damage: artifacts may be removed
        warn(f"the model {fault}, MLflow's copy is read instead: {place}")
    return load_model(tracked_models.model_files(found.tags["rnnlm.model_uri"])), found
