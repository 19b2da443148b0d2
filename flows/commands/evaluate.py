"""`rnnlm evaluate`: what a trained model is worth on a text, its own or any other."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.generate import load_tracked
from flows.commands.screen import check_writable, news_on_screen, warn, write_json
from rnnlm_core.errors import DataError, UsageError, unknown_name

ALL = "all"
CHOICES = ("train", "valid", "test", ALL)


def evaluate(
    model: Annotated[str, typer.Option(help="A cell (gru: the newest one), an MLflow run id, or models:/NAME@ALIAS.")],
    corpus: Annotated[str, typer.Option(help="A name (`rnnlm corpora`), a path or an http(s) address.")],
    split: Annotated[str, typer.Option(help="train, valid or test of the text, or `all` of it.")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file as JSON.")] = None,
) -> None:
    """Print perplexity, bits per character and OOV rate of a model on a text; nothing is tracked.

    The text that the model was trained on is divided as it was then. Another is read as that was, and divided as its
    figures are published, else 90/5/5.
    """
    if split not in CHOICES:
        raise unknown_name("split", split, list(CHOICES))
    if json_file is not None:
        check_writable(json_file)
    with news_on_screen():
        saved, run = load_tracked(model)

    from rnnlm_core.catalogue import find_corpus
    from rnnlm_core.config import CorpusConfig
    from rnnlm_core.download import download, resolve
    from rnnlm_core.evaluate import evaluate_corpus, evaluate_text
    from rnnlm_core.store import Handle
    from tasks import tracked_runs, workspace

    source, store = resolve(corpus), workspace.store()
    entry = find_corpus(source.name) if source.kind in ("embedded", "catalogue") else None
    given = "whole" not in dict(source.files)
    if split == ALL and given:
        raise UsageError("a text in three files has no `all`", source.name, "use train, valid or test")
    text = download(source, store)
    own_text = tracked_runs.text_of(run) if run is not None else ""
    if not own_text:
        warn("what this model was trained on is not known here: it may have read parts of this text")
    if run is not None and split != ALL and own_text == text.handle.sha256:
        own = Handle("corpus", run.tags["rnnlm.corpus_sha256"])
        if fault := store.bring(own):
            what = f"the corpus that this model was trained on {fault}"
            raise DataError(what, str(own), "train it again, which is cached, or measure it on `--split all`")
        found, how = evaluate_corpus(saved, own, split, store), f"{split} of its own text"
    elif split == ALL:  # one split is the whole of it
        found, how = evaluate_text(saved, text, "test", (0, 0, 1), store), "all of it"
    else:
        divided = CorpusConfig(split="given" if given else entry.split if entry else "90/5/5")
        found, how = evaluate_text(saved, text, split, divided.shares, store), f"{split} of {divided.split}"
    if found.oov_rate:
        warn(f"{found.oov_rate:.2%} of the tokens are not in the model's vocabulary: each counts as <unk>")
    if json_file is not None:
        write_json(json_file, asdict(found) | {"split": split, "cell": saved.model.cell, "corpus": source.name})
    name = saved.model.cell if run is None else f"{saved.model.cell} of {run.tags.get('rnnlm.corpus', '?')}"
    typer.echo(f"{name} on {source.name} ({how}, {found.num_tokens:,} {saved.tokenizer.noun})")
    typer.echo(f"perplexity          {found.perplexity:.4f}")
    typer.echo(f"bits per character  {found.bits_per_char:.4f}")
    typer.echo(f"OOV rate            {found.oov_rate:.2%}")
