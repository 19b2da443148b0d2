"""Text to tokens, written as parquet in bounded memory.

The `tokens` artifact has one parquet file per input file (`whole`, or `train`, `valid`, `test`), or several pieces of
it, with one column `token`, dictionary-encoded, and `tokens.json` with the facts that go with it. It knows nothing of
ids. The tokens of a shard are such an artifact too, and those of all shards together take its files over.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm_core.config import SPLITS
from rnnlm_core.errors import DataError
from rnnlm_core.extensions import digests
from rnnlm_core.indices import narrow
from rnnlm_core.levels import BpeTokenizer, Tokenizer, WordTokenizer, read_tokenizer, tokenizer
from rnnlm_core.normalize import Normalizer, normalizer, read_blocks
from rnnlm_core.pieces import Span, piece_files, piece_name, spans_of_shards
from rnnlm_core.row_groups import row_group_writer
from rnnlm_core.shards import Division, Shard, open_shard
from rnnlm_core.splits import split_lengths
from rnnlm_core.store import Handle, Store

ROW_GROUP = 1 << 20
"""Tokens per row group: the most that is ever held in memory."""


@dataclass(frozen=True)
class Tokens:
    """What `tokenize` returns: the artifact, and how many tokens each of its files holds."""

    handle: Handle
    num_tokens: dict[str, int]


def tokenize(
    text: Handle,
    normalizer_name: str,
    level: str,
    store: Store,
    *,
    eos: str = "none",
    max_chars: int = 0,
    bpe_size: int = 0,
    shares: tuple[int, int, int] | None = None,
) -> Tokens:
    """Normalise a text and cut it into tokens.

    `max_chars` (0 = all) keeps the first so many characters of the normalised text. Level `bpe` learns up to
    `bpe_size` tokens from the training text alone: a text in one file is first divided by `shares`, in characters.

    Raises `DataError` when nothing is left (and says which normaliser would keep the text), and for bytes that
    are not UTF-8.
    """
    parts = _parts(text, normalizer_name, max_chars, store)
    if level == "bpe":
        if "whole" in parts:
            parts = _divide(parts["whole"], shares, _length(parts["whole"]))
        cut: Tokenizer = BpeTokenizer.learn(_at_words(parts["train"].blocks(join_lines=True)), bpe_size)
    else:
        cut = tokenizer(level, eos)
    return _tokens(text, parts, cut, normalizer_name, max_chars, store)


def tokenize_as(text: Handle, normalizer_name: str, cut: Tokenizer, store: Store) -> Tokens:
    """Normalise a text and cut it with a tokenizer that is there already, as a trained model has one."""
    return _tokens(text, _parts(text, normalizer_name, 0, store), cut, normalizer_name, 0, store)


def _parts(text: Handle, normalizer_name: str, max_chars: int, store: Store) -> dict[str, "Part"]:
    rule = normalizer(normalizer_name)
    return {path.stem: Part(path, rule, max_chars=max_chars) for path in sorted(store.open(text).glob("*.txt"))}


def _tokens(
    text: Handle, parts: Mapping[str, "Part"], cut: Tokenizer, normalizer_name: str, max_chars: int, store: Store
) -> Tokens:
    with store.draft("tokens") as draft:
        written = {name: _write_tokens(part, cut, draft.folder / f"{name}.parquet") for name, part in parts.items()}
        counts = {name: total for name, (total, _) in written.items()}
        if all(blank for _, blank in written.values()):
            raise nothing_left(text.sha256, normalizer_name)
        _write_facts(draft.folder, cut, normalizer_name, max_chars, counts)
        return Tokens(draft.publish(), counts)


def _write_facts(
    folder: Path, cut: Tokenizer, normalizer_name: str, max_chars: int, num_tokens: Mapping[str, int]
) -> None:
    facts = {**cut.about, "normalizer": normalizer_name, "max_chars": max_chars, "num_tokens": num_tokens}
    if code := digests({"tokenizer": cut.level, "normalizer": normalizer_name}):
        facts["code"] = code  # an edit of it makes other tokens, and all that comes of them
    (folder / "tokens.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    cut.write_files(folder)


@dataclass(frozen=True)
class Merges:
    """What `learn_merges` returns: the artifact, and which characters of each shard belong to which split.

    None stands for a shard whose file is a split by itself.
    """

    handle: Handle
    spans: tuple[tuple[Span, ...] | None, ...]


def learn_merges(
    division: Division, normalizer_name: str, bpe_size: int, shares: tuple[int, int, int] | None, store: Store
) -> Merges:
    """Learn byte pairs from the training text, as `tokenize` does, for shards that are then cut one by one."""
    shards, rule = division.shards, normalizer(normalizer_name)
    source = store.open(shards[0].text)
    spans: tuple[tuple[Span, ...] | None, ...] = (None,) * len(shards)
    train = Part(source / "train.txt", rule)
    if shards[0].file == "whole":
        whole = Part(source / "whole.txt", rule)
        lengths = [_length(replace(whole, shard=shard)) for shard in shards]
        parts = _divide(whole, shares, sum(lengths))
        train = parts["train"]
        found = [Span(name, "whole", part.start, part.max_chars) for name, part in parts.items()]
        spans = tuple(spans_of_shards(found, [{"whole": length} for length in lengths]))
    cut = BpeTokenizer.learn(_at_words(train.blocks(join_lines=True)), bpe_size)
    with store.draft("merges") as draft:
        cut.write_files(draft.folder)
        return Merges(draft.publish(), spans)


@dataclass(frozen=True)
class ShardTokens:
    """What `tokenize_shard` returns: a `tokens` artifact, its tokens per file, and whether all is white space."""

    handle: Handle
    num_tokens: dict[str, int]
    blank: bool


def tokenize_shard(
    shard: Shard,
    normalizer_name: str,
    level: str,
    store: Store,
    *,
    eos: str = "none",
    merges: Handle | None = None,
    spans: Sequence[Span] | None = None,
) -> ShardTokens:
    """Normalise a shard and cut it into tokens; those of all shards in order are those of the text.

    Level `bpe` takes `merges` of `learn_merges`, and `spans`, the characters that belong to each split. That
    `can_be_divided` is the caller's to see to. Raises `DataError` for bytes that are not UTF-8.
    """
    whole = Part(open_shard(shard, store), normalizer(normalizer_name), shard=shard)
    parts = {shard.file: whole}
    if spans is not None:
        parts = {span.split: replace(whole, start=span.start, max_chars=span.length) for span in spans}
    cut = tokenizer(level, eos) if merges is None else read_tokenizer({"level": level}, store.open(merges))
    with store.draft("tokens") as draft:
        written = {
            name: _write_tokens(part, cut, draft.folder / piece_name(name, 0, 1)) for name, part in parts.items()
        }
        counts = {name: total for name, (total, _) in written.items()}
        _write_facts(draft.folder, cut, normalizer_name, 0, counts)
        return ShardTokens(draft.publish(), counts, all(blank for _, blank in written.values()))


def join_tokens(shards: Sequence[ShardTokens], normalizer_name: str, where: str, store: Store) -> Tokens:
    """Make one `tokens` artifact of those of all shards, in order, without reading them.

    Raises `DataError` when nothing is left of the text `where`.
    """
    if all(shard.blank for shard in shards):
        raise nothing_left(where, normalizer_name)
    held: dict[str, list[ShardTokens]] = {}
    for shard in shards:
        for name in shard.num_tokens:
            held.setdefault(name, []).append(shard)
    counts = {}
    with store.draft("tokens") as draft:
        for name, having in sorted(held.items()):
            # What holds nothing is left out, unless there is nothing else.
            filled = [shard for shard in having if shard.num_tokens[name]] or having[:1]
            counts[name] = sum(shard.num_tokens[name] for shard in filled)
            for number, shard in enumerate(filled):
                draft.adopt(shard.handle, piece_name(name, 0, 1), piece_name(name, number, len(filled)))
        folder = store.open(shards[0].handle)
        _write_facts(draft.folder, token_tokenizer(folder), normalizer_name, 0, counts)
        return Tokens(draft.publish(), counts)


def nothing_left(where: object, normalizer_name: str) -> DataError:
    """Return the error for a text of which its normaliser keeps nothing."""
    remedy = "give a text that holds more than white space"
    if normalizer_name not in ("none", "nfc"):
        remedy = "use `--set corpus.normalizer=none`, which keeps every script"
    return DataError(f"no tokens left after normalizer `{normalizer_name}`", where, remedy)


def too_short(found: int, need: int, where: object, remedy: str) -> DataError:
    """Return the error for a text with fewer tokens than are needed."""
    return DataError(f"text too short, needs at least {need:,} tokens", f"{found:,} tokens in {where}", remedy)


def token_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a `tokens` artifact: `level`, `eos`, `normalizer`, `max_chars`, `num_tokens`."""
    facts: dict[str, Any] = json.loads((folder / "tokens.json").read_text())
    return facts


def token_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that made a `tokens` artifact."""
    return read_tokenizer(token_facts(folder), folder)


@dataclass(frozen=True)
class Part:
    """The normalised text of a file, or the characters [start, start + max_chars) of it (0 = to the end)."""

    path: Path
    rule: Normalizer
    start: int = 0
    max_chars: int = 0
    shard: Shard | None = None
    """Of these bytes of the file alone, as they are in the whole."""

    def blocks(self, join_lines: bool) -> Iterator[str]:
        """Yield the text in blocks; `join_lines` lets the lines follow each other directly if the rule says so."""
        blocks = self._normalized()
        if self.rule.joins_lines and join_lines:
            # In bytes, and back: a third of the time that `str.replace` takes.
            blocks = (block.encode().replace(b"\n", b"").decode() for block in blocks)
        if not self.start and not self.max_chars:
            yield from blocks
            return
        skip, left = self.start, self.max_chars
        for block in blocks:
            piece = block[skip:]
            skip -= min(skip, len(block))
            if self.max_chars:
                piece = piece[:left]
                left -= len(piece)
            if piece:
                yield piece
            if self.max_chars and not left:
                return

    def _normalized(self) -> Iterable[str]:
        if self.shard is None:
            return self.rule.blocks(read_blocks(self.path))
        blocks = read_blocks(self.path, start=self.shard.start, stop=self.shard.stop)
        if not self.shard.before:
            return self.rule.blocks(blocks)
        # The rule sees what came before, and what it makes of that alone is dropped again.
        seen = len("".join(self.rule.blocks([self.shard.before])))
        return _without_first(seen, self.rule.blocks(chain([self.shard.before], blocks)))

    def tokenizable(self, cut: Tokenizer) -> Iterator[str]:
        """Yield the blocks as their tokenizer shall see them."""
        last, length = "\n", 0
        blocks = self.blocks(join_lines=cut.joins_lines)
        for block in _at_words(blocks) if cut.reads_words else blocks:
            if block:
                last = block
                length += len(block)
                yield block
        cut_off = 0 < self.max_chars == length
        goes_on = cut_off or (self.shard is not None and not self.shard.last)
        if isinstance(cut, WordTokenizer) and cut.eos and not last.endswith("\n") and not goes_on:
            yield "\n"  # a last line without line end is a line


def _without_first(num_chars: int, blocks: Iterable[str]) -> Iterator[str]:
    for block in blocks:
        yield block[num_chars:]
        num_chars -= min(num_chars, len(block))


def _at_words(blocks: Iterable[str]) -> Iterator[str]:
    """Regroup blocks so that each ends at a line end or before the single space that leads a word.

    No byte pair reaches over these places, so that the tokens do not depend on where the blocks ended.
    """
    held = ""
    for block in blocks:
        text = held + block
        cut = len(text)
        while (cut := text.rfind(" ", 0, cut)) > 0:
            if not text[cut - 1].isspace() and not text[cut + 1 : cut + 2].isspace() and cut + 1 < len(text):
                break
        cut = max(cut, text.rfind("\n") + 1, 0)
        if cut:
            yield text[:cut]
        held = text[cut:]
    if held:
        yield held


def _length(part: Part) -> int:
    return sum(len(block) for block in part.blocks(join_lines=True))


def _divide(whole: Part, shares: tuple[int, int, int] | None, length: int) -> dict[str, Part]:
    """Cut a text of so many characters into contiguous parts."""
    parts, start = {}, 0
    for name, size in split_lengths(length, shares).items():
        if shares and shares[SPLITS.index(name)]:
            if not length:
                raise nothing_left(whole.path.name, whole.rule.name)
            if not size:
                raise too_short(0, 2, f"split `{name}`", "give a longer text or change corpus.split")
            parts[name] = Part(whole.path, whole.rule, start, size)
        start += size
    return parts


def file_tokens(folder: Path, name: str) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield the tokens of a file of a `tokens` artifact, all its pieces in order, as `token_batches` does."""
    for path in piece_files(folder, name):
        yield from token_batches(path)


def token_batches(path: Path) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield the tokens of a parquet file as (indices, dictionary), one row group at a time.

    Indices are bytes where the dictionary has at most 256 entries. The dictionary is in the order of first appearance
    within the row group.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            for chunk in file.read_row_group(group).column("token").chunks:
                yield narrow(chunk.indices.to_numpy(), len(chunk.dictionary)), chunk.dictionary.to_pylist()


def _write_tokens(part: Part, cut: Tokenizer, target: Path) -> tuple[int, bool]:
    """Write the tokens of a file; return how many they are, and whether its text is nothing but white space."""
    import pyarrow as pa

    kind = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([pa.field("token", kind, nullable=False)])  # nulls would cost a second column of levels
    total, blank = 0, True
    # A dictionary leaves a few bits a token, of which zstd would take a tenth at the price of all the rest; the least
    # and the greatest token of a row group say nothing.
    with row_group_writer(target, schema, use_dictionary=True, compression="none", write_statistics=False) as write:
        for piece in _row_groups(part.tokenizable(cut), cut):
            column = cut.encode(piece)
            total += len(column)
            blank = blank and piece.isspace()
            write(pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), column.dictionary))
    return total, blank


def _row_groups(blocks: Iterator[str], cut: Tokenizer) -> Iterator[str]:
    """Regroup blocks so that each holds at most a row group of tokens, where a token may be a single character.

    Words and merged bytes are fewer than characters, and must not be cut.
    """
    size = {"char": ROW_GROUP, "byte": ROW_GROUP // 4}.get(cut.level)
    for block in blocks:
        if size is None or len(block) <= size:
            if block:
                yield block
            continue
        for start in range(0, len(block), size):
            yield block[start : start + size]
