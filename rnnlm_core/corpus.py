"""The parquet corpus: token ids in splits that do not overlap.

A `corpus` artifact holds `train.parquet`, `valid.parquet` and `test.parquet` (those that hold anything), each with one
column `id` of the smallest unsigned type, and `corpus.json`. Any parquet reader can use them: the schema's metadata
names tokenizer, normaliser and vocabulary. Written and read a row group at a time.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm_core.config import SPLITS
from rnnlm_core.errors import IntegrityError
from rnnlm_core.indices import count, look_up
from rnnlm_core.levels import Tokenizer, read_tokenizer
from rnnlm_core.row_groups import row_group_writer
from rnnlm_core.splits import split_lengths
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import ROW_GROUP, Tokens, token_batches, token_facts, token_tokenizer, too_short
from rnnlm_core.vocabulary import Vocabulary


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
    metadata = {
        "rnnlm.level": facts["level"],
        "rnnlm.eos": facts["eos"],
        "rnnlm.normalizer": facts["normalizer"],
        "rnnlm.tokens": tokens.handle.sha256,
        "rnnlm.vocabulary": vocabulary.sha256,
    }
    splits = {}
    with store.draft("corpus") as draft:
        for name, path, start, length in _ranges(source, facts["num_tokens"], shares):
            kept = min(length, max_tokens) if name == "train" and max_tokens else length
            if kept < 2:
                raise too_short(kept, 2, f"split `{name}`", "give a longer text or change corpus.split")
            splits[name] = _write_split(
                path,
                start,
                kept,
                words,
                cut,
                draft.folder / f"{name}.parquet",
                metadata | {"rnnlm.split": name},
            )
        about = {**metadata, "splits": {name: asdict(split) for name, split in splits.items()}}
        (draft.folder / "corpus.json").write_text(json.dumps(about, indent=1, sort_keys=True))
        cut.write_files(draft.folder)
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


def id_batches(path: Path) -> Iterator[np.ndarray]:
    """Yield the ids of a split, one row group at a time, page checksums verified."""
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


def _ranges(
    source: Path, counts: dict[str, int], shares: tuple[int, int, int] | None
) -> Iterator[tuple[str, Path, int, int]]:
    """Yield (split, tokens file, first token, number of tokens); no two ranges of a file overlap."""
    if "whole" not in counts:
        for name in (split for split in SPLITS if split in counts):
            yield name, source / f"{name}.parquet", 0, counts[name]
        return
    start = 0
    for name, length in split_lengths(counts["whole"], shares).items():
        if shares and shares[SPLITS.index(name)]:
            yield name, source / "whole.parquet", start, length
        start += length


def _write_split(
    path: Path, start: int, length: int, words: Vocabulary, cut: Tokenizer, target: Path, metadata: dict[str, str]
) -> SplitFacts:
    import pyarrow as pa

    kind = id_type(len(words))
    schema = pa.schema([pa.field("id", pa.from_numpy_dtype(kind), nullable=False)], metadata=metadata)
    unknown = chars = written = 0
    after_blank = False
    # Parquet keeps an id in four bytes. With the first of each together, then the second, three quarters are zeros, and
    # zstd packs the ids as tightly as a dictionary would, in a third of the time.
    split = {"use_dictionary": False, "column_encoding": {"id": "BYTE_STREAM_SPLIT"}}
    packed = {"compression": "zstd", "compression_level": 1, "write_statistics": False}
    with row_group_writer(target, schema, ROW_GROUP, **split, **packed) as write:
        for indices, dictionary in _slice(token_batches(path), start, length):
            ids = look_up(np.array(words[dictionary], dtype=kind), indices)
            counts = count(indices, len(dictionary))
            widths = np.array(cut.widths(dictionary), dtype=np.int64)
            chars += int(widths @ counts)
            if not written:
                chars -= int(widths[indices[0]])  # the first token is given, not predicted
            if cut.blank:
                blank = np.array([token == cut.blank for token in dictionary])[indices]
                chars += int((blank[1:] & blank[:-1]).sum()) + (after_blank and bool(blank[0]))
                after_blank = bool(blank[-1])
            # A text may hold `<unk>` itself, as published: that is a word like any other.
            unknown += int(np.array([token not in words for token in dictionary]) @ counts)
            written += len(ids)
            write(pa.array(ids))
    return SplitFacts(written, unknown, chars)


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
