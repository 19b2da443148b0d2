"""Stage `measure champion`: what the champion of a corpus is worth on a text that has changed since."""

from rnnlm_core.corpus import build_corpus
from rnnlm_core.outcomes import Evaluated
from rnnlm_core.store import Handle
from rnnlm_core.tokenize import Tokens
from tasks import workspace
from tasks.caching import stage

FEWEST = 2
"""Tokens of the training split that are encoded: nothing reads them, but a split holds at least so many."""


@stage("rnnlm_core.evaluate", Evaluated)
def measure_champion(
    model: Handle, vocabulary: Handle, tokens: Tokens, shares: tuple[int, int, int] | None
) -> Evaluated:
    """Return the figures of a model on the validation split of tokens that were cut as its own were.

    The tokens are encoded with its own vocabulary, so what that lacks is `<unk>`.
    """
    from rnnlm_core import evaluate as core

    store = workspace.store()
    corpus = build_corpus(tokens, vocabulary, shares, FEWEST, store)
    return core.evaluate(model, corpus.handle, "valid", store)
