"""`rnnlm evaluate`: what a trained model is worth on a text, its own or any other."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.generate import load_tracked
from flows.commands.screen import check_writable, news_on_screen, warn, write_json
from rnnlm_core.errors import unknown_name

if TYPE_CHECKING:
    from tasks.tracked_runs import TrackedRun

ALL = "all"
CHOICES = ("train", "valid", "test", ALL)


def evaluate(
    model: Annotated[str, typer.Option(help="A cell of the last run (gru), an MLflow run id, or models:/NAME@ALIAS.")],
    corpus: Annotated[str, typer.Option(help="A name (`rnnlm corpora`), a path or an http(s) address.")],
    split: Annotated[str, typer.Option(help="train, valid or test of the text, or `all` of it.")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file as JSON.")] = None,
) -> None:
    """Print perplexity, bits per character and OOV rate of a model on a text; nothing is tracked.

    The text is read as the model's own was. It is divided as the model's own text was if it is that, else as its
    figures are published, else 90/5/5.
    """
    if split not in CHOICES:
        raise unknown_name("split", split, list(CHOICES))
    if json_file is not None:
        check_writable(json_file)
    with news_on_screen():
        saved, run = load_tracked(model)

    from rnnlm_core.download import download, resolve
    from rnnlm_core.evaluate import evaluate_text
    from rnnlm_core.presets import run_config
    from tasks import workspace

    source = resolve(corpus)
    divided = _division_of(run, source.name)
    config = run_config(corpus=corpus, changes={"corpus.split": divided} if divided else {}).corpus
    shares = config.shares
    if split == ALL and shares is None:
        raise unknown_name("split of a text in three files", ALL, list(CHOICES[:-1]))
    store = workspace.store()
    text = download(source, store)
    # The whole of a text is one split of it.
    found = evaluate_text(saved, text, "test" if split == ALL else split, (0, 0, 1) if split == ALL else shares, store)
    if found.oov_rate:
        warn(f"{found.oov_rate:.2%} of the tokens are not in the model's vocabulary: each counts as <unk>")
    figures = asdict(found) | {"split": split, "cell": saved.model.cell, "corpus": source.name}
    if json_file is not None:
        write_json(json_file, figures)
    how = f"{split} of {config.split}" if split != ALL else "all of it"
    typer.echo(f"{saved.model.cell} on {source.name} ({how}, {found.num_tokens:,} {saved.tokenizer.noun})")
    typer.echo(f"perplexity          {found.perplexity:.4f}")
    typer.echo(f"bits per character  {found.bits_per_char:.4f}")
    typer.echo(f"OOV rate            {found.oov_rate:.2%}")


def _division_of(run: "TrackedRun | None", corpus: str) -> str:
    """Return how a model's own text was divided, if this is that: its test part must be what it has not read."""
    if run is None or run.tags.get("rnnlm.corpus") != corpus:
        return ""
    return run.parameters.get("corpus.split", "")
