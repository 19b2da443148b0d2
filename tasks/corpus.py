"""Stage `corpus`: write the token ids as parquet, in splits that do not overlap."""

from rnnlm_core.corpus import Corpus, build_corpus
from rnnlm_core.tokenize import Tokens
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import workspace
from tasks.caching import stage


@stage("rnnlm_core.corpus", Corpus)
def corpus(
    tokens: Tokens,
    vocabulary: BuiltVocabulary,
    shares: tuple[int, int, int] | None,
    max_tokens: int,
) -> Corpus:
    """Return the parquet corpus."""
    return build_corpus(tokens, vocabulary.handle, shares, max_tokens, workspace.store())
