"""The flow that makes a corpus of a long text: its shards one by one, wherever its task runner has workers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prefect import flow
from prefect.exceptions import MissingResult

from rnnlm_core.config import RunConfig
from rnnlm_core.corpus import Corpus, shard_spans
from rnnlm_core.download import Text
from rnnlm_core.errors import IntegrityError, ResourceError
from rnnlm_core.shards import can_be_divided
from rnnlm_core.tokenize import ShardTokens, Tokens
from rnnlm_core.vocabulary import BuiltVocabulary, trained_lengths
from tasks import workspace
from tasks.caching import NotWhole, VerifiedSerializer
from tasks.text_shards import (
    count_shard,
    divide,
    encode_shard,
    join_counts,
    join_ids,
    join_tokens,
    learn_merges,
    tokenize_shard,
)


@dataclass
class Made:
    """What came of a text, and which stages had nothing to do."""

    tokens: Tokens | None = None
    vocabulary: BuiltVocabulary | None = None
    corpus: Corpus | None = None
    cached: dict[str, bool] = field(default_factory=dict)

    def take(self, stage: str, futures: Iterable[Any]) -> list[Any]:
        """Wait for tasks of a stage and return their results, in order."""
        results = []
        for future in futures:
            try:
                results.append(future.result())
            except (NotWhole, MissingResult) as error:
                raise _elsewhere("what a worker has made is not here", error) from error
            self.cached[stage] = self.cached.get(stage, True) and future.state.name == "Cached"
        return results


def _elsewhere(what: str, error: Exception) -> ResourceError:
    remedy = "give all workers the same RNNLM_HOME, on a disk that they share"
    return ResourceError(what, f"{workspace.home()} ({error})", remedy)


def needs_shards(text: Text, config: RunConfig, shard_bytes: int) -> bool:
    """Say whether a text is longer than a shard, and its shards' tokens are its own."""
    cut = config.tokenizer
    divisible = can_be_divided(config.corpus.normalizer, cut.level, cut.eos, config.corpus.max_chars)
    return divisible and text.num_bytes > shard_bytes


@flow(
    name="text-shards",
    flow_run_name="{title}",
    persist_result=False,
    validate_parameters=False,  # they are ours, and would come back as copies
    result_serializer=VerifiedSerializer(),
)
def text_shards(title: str, text: Text, config: RunConfig, shard_bytes: int, tokens_alone: bool) -> Made:  # noqa: ARG001
    """Tokenise, count and encode a text shard by shard; `title` is what the run is called.

    Safe to run as often as you like, on any task runner: the bits of tokens, vocabulary and corpus follow from the
    text, the config and the size of a shard.
    """
    made = Made()
    shards = _tokenize(made, text, config, shard_bytes)
    if tokens_alone:
        return made
    shares, cut = config.corpus.shares, config.tokenizer
    lengths = trained_lengths(shards, shares)
    counts = made.take(
        "vocabulary",
        [count_shard.submit(shard, length) for shard, length in zip(shards, lengths, strict=True) if length],
    )
    (made.vocabulary,) = made.take("vocabulary", [join_counts.submit(counts, shards[0], cut)])
    spans = shard_spans(shards, shares, config.corpus.max_tokens)
    encoded = made.take(
        "corpus",
        [
            encode_shard.submit(shard, parts, made.tokens, made.vocabulary)
            for shard, parts in zip(shards, spans, strict=True)
            if parts
        ],
    )
    (made.corpus,) = made.take("corpus", [join_ids.submit(encoded, shards[0], made.tokens, made.vocabulary)])
    return made


def _tokenize(made: Made, text: Text, config: RunConfig, shard_bytes: int) -> list[ShardTokens]:
    rule, cut = config.corpus.normalizer, config.tokenizer
    try:
        (division,) = made.take("tokenize", [divide.submit(text, shard_bytes)])
    except IntegrityError as error:
        if workspace.store().fault(text.handle):
            raise
        raise _elsewhere("a worker has not what is here", error) from error
    merges, spans = None, [None] * len(division.shards)
    if cut.level == "bpe":
        learning = learn_merges.submit(division, rule, cut.bpe_size, config.corpus.shares)
        (learnt,) = made.take("tokenize", [learning])
        merges, spans = learnt.handle, learnt.spans
    shards = made.take(
        "tokenize",
        [
            tokenize_shard.submit(shard, rule, cut.level, cut.eos, merges, parts)
            for shard, parts in zip(division.shards, spans, strict=True)
        ],
    )
    (made.tokens,) = made.take("tokenize", [join_tokens.submit(text, shards, rule)])
    return shards
