"""`rnnlm corpora` and `rnnlm presets`: what has a name."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.screen import check_writable, show


def corpora(context: typer.Context) -> None:
    """List the corpora that have a name, or `show` one."""
    from rnnlm_core.catalogue import corpus_names, find_corpus

    if context.invoked_subcommand is not None:
        return
    for entry in filter(None, map(find_corpus, corpus_names())):
        size = sum(file.num_bytes for file in entry.files)
        where = f"{size / 1e6:.1f} MB to download" if size else "embedded"
        typer.echo(f"{entry.name:<14} {entry.title} · {where} · {entry.licence}")


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
        check_writable(plot)

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
    show(grams_table(found))
    picture = store.path(found.handle) / PICTURE
    if plot is not None:
        shutil.copyfile(picture, plot)
    typer.echo(f"rank-frequency plot: {plot or picture}")


def presets(context: typer.Context) -> None:
    """List the presets, or `show` every key of one."""
    from rnnlm_core.presets import PRESETS

    if context.invoked_subcommand is not None:
        return
    for name, make in PRESETS.items():
        typer.echo(f"{name:<18} {(make.__doc__ or '').strip().splitlines()[0]}")


def show_preset(name: Annotated[str, typer.Argument(help="One of `rnnlm presets`.")] = "quickstart") -> None:
    """Print every key of the config, as `--set` takes it, with the preset's value."""
    from rnnlm_core.config import flatten
    from rnnlm_core.presets import run_config

    for key, value in flatten(run_config(name)).items():
        typer.echo(f"{key} = {','.join(value) if isinstance(value, tuple) else value}")
