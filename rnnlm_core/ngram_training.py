"""Training a model of n-grams: one pass that counts, one that smooths, and what the model then makes of the text."""

import time
from collections.abc import Callable

from torch import Tensor

from rnnlm_core.config import ModelConfig
from rnnlm_core.errors import Stopped
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.kneser_ney import estimate
from rnnlm_core.ngram import NgramModel
from rnnlm_core.ngram_counts import count_ngrams
from rnnlm_core.outcomes import Epoch
from rnnlm_core.store import Store


def fit_ngrams(
    vocabulary_size: int,
    train_ids: Tensor,
    valid_ids: Tensor | None,
    config: ModelConfig,
    line_end: int | None,
    store: Store,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[NgramModel, Epoch]:
    """Return the model of a text, and the one epoch that it took.

    The training loss is that of the finished model on the text that it was counted on. There are no checkpoints: what
    was stopped begins anew. Raises `Stopped` if `should_stop` said so.
    """

    def check() -> None:
        if should_stop():
            raise Stopped("training stopped", "n-grams are counted in one go", "run the same command again")

    started = time.perf_counter()
    # The files go with the draft, but not before the arrays that are mapped from them.
    with store.draft("ngrams") as scratch:
        ids, modified = train_ids.numpy(), config.discounts == "modified"
        counted = count_ngrams(ids, config.order, vocabulary_size, line_end, scratch.folder, check=check)
        found = estimate(counted, modified, line_end, scratch.folder, check=check)
    # Of the few tokens of a vocabulary of characters hardly any occur once: nothing to warn of.
    if config.order in found.simpler:
        orders = ", ".join(f"{n} ({found.discounts[n - 1][0]:.2f})" for n in found.simpler)
        warn(f"too few counts for {config.discounts} discounts of n-grams of order {orders}: a simpler one is used")
    model = NgramModel(config, found.ids, found.grams, line_end).eval()
    trained = time.perf_counter() - started
    train_loss = stream_loss(model, train_ids, check) / (len(train_ids) - 1)
    valid_loss = None if valid_ids is None else stream_loss(model, valid_ids, check) / (len(valid_ids) - 1)
    epoch = Epoch(
        number=1,
        epochs=1,
        train_loss=train_loss,
        valid_loss=valid_loss,
        learning_rate=None,
        gradient_norm=None,
        tokens_per_second=len(train_ids) / trained,
        seconds=time.perf_counter() - started,
    )
    return model, epoch
