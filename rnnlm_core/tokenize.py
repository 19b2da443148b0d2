"""Text to tokens: characters or words, written as parquet in bounded memory.

The `tokens` artifact has one parquet file per input file (`whole`, or `train`, `valid`, `test`) with one column
`token`, dictionary-encoded, and `tokens.json` with the facts that go with it. It knows nothing of ids.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm_core.errors import DataError, unknown_name
from rnnlm_core.normalize import Normalizer, normalizer, read_blocks
from rnnlm_core.store import Handle, Store

ROW_GROUP = 1 << 20
"""Tokens per row group: the most that is ever held in memory."""


@dataclass(frozen=True)
class Tokenizer:
    """What a token is. `join` stands between tokens when they become text again."""

    level: str
    split: Callable[[str], list[str]]
    join: str


TOKENIZERS = {
    "char": Tokenizer("char", list, ""),
    "word": Tokenizer("word", str.split, " "),
}


def tokenizer(level: str) -> Tokenizer:
    """Return the tokenizer of a level; an unknown level is an error that lists the known ones."""
    if level not in TOKENIZERS:
        raise unknown_name("tokenizer level", level, list(TOKENIZERS))
    return TOKENIZERS[level]


@dataclass(frozen=True)
class Tokens:
    """What `tokenize` returns: the artifact, and how many tokens each of its files holds."""

    handle: Handle
    num_tokens: dict[str, int]


def tokenize(text: Handle, normalizer_name: str, level: str, store: Store) -> Tokens:
    """Normalise a text and cut it into tokens.

    Raises `DataError` when nothing is left (and says which normaliser would keep the text), and for bytes that
    are not UTF-8.
    """
    source = store.open(text)
    with store.draft("tokens") as draft:
        counts = {}
        for path in sorted(source.glob("*.txt")):
            rule = normalizer(normalizer_name)
            counts[path.stem] = _write_tokens(path, draft.folder / f"{path.stem}.parquet", rule, level)
        if not any(counts.values()):
            raise nothing_left(source.name, normalizer_name)
        facts = {"level": level, "normalizer": normalizer_name, "num_tokens": counts}
        (draft.folder / "tokens.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
        return Tokens(draft.publish(), counts)


def nothing_left(where: object, normalizer_name: str) -> DataError:
    """Return the error for a text of which its normaliser keeps nothing."""
    remedy = "give a text that holds more than white space"
    if normalizer_name != "none":
        remedy = "use `--set corpus.normalizer=none`, which keeps every script"
    return DataError(f"no tokens left after normalizer `{normalizer_name}`", where, remedy)


def token_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a `tokens` artifact: `level`, `normalizer`, `num_tokens`."""
    facts: dict[str, Any] = json.loads((folder / "tokens.json").read_text())
    return facts


def normalized_blocks(path: Path, rule: Normalizer, level: str) -> Iterator[str]:
    """Yield the normalised text of a file as its tokenizer shall see it."""
    for block in rule.blocks(read_blocks(path)):
        yield block.replace("\n", "") if rule.joins_lines and level == "char" else block


def token_batches(path: Path) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield the tokens of a parquet file as (indices, dictionary), one row group at a time.

    The dictionary is in the order of first appearance within the row group.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            for chunk in file.read_row_group(group).column("token").chunks:
                yield chunk.indices.to_numpy(zero_copy_only=False), chunk.dictionary.to_pylist()


def _write_tokens(path: Path, target: Path, rule: Normalizer, level: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("token", pa.dictionary(pa.int32(), pa.string()))])
    encode = {"char": _encode_characters, "word": _encode_words}[tokenizer(level).level]
    total = 0
    with pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=True, write_page_checksum=True) as writer:
        for piece in _row_groups(normalized_blocks(path, rule, level), level):
            column = encode(piece)
            total += len(column)
            writer.write_table(pa.table([column], schema=schema), row_group_size=max(len(column), 1))
    return total


def _row_groups(blocks: Iterator[str], level: str) -> Iterator[str]:
    """Regroup blocks so that each holds at most a row group of characters (words are fewer than characters)."""
    for block in blocks:
        if level != "char" or len(block) <= ROW_GROUP:
            if block:
                yield block
            continue
        for start in range(0, len(block), ROW_GROUP):
            yield block[start : start + ROW_GROUP]


def _encode_characters(text: str) -> Any:
    """Return the characters as a dictionary array in order of first appearance (a table look-up, no Python loop)."""
    import pyarrow as pa

    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    kinds = np.flatnonzero(np.bincount(points))
    table = np.zeros(int(kinds[-1]) + 1, dtype=np.int64)
    table[points[::-1]] = np.arange(len(points) - 1, -1, -1)  # the last write wins: the first place of each
    kinds = kinds[np.argsort(table[kinds])]
    table[kinds] = np.arange(len(kinds))
    dictionary = pa.array([chr(point) for point in kinds], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(table[points], pa.int32()), dictionary)


def _encode_words(text: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    words = pc.utf8_split_whitespace(pa.array([text], pa.string())).flatten()
    return pc.dictionary_encode(words.filter(pc.not_equal(words, "")))
