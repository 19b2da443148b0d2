"""The vocabulary: which tokens have an id, in which order, and how often each occurs.

Ids follow descending frequency, ties the first appearance; `<unk>` is 0, reserved tokens come next (d2l, chapter
"Text Preprocessing"). Only the training split is counted: a held-out text must not choose the vocabulary.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from rnnlm_core.errors import DataError, IntegrityError
from rnnlm_core.indices import count
from rnnlm_core.levels import Tokenizer
from rnnlm_core.pieces import spans_of_shards
from rnnlm_core.splits import split_spans
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import ShardTokens, Tokens, file_tokens, token_facts, token_tokenizer

UNKNOWN = "<unk>"
FILE = "vocabulary.json"
COUNTS = "counts.json"


class Vocabulary:
    """Tokens and their ids.

    Args:
        counts: how often each token occurs, in order of first appearance.
        min_freq: rarer tokens get no id of their own.
        reserved_tokens: tokens that get the ids after `<unk>` in any case.
    """

    def __init__(self, counts: Mapping[str, int], min_freq: int = 1, reserved_tokens: Sequence[str] = ()) -> None:
        first = list(dict.fromkeys([UNKNOWN, *reserved_tokens]))
        ranked = sorted(counts.items(), key=lambda item: -item[1])  # stable: ties keep first appearance
        kept = [(token, n) for token, n in ranked if n >= min_freq and token not in set(first)]
        dropped = sum(n for token, n in ranked if n < min_freq and token not in set(first))
        self.tokens: tuple[str, ...] = (*first, *(token for token, _ in kept))
        self.counts: tuple[int, ...] = (
            counts.get(UNKNOWN, 0) + dropped,
            *(counts.get(token, 0) for token in first[1:]),
            *(n for _, n in kept),
        )
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    @overload
    def __getitem__(self, tokens: str) -> int: ...
    @overload
    def __getitem__(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def __getitem__(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Return the id of a token, or the ids of several; an unknown token has the id of `<unk>`, 0."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, 0)
        return [self._ids.get(token, 0) for token in tokens]

    @overload
    def to_tokens(self, ids: int) -> str: ...
    @overload
    def to_tokens(self, ids: Iterable[int]) -> list[str]: ...
    def to_tokens(self, ids: int | Iterable[int]) -> str | list[str]:
        """Return the token of an id, or the tokens of several."""
        if isinstance(ids, int | np.integer):
            return self.tokens[ids]
        return [self.tokens[i] for i in ids]

    def to_json(self) -> str:
        """Return the vocabulary as JSON: `tokens` and `counts`, by id."""
        return json.dumps({"tokens": self.tokens, "counts": self.counts}, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str | bytes, where: object = "") -> "Vocabulary":
        """Read what `to_json` wrote; raises `IntegrityError` for duplicates or a missing `<unk>`."""
        try:
            content = json.loads(text)
            tokens, counts = content["tokens"], content["counts"]
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError("not a vocabulary", where, f"rebuild it ({error})") from error
        if not _is_list_of(str, tokens) or not _is_list_of(int, counts) or len(counts) != len(tokens):
            what = "damaged vocabulary: tokens must be a list of strings, counts one of as many integers"
            raise IntegrityError(what, where, "rebuild it")
        if not tokens or tokens[0] != UNKNOWN:
            raise IntegrityError(f"damaged vocabulary: its first token is not {UNKNOWN}", where, "rebuild it")
        if len(set(tokens)) != len(tokens):
            token = next(token for i, token in enumerate(tokens) if token in tokens[:i])
            raise IntegrityError(f"damaged vocabulary: {token!r} occurs twice", where, "rebuild it")
        vocabulary = cls({})
        vocabulary.tokens, vocabulary.counts = tuple(tokens), tuple(counts)
        vocabulary._ids = {token: i for i, token in enumerate(tokens)}
        return vocabulary

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Read the vocabulary of a `vocabulary` artifact or a model."""
        return cls.from_json((folder / FILE).read_bytes(), folder / FILE)


def _is_list_of(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


@dataclass(frozen=True)
class BuiltVocabulary:
    """What `build_vocabulary` returns: the artifact and its size, `<unk>` included."""

    handle: Handle
    size: int


def build_vocabulary(
    tokens: Tokens,
    shares: tuple[int, int, int] | None,
    min_freq: int,
    reserved_tokens: Sequence[str],
    store: Store,
) -> BuiltVocabulary:
    """Count the training split of a `tokens` artifact and give each token its id.

    Tokenizers with an alphabet (`byte`, `bpe`) have a complete vocabulary.

    Raises `DataError` when `min_freq` leaves nothing but `<unk>`.
    """
    folder = store.open(tokens.handle)
    facts = token_facts(folder)
    train = split_spans(facts["num_tokens"], shares)[0]
    counts = count_tokens(folder, train.file, train.length)
    return _publish(counts, token_tokenizer(folder), min_freq, reserved_tokens, store)


def _publish(
    counts: dict[str, int], cut: Tokenizer, min_freq: int, reserved_tokens: Sequence[str], store: Store
) -> BuiltVocabulary:
    if cut.alphabet:
        # Bytes and byte pairs are known beforehand: those that the training split lacks come last.
        counts |= {token: 0 for token in cut.alphabet if token not in counts}
    vocabulary = Vocabulary(counts, 0 if cut.alphabet else min_freq, reserved_tokens)
    if not any(vocabulary.counts[1:]):
        raise none_frequent(counts, min_freq)
    with store.draft("vocabulary") as draft:
        (draft.folder / FILE).write_text(vocabulary.to_json(), encoding="utf-8")
        return BuiltVocabulary(draft.publish(), len(vocabulary))


@dataclass(frozen=True)
class ShardCounts:
    """What `count_shard` returns: an artifact with the tokens of a shard's training part and their counts."""

    handle: Handle


def trained_lengths(shards: Sequence[ShardTokens], shares: tuple[int, int, int] | None) -> list[int]:
    """Return how many tokens of each shard belong to the training split: its first ones."""
    counts = [shard.num_tokens for shard in shards]
    train = split_spans(total_counts(counts), shares)[0]
    return [sum(span.length for span in spans) for spans in spans_of_shards([train], counts)]


def total_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of several counts, by name."""
    totals: dict[str, int] = {}
    for one in counts:
        for name, n in one.items():
            totals[name] = totals.get(name, 0) + n
    return totals


def count_shard(tokens: ShardTokens, length: int, store: Store) -> ShardCounts:
    """Count the first `length` tokens of a shard, of the file that is trained on."""
    folder = store.open(tokens.handle)
    counts = count_tokens(folder, "whole" if "whole" in tokens.num_tokens else "train", length)
    with store.draft("counts") as draft:
        (draft.folder / COUNTS).write_text(json.dumps(counts, ensure_ascii=False, indent=0), encoding="utf-8")
        return ShardCounts(draft.publish())


def join_counts(
    shards: Sequence[ShardCounts], tokens: ShardTokens, min_freq: int, reserved_tokens: Sequence[str], store: Store
) -> BuiltVocabulary:
    """Make the vocabulary of all shards' counts, which come in the order of the text; `tokens` are those of one shard.

    Raises `DataError` when `min_freq` leaves nothing but `<unk>`.
    """
    counts: dict[str, int] = {}
    for shard in shards:
        part = json.loads((store.open(shard.handle) / COUNTS).read_text(encoding="utf-8"))
        for token, n in part.items():
            counts[token] = counts.get(token, 0) + n
    return _publish(counts, token_tokenizer(store.open(tokens.handle)), min_freq, reserved_tokens, store)


def none_frequent(counts: Mapping[str, int], min_freq: int) -> DataError:
    """Return the error for a text none of whose tokens is frequent enough: only `<unk>` would be left."""
    return DataError(
        f"`tokenizer.min_freq` leaves none of {len(counts):,} different tokens, the most frequent occurs "
        f"{max(counts.values(), default=0):,} times",
        min_freq,
        "lower tokenizer.min_freq",
    )


def count_tokens(folder: Path, name: str, length: int | None = None) -> dict[str, int]:
    """Return how often each token occurs among the first `length` tokens of a file, in order of first appearance."""
    counts: dict[str, int] = {}
    left = length
    for batch, dictionary in file_tokens(folder, name):
        indices = batch if left is None else batch[:left]
        add_counts(counts, indices, dictionary)
        if left is not None:
            left -= len(indices)
            if left == 0:
                break
    return counts


def add_counts(counts: dict[str, int], indices: np.ndarray, dictionary: Sequence[str]) -> None:
    """Add how often each token of a dictionary occurs among the indices, new tokens in the dictionary's order."""
    for token, n in zip(dictionary, count(indices, len(dictionary)).tolist(), strict=True):
        if n:
            counts[token] = counts.get(token, 0) + n
