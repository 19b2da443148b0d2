"""Perplexity: how many tokens, on geometric average, the model hesitates between.

exp of the mean negative log-likelihood over the whole stream, the state carried from its first token to its last.
`<eos>` is a token like any other where a corpus has it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rnnlm_core.corpus import build_corpus, corpus_conventions, corpus_facts, corpus_vocabulary
from rnnlm_core.download import Text
from rnnlm_core.errors import DataError
from rnnlm_core.mapped_ids import mapped_ids
from rnnlm_core.model import LanguageModel, Model
from rnnlm_core.outcomes import Evaluated, perplexity
from rnnlm_core.output_loss import MOST_LOGITS
from rnnlm_core.saved_model import SavedModel, load_model
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import tokenize_as
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE

CHUNK = 512
"""Tokens per forward pass, fewer of a large vocabulary; the result does not depend on it."""


def evaluate(model: Handle, corpus: Handle, split: str, store: Store) -> Evaluated:
    """Measure a trained model on one split of a corpus.

    `bits_per_char` = nats of the whole stream / ln 2 / characters behind the predicted tokens. Raises `DataError` when
    the ids of the corpus are not those the model knows.
    """
    return evaluate_corpus(open_both(model, corpus, store), corpus, split, store)


def evaluate_corpus(saved: SavedModel, corpus: Handle, split: str, store: Store) -> Evaluated:
    """Measure a model on a split of a corpus whose ids are its own; raises `DataError` for one that is not there."""
    there = corpus_facts(store.open(corpus))
    if split not in there:
        raise DataError("this text has no such split", split, f"it has {', '.join(there)}")
    ids = torch.from_numpy(mapped_ids(corpus, split, len(saved.vocabulary), store))
    return figures(stream_loss(saved.model, ids), len(ids), store.path(corpus), split)


def evaluate_text(
    saved: SavedModel, text: Text, split: str, shares: tuple[int, int, int] | None, store: Store
) -> Evaluated:
    """Measure a model on one split of any text, normalised and cut as its own was.

    What its vocabulary lacks is `<unk>`, and counted (`oov_rate`). `shares` divide a text in one file; None for one
    that is published in three. Raises `DataError` for a split that is not there or too short.
    """
    tokens = tokenize_as(text.handle, saved.normalizer, saved.tokenizer, store)
    with store.draft("vocabulary") as draft:
        (draft.folder / VOCABULARY_FILE).write_text(saved.vocabulary.to_json(), encoding="utf-8")
        vocabulary = draft.publish()
    corpus = build_corpus(tokens, vocabulary, shares, 0, store)
    return evaluate_corpus(saved, corpus.handle, split, store)


def open_both(model: Handle, corpus: Handle, store: Store, device: str = "cpu") -> SavedModel:
    """Return a model whose ids are those of a corpus, which is opened as well; raises `DataError` for others."""
    saved = load_model(store.open(model), device)
    if saved.about.get("vocabulary") != corpus_vocabulary(store.open(corpus)):
        raise DataError("model and corpus have different vocabularies", f"{model}, {corpus}", "train on this corpus")
    return saved


def figures(nats: float, num_tokens: int, corpus: Path, split: str) -> Evaluated:
    """Return what a loss of the whole stream comes to, on a split of a corpus."""
    facts = corpus_facts(corpus)[split]
    loss = nats / (num_tokens - 1)
    return Evaluated(
        split=split,
        loss=loss,
        perplexity=perplexity(loss),
        # A split of a few bytes may end within its first character.
        bits_per_char=nats / math.log(2) / facts.predicted_chars if facts.predicted_chars else math.inf,
        oov_rate=facts.oov_rate,
        num_tokens=num_tokens,
        eos=corpus_conventions(corpus)[0].about["eos"],
    )


def stream_loss(model: Model, ids: Tensor, check: Callable[[], None] = lambda: None) -> float:
    """Return the negative log-likelihood, in nats, of tokens 1..n-1 of a stream given all that came before.

    Dropout is off; the model is left in the mode it was in. `check` is called before each chunk; what it raises ends
    the work.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            state = model.initial_state(1)
            total = torch.zeros((), dtype=torch.float64, device=ids.device)
            width = model.vocabulary_size if isinstance(model, LanguageModel) else 1  # logits of a token
            chunk = max(1, min(CHUNK, MOST_LOGITS // width))
            for start in range(0, len(ids) - 1, chunk):
                check()
                part = ids[start : start + chunk + 1]
                losses, state = model.token_losses(part, state)
                total += losses.sum(dtype=torch.float64)
            return float(total)
    finally:
        model.train(training)
