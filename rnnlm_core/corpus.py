"""The parquet corpus: token ids in splits that do not overlap.

A `corpus` artifact holds `train.parquet`, `valid.parquet` and `test.parquet` (those that hold anything), each with one
column `id` of the smallest unsigned type, and `corpus.json`. A split of a long text is in several such files, its
pieces. Any parquet reader can use them: the schema's metadata names tokenizer, normaliser and vocabulary. Written and
read a row group at a time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm_core.config import SPLITS
from rnnlm_core.errors import IntegrityError
from rnnlm_core.indices import count, look_up
from rnnlm_core.levels import Tokenizer, read_tokenizer
from rnnlm_core.pieces import Span, piece_files, piece_name, spans_of_shards
from rnnlm_core.row_groups import row_group_writer
from rnnlm_core.splits import split_spans
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import (
    ROW_GROUP,
    ShardTokens,
    Tokens,
    file_tokens,
    token_facts,
    token_tokenizer,
    too_short,
)
from rnnlm_core.vocabulary import Vocabulary, total_counts


@dataclass(frozen=True)
class SplitFacts:
    """What a split holds: its tokens, those that the vocabulary lacks, and the characters behind all but the first.

    A model predicts every token but the first, so bits per character divide by `predicted_chars`.
    """

    num_tokens: int
    num_unknown: int
    predicted_chars: int

    @property
    def oov_rate(self) -> float:
        """The share of tokens without an id of their own."""
        return self.num_unknown / self.num_tokens


@dataclass(frozen=True)
class Corpus:
    """What `build_corpus` returns: the artifact and the facts of each split."""

    handle: Handle
    splits: dict[str, SplitFacts]


def build_corpus(
    tokens: Tokens,
    vocabulary: Handle,
    shares: tuple[int, int, int] | None,
    max_tokens: int,
    store: Store,
) -> Corpus:
    """Cut the tokens into contiguous splits and write their ids.

    `max_tokens` (0 = all) keeps the first so many tokens of the training split.

    Raises `DataError` if a split is too short to predict one token.
    """
    source = store.open(tokens.handle)
    words = Vocabulary.load(store.open(vocabulary))
    facts = token_facts(source)
    cut = token_tokenizer(source)
    metadata = _metadata(facts, tokens.handle, vocabulary)
    splits = {}
    with store.draft("corpus") as draft:
        for span in kept_spans(facts["num_tokens"], shares, max_tokens):
            target = draft.folder / piece_name(span.split, 0, 1)
            splits[span.split] = _joined([_write_piece(source, span, words, cut, target, metadata)])
        _write_facts(draft.folder, cut, metadata, splits)
        return Corpus(draft.publish(), splits)


def kept_spans(num_tokens: Mapping[str, int], shares: tuple[int, int, int] | None, max_tokens: int) -> list[Span]:
    """Return which tokens each split of a corpus holds.

    Raises `DataError` if a split is too short to predict one token.
    """
    spans = []
    for span in split_spans(num_tokens, shares):
        kept = min(span.length, max_tokens) if span.split == "train" and max_tokens else span.length
        if kept < 2:
            raise too_short(kept, 2, f"split `{span.split}`", "give a longer text or change corpus.split")
        spans.append(replace(span, length=kept))
    return spans


def _metadata(facts: Mapping[str, Any], tokens: Handle, vocabulary: Handle) -> dict[str, str]:
    return {
        "rnnlm.level": facts["level"],
        "rnnlm.eos": facts["eos"],
        "rnnlm.normalizer": facts["normalizer"],
        "rnnlm.tokens": tokens.sha256,
        "rnnlm.vocabulary": vocabulary.sha256,
    }


def _write_facts(folder: Path, cut: Tokenizer, metadata: Mapping[str, str], splits: Mapping[str, SplitFacts]) -> None:
    about = {**metadata, "splits": {name: asdict(split) for name, split in splits.items()}}
    (folder / "corpus.json").write_text(json.dumps(about, indent=1, sort_keys=True))
    cut.write_files(folder)


@dataclass(frozen=True)
class PieceFacts:
    """What a piece of a split holds: as `SplitFacts`, but the characters of all tokens, and what lies at its ends."""

    num_tokens: int
    num_unknown: int
    chars: int
    first_width: int
    """Characters of the first token, which nothing predicts where it begins the split."""
    begins_blank: bool
    """Whether its first, or last, token is one that adds a character where it follows itself."""
    ends_blank: bool


def _joined(pieces: Sequence[PieceFacts]) -> SplitFacts:
    """Return the facts of a split of those of its pieces."""
    chars = sum(piece.chars for piece in pieces) - pieces[0].first_width
    chars += sum(left.ends_blank and right.begins_blank for left, right in pairwise(pieces))
    return SplitFacts(sum(piece.num_tokens for piece in pieces), sum(piece.num_unknown for piece in pieces), chars)


@dataclass(frozen=True)
class ShardIds:
    """What `encode_shard` returns: an artifact with the ids of a shard, and the facts of its piece of each split."""

    handle: Handle
    pieces: dict[str, PieceFacts]


def shard_spans(
    shards: Sequence[ShardTokens], shares: tuple[int, int, int] | None, max_tokens: int
) -> list[tuple[Span, ...]]:
    """Return which tokens of each shard belong to which split; raises `DataError` as `build_corpus` does."""
    counts = [shard.num_tokens for shard in shards]
    return spans_of_shards(kept_spans(total_counts(counts), shares, max_tokens), counts)


def encode_shard(
    shard: ShardTokens, spans: Sequence[Span], tokens: Handle, vocabulary: Handle, store: Store
) -> ShardIds:
    """Write the ids of a shard of `tokens`, one file for each split that has a part of it."""
    source = store.open(shard.handle)
    words = Vocabulary.load(store.open(vocabulary))
    cut = token_tokenizer(source)
    metadata = _metadata(token_facts(source), tokens, vocabulary)
    with store.draft("pieces") as draft:
        pieces = {
            span.split: _write_piece(source, span, words, cut, draft.folder / piece_name(span.split, 0, 1), metadata)
            for span in spans
        }
        return ShardIds(draft.publish(), pieces)


def join_ids(
    shards: Sequence[ShardIds], first: ShardTokens, tokens: Handle, vocabulary: Handle, store: Store
) -> Corpus:
    """Make the corpus of the ids of all shards, in order, without reading them; `first` is one of the shards."""
    source = store.open(first.handle)
    held: dict[str, list[ShardIds]] = {}
    for shard in shards:
        for name in shard.pieces:
            held.setdefault(name, []).append(shard)
    splits = {}
    with store.draft("corpus") as draft:
        for name in (split for split in SPLITS if split in held):
            having = held[name]
            for number, shard in enumerate(having):
                draft.adopt(shard.handle, piece_name(name, 0, 1), piece_name(name, number, len(having)))
            splits[name] = _joined([shard.pieces[name] for shard in having])
        metadata = _metadata(token_facts(source), tokens, vocabulary)
        _write_facts(draft.folder, token_tokenizer(source), metadata, splits)
        return Corpus(draft.publish(), splits)


def corpus_facts(folder: Path) -> dict[str, SplitFacts]:
    """Return the facts of the splits of a `corpus` artifact."""
    about = json.loads((folder / "corpus.json").read_text())
    return {name: SplitFacts(**facts) for name, facts in about["splits"].items()}


def corpus_conventions(folder: Path) -> tuple[Tokenizer, str]:
    """Return tokenizer and normaliser of a `corpus` artifact: a model needs both to read a prefix."""
    about = json.loads((folder / "corpus.json").read_text())
    cut = read_tokenizer({"level": about["rnnlm.level"], "eos": about["rnnlm.eos"]}, folder)
    return cut, about["rnnlm.normalizer"]


def corpus_vocabulary(folder: Path) -> str:
    """Return the digest of the vocabulary whose ids a `corpus` artifact holds."""
    about = json.loads((folder / "corpus.json").read_text())
    digest: str = about["rnnlm.vocabulary"]
    return digest


def split_ids(folder: Path, split: str) -> Iterator[np.ndarray]:
    """Yield the ids of a split of a `corpus` artifact, all its pieces in order, one row group at a time."""
    for path in piece_files(folder, split):
        yield from id_batches(path)


def id_batches(path: Path) -> Iterator[np.ndarray]:
    """Yield the ids of a file, one row group at a time, page checksums verified."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        for group, rows in enumerate(_row_groups(file.metadata, path)):
            ids = file.read_row_group(group).column("id").to_numpy()
            if len(ids) != rows:
                raise _other_rows(path, f"{len(ids):,} rows where {rows:,} are claimed")
            yield ids


def _row_groups(metadata: Any, path: Path) -> list[int]:
    """Return the rows of each row group, before memory is taken for as many as a footer claims."""
    parts = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    groups = [part.num_rows for part in parts]
    values = [part.column(0).num_values if part.num_columns == 1 else -1 for part in parts]
    if any(not 0 <= rows <= ROW_GROUP for rows in groups) or values != groups or sum(groups) != metadata.num_rows:
        raise _other_rows(path, f"{metadata.num_rows:,} rows claimed in {len(groups):,} groups")
    return groups


def _other_rows(path: Path, found: str) -> IntegrityError:
    return IntegrityError("not the rows of a corpus", f"{path} ({found})", "run the same command again to rebuild it")


def id_type(vocabulary_size: int) -> Any:
    """Return the smallest unsigned numpy type that holds every id."""
    return next(t for t in (np.uint8, np.uint16, np.uint32) if vocabulary_size - 1 <= np.iinfo(t).max)


def _write_piece(
    source: Path, span: Span, words: Vocabulary, cut: Tokenizer, target: Path, metadata: dict[str, str]
) -> PieceFacts:
    """Write the ids of a span of a file of a `tokens` artifact, at least one."""
    import pyarrow as pa

    kind = id_type(len(words))
    about = metadata | {"rnnlm.split": span.split}
    schema = pa.schema([pa.field("id", pa.from_numpy_dtype(kind), nullable=False)], metadata=about)
    unknown = chars = written = first_width = 0
    begins_blank = after_blank = False
    # Parquet keeps an id in four bytes. With the first of each together, then the second, three quarters are zeros, and
    # zstd packs the ids as tightly as a dictionary would, in a third of the time.
    split = {"use_dictionary": False, "column_encoding": {"id": "BYTE_STREAM_SPLIT"}}
    packed = {"compression": "zstd", "compression_level": 1, "write_statistics": False}
    with row_group_writer(target, schema, ROW_GROUP, **split, **packed) as write:
        for indices, dictionary in _slice(file_tokens(source, span.file), span.start, span.length):
            ids = look_up(np.array(words[dictionary], dtype=kind), indices)
            counts = count(indices, len(dictionary))
            widths = np.array(cut.widths(dictionary), dtype=np.int64)
            chars += int(widths @ counts)
            if not written:
                first_width = int(widths[indices[0]])
            if cut.blank:
                blank = np.array([token == cut.blank for token in dictionary])[indices]
                chars += int((blank[1:] & blank[:-1]).sum()) + (after_blank and bool(blank[0]))
                after_blank = bool(blank[-1])
                begins_blank = begins_blank if written else bool(blank[0])
            # A text may hold `<unk>` itself, as published: that is a word like any other.
            unknown += int(np.array([token not in words for token in dictionary]) @ counts)
            written += len(ids)
            write(pa.array(ids))
    return PieceFacts(written, unknown, chars, first_width, begins_blank, after_blank)


def _slice(
    batches: Iterator[tuple[np.ndarray, list[str]]], start: int, length: int
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield the part of the batches that lies in [start, start + length)."""
    at = 0
    for indices, dictionary in batches:
        part = indices[max(start - at, 0) : max(start + length - at, 0)]
        if len(part):
            yield part, dictionary
        at += len(indices)
        if at >= start + length:
            return
