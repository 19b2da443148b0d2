"""A long text in shards: ranges of whole lines, which can be worked on in any order, by anybody.

Where a shard begins and ends follows from the bytes of the text and the size of a shard alone, never from who works on
it nor from how many do, and what is made of all shards together does not depend on that either.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from rnnlm_core.config import LEVELS, LINE_KEEPING, NORMALIZERS
from rnnlm_core.errors import IntegrityError
from rnnlm_core.store import Handle, Store

SHARD_BYTES: Final = 1 << 26
"""A shard ends with the line in which it gets this long: half a minute of work. Part of what a corpus is."""
_BLOCK = 1 << 20
_LETTER = re.compile(rb"[A-Za-z]")


@dataclass(frozen=True)
class Shard:
    """The bytes [start, stop) of a file of a text, which begin and end with a line.

    `before` is a text that leaves every normaliser as all that comes before the shard does: "" at the beginning, else
    a line with a letter in it or, if there has been none, without. `last` says that the file ends here.
    """

    text: Handle
    file: str
    number: int
    start: int
    stop: int
    sha256: str
    before: str
    last: bool

    def cache_identity(self) -> tuple[str, str, str, bool]:
        """What its tokens depend on: not where it lies, so that a text that grew is cut anew at its end alone."""
        return self.sha256, self.file, self.before, self.last


@dataclass(frozen=True)
class Division:
    """What `divide` returns: the shards of all files of a text, in order."""

    shards: tuple[Shard, ...]


def can_be_divided(normalizer: str, level: str, eos: str, max_chars: int) -> bool:
    """Say whether the shards' tokens, one after the other, are those of the text as a whole.

    Not where the first characters alone are kept, where byte pairs reach over a line's end, where `<eos>` is asked for
    of a normaliser that keeps no lines, and not with rules of other packages, of which nobody knows.
    """
    across = level == "bpe" and normalizer not in ("none", "nfc")
    ours = normalizer in NORMALIZERS and level in LEVELS
    return ours and not max_chars and not across and (eos == "none" or normalizer in LINE_KEEPING)


def divide(text: Handle, shard_bytes: int, store: Store) -> Division:
    """Cut each file of a text at the first line end from which a shard has `shard_bytes`.

    A line that is longer makes its shard longer.
    """
    folder = store.open(text)
    return Division(tuple(shard for path in sorted(folder.glob("*.txt")) for shard in _shards(text, path, shard_bytes)))


def open_shard(shard: Shard, store: Store) -> Path:
    """Return the file that a shard is a range of, after verifying the bytes of that range.

    Raises `IntegrityError` if they are not those that were divided.
    """
    path = store.path(shard.text) / f"{shard.file}.txt"
    if not path.exists():
        store.open(shard.text)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in _blocks(file, shard.start, shard.stop):
            digest.update(block)
    if digest.hexdigest() != shard.sha256:
        where = f"{path} (bytes {shard.start:,} to {shard.stop:,})"
        raise IntegrityError(f"artifact {shard.text} has a damaged {path.name}", where, "run the same command again")
    return path


def _shards(text: Handle, path: Path, shard_bytes: int) -> Iterator[Shard]:
    size = path.stat().st_size
    start, number, letters = 0, 0, False
    with path.open("rb") as file:
        while start < size:
            stop = _line_end(file, start + shard_bytes - 1, size)
            before = "" if not start else "x\n" if letters else "\n"
            digest = hashlib.sha256()
            for block in _blocks(file, start, stop):
                digest.update(block)
                letters = letters or _LETTER.search(block) is not None
            yield Shard(text, path.stem, number, start, stop, digest.hexdigest(), before, stop == size)
            start, number = stop, number + 1


def _line_end(file: BinaryIO, start: int, size: int) -> int:
    """Return the place after the first line end from `start` on, or the end of the file."""
    at = start
    for block in _blocks(file, start, size):
        if (found := block.find(b"\n")) >= 0:
            return at + found + 1
        at += len(block)
    return size


def _blocks(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop and (block := file.read(min(_BLOCK, stop - start))):
        yield block
        start += len(block)
