"""Stage `vocabulary`: give each token of the training split its id."""

from rnnlm_core.config import TokenizerConfig
from rnnlm_core.tokenize import Tokens
from rnnlm_core.vocabulary import BuiltVocabulary, build_vocabulary
from tasks import workspace
from tasks.caching import stage


@stage("rnnlm_core.vocabulary", BuiltVocabulary)
def vocabulary(tokens: Tokens, shares: tuple[int, int, int] | None, config: TokenizerConfig) -> BuiltVocabulary:
    """Return the vocabulary of the training split."""
    return build_vocabulary(tokens, shares, config.min_freq, config.reserved_tokens, workspace.store())
