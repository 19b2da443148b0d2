"""Stages of a text in several shards: what is done with each, and what makes one of all.

Each of them may run in another process, on another machine even, as long as that has the same store.
"""

from rnnlm_core import shards as core
from rnnlm_core import tokenize as tokens_core
from rnnlm_core import vocabulary as vocabulary_core
from rnnlm_core.config import TokenizerConfig
from rnnlm_core.corpus import Corpus, ShardIds
from rnnlm_core.corpus import encode_shard as encode
from rnnlm_core.corpus import join_ids as join
from rnnlm_core.download import Text
from rnnlm_core.pieces import Span
from rnnlm_core.shards import Division, Shard
from rnnlm_core.store import Handle
from rnnlm_core.tokenize import Merges, ShardTokens, Tokens
from rnnlm_core.vocabulary import BuiltVocabulary, ShardCounts
from tasks import workspace
from tasks.caching import stage


@stage("rnnlm_core.shards", Division)
def divide(text: Text, shard_bytes: int) -> Division:
    """Return the shards of a text."""
    return core.divide(text.handle, shard_bytes, workspace.store())


@stage("rnnlm_core.tokenize", Merges)
def learn_merges(division: Division, normalizer: str, bpe_size: int, shares: tuple[int, int, int] | None) -> Merges:
    """Return the byte pairs of the training text, and where the splits are."""
    return tokens_core.learn_merges(division, normalizer, bpe_size, shares, workspace.store())


@stage("rnnlm_core.tokenize", ShardTokens, "tokenize {shard.file} {shard.number}")
def tokenize_shard(
    shard: Shard, normalizer: str, level: str, eos: str, merges: Handle | None, spans: tuple[Span, ...] | None
) -> ShardTokens:
    """Return the tokens of a shard; `merges` and `spans` are those of level `bpe`."""
    return tokens_core.tokenize_shard(
        shard, normalizer, level, workspace.store(), eos=eos, merges=merges, spans=spans
    )  # fmt: skip


@stage("rnnlm_core.tokenize", Tokens)
def join_tokens(text: Text, shards: list[ShardTokens], normalizer: str) -> Tokens:
    """Return the tokens of all shards of a text as one artifact."""
    return tokens_core.join_tokens(shards, normalizer, text.handle.sha256, workspace.store())


@stage("rnnlm_core.vocabulary", ShardCounts)
def count_shard(tokens: ShardTokens, length: int) -> ShardCounts:
    """Return how often each token occurs in what the training split has of a shard."""
    return vocabulary_core.count_shard(tokens, length, workspace.store())


@stage("rnnlm_core.vocabulary", BuiltVocabulary)
def join_counts(shards: list[ShardCounts], tokens: ShardTokens, config: TokenizerConfig) -> BuiltVocabulary:
    """Return the vocabulary of the counts of all shards."""
    return vocabulary_core.join_counts(
        shards, tokens, config.min_freq, config.reserved_tokens, workspace.store()
    )  # fmt: skip


@stage("rnnlm_core.corpus", ShardIds)
def encode_shard(shard: ShardTokens, spans: tuple[Span, ...], tokens: Tokens, vocabulary: BuiltVocabulary) -> ShardIds:
    """Return the ids of a shard, in the splits that have a part of it."""
    return encode(shard, spans, tokens.handle, vocabulary.handle, workspace.store())


@stage("rnnlm_core.corpus", Corpus)
def join_ids(shards: list[ShardIds], first: ShardTokens, tokens: Tokens, vocabulary: BuiltVocabulary) -> Corpus:
    """Return the corpus of the ids of all shards."""
    return join(shards, first, tokens.handle, vocabulary.handle, workspace.store())
