"""Counting the n-grams of a text, of every order up to the longest, in memory that does not grow with the text.

An n-gram is a path in a trie: its last id below the n-gram of the order before that it goes on from. All that go on
from one n-gram lie together, in the order of their ids, so a place in an array names an n-gram, and bisection finds it.

The window that begins at each token (as many tokens as the longest n-gram has, fewer where the text ends) is packed
into a string of bytes that sorts as its ids do. `BLOCK` windows at a time are sorted and counted; where a text has
more, the sorted runs are merged from the disk, a share of each at a time. The merged windows, in order, spell out the
trie, which is written to the disk as it grows. In memory: some 200 bytes for each window of a block, 16 bytes for each
id of the vocabulary. On the disk: the windows that differ within a block, and the trie.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm_core.mapped_ids import mapped_type
from rnnlm_core.store import check_space

BLOCK = 1 << 20
"""Windows that are sorted, n-grams that are worked on at a time; what is counted does not depend on it."""
Check = Callable[[], None]
"""Called before every step of the work; what it raises ends the work."""
Run = tuple[np.ndarray, np.ndarray]
"""Different windows in order, and how often each occurs."""


@dataclass(frozen=True)
class Grams:
    """The n-grams of one order above 1, sorted by their ids.

    Those at `first[p]` up to `first[p + 1]` go on from the n-gram at place p of the order before (where that is 1, the
    place is the id). `last` has the last id of each, `counts` how often it occurs.
    """

    first: np.ndarray
    last: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Counted:
    """What `count_ngrams` returns: how often each id occurs, and the n-grams of orders 2, 3, …"""

    ids: np.ndarray
    grams: tuple[Grams, ...]


def count_ngrams(
    ids: np.ndarray,
    order: int,
    vocabulary_size: int,
    line_end: int | None,
    folder: Path,
    block: int = BLOCK,
    check: Check = lambda: None,
) -> Counted:
    """Count the n-grams of a text up to an order; the arrays that are returned lie in `folder`.

    Args:
        ids: the text, of any integer type.
        order: length of the longest n-grams.
        vocabulary_size: number of ids.
        line_end: the id that ends a line. No n-gram then reaches across a line: one that begins with this id stands at
            the beginning of a line, as `<s>` does elsewhere, and so does the text. None: the text is one long line.
        folder: for files that may go when the arrays are done with.
        block: see `BLOCK`.
        check: see `Check`.
    """
    if order == 1:
        line_end = None  # nothing can reach across
    kind = np.dtype(next(t for t in (">u1", ">u2", ">u4") if vocabulary_size <= np.iinfo(t).max))
    length = len(ids) + (line_end is not None)

    def sorted_blocks() -> Iterator[Run]:
        for start in range(0, length, block):
            check()
            windows = _windows(ids, order, start, min(start + block, length), kind, line_end)
            yield np.unique(windows.view(f"S{order * kind.itemsize}")[:, 0], return_counts=True)

    runs = sorted_blocks() if length <= block else _stored(sorted_blocks(), folder)
    trie = _Trie(order, vocabulary_size, length, folder)
    for keys, counts in _merged(list(runs), block):
        check()
        trie.add(np.ascontiguousarray(keys).view(kind).reshape(-1, order), counts)
    return trie.finished()


def find(first: np.ndarray, last: np.ndarray, before: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the places of n-grams, -1 for those that are not there.

    Args:
        first, last: as `Grams` has them.
        before: the places of the n-grams that they go on from; -1 for none.
        ids: their last ids.
    """
    if not len(last):
        return np.full(len(ids), -1)
    known = before >= 0
    begin = np.where(known, before, 0)
    low, stop = first[begin].astype(np.int64), first[begin + 1].astype(np.int64)
    high = stop
    while (undecided := low < high).any():
        middle = (low + high) // 2
        below = undecided & (last[np.minimum(middle, len(last) - 1)] < ids)
        low = np.where(below, middle + 1, low)
        high = np.where(undecided & ~below, middle, high)
    found = known & (low < stop) & (last[np.minimum(low, len(last) - 1)] == ids)
    return np.where(found, low, -1)


def blocks_of(first: np.ndarray, block: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of n-grams of one order, so many that they and those that go on from them make a block.

    A single one may have more than a block's; never more than there are ids.
    """
    begin, last = 0, len(first) - 1
    while begin < last:
        # In the type of the array: of another one a copy would be made.
        upto = first.dtype.type(min(int(first[begin]) + block, int(first[-1])))
        end = int(np.searchsorted(first, upto, side="right")) - 1
        end = min(max(end, begin + 1), begin + block, last)
        yield begin, end
        begin = end


def mapped(path: Path, kind: Any) -> np.ndarray:
    """Return a file of numbers as they lie on the disk."""
    return np.memmap(path, kind, mode="r") if path.exists() and path.stat().st_size else np.empty(0, kind)


def zeros_on_disk(path: Path, size: int, kind: Any) -> np.ndarray:
    """Return zeros that are written to the disk as memory gets short.

    Raises `ResourceError`, or OSError, where the disk has no room for all of them.
    """
    if not size:
        return np.empty(0, kind)
    num_bytes = size * np.dtype(kind).itemsize
    check_space(path.parent, num_bytes)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            # A disk that is full when a hole of a mapped file is written to would be a signal, not an error.
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        else:
            file.truncate(num_bytes)
    return np.memmap(path, kind, mode="r+", shape=(size,))


def _windows(ids: np.ndarray, order: int, start: int, stop: int, kind: Any, line_end: int | None) -> np.ndarray:
    """Return the window that begins at each place of the text, (places, order): ids plus 1, and 0 behind its end.

    With `line_end`, the text has one before its first token, and a window ends with the first one behind its beginning.
    """
    ahead = int(line_end is not None)
    part = np.zeros(stop - start + order - 1, kind)
    given = ids[max(start - ahead, 0) : stop + order - 1 - ahead].astype(np.int64) + 1
    at = ahead if start == 0 else 0
    part[at : at + len(given)] = given
    if line_end is not None and start == 0:
        part[0] = line_end + 1
    windows = np.lib.stride_tricks.sliding_window_view(part, order).copy()
    if line_end is not None:
        ended = np.logical_or.accumulate(windows[:, 1:] == line_end + 1, axis=1)
        windows[:, 2:][ended[:, :-1]] = 0
    return windows


def _stored(runs: Iterator[Run], folder: Path) -> list[Run]:
    """Return runs as they lie on the disk; all in two files, for each file that is mapped stays open."""
    paths, ends = (folder / "runs.keys", folder / "runs.counts"), [0]
    with paths[0].open("wb") as all_keys, paths[1].open("wb") as all_counts:
        for keys, counts in runs:
            all_keys.write(keys.data)
            all_counts.write(counts.data)
            ends.append(ends[-1] + len(keys))
    every = mapped(paths[0], keys.dtype), mapped(paths[1], counts.dtype)
    return [(every[0][begin:end], every[1][begin:end]) for begin, end in pairwise(ends)]


def _merged(runs: Sequence[Run], block: int) -> Iterator[Run]:
    """Yield the windows of all runs in order, each once with the sum of its counts, at most a block at a time."""
    at = [0] * len(runs)
    share = max(1, block // len(runs))
    while True:
        heads = [(keys[i : i + share], counts[i : i + share]) for (keys, counts), i in zip(runs, at, strict=True)]
        # A run that goes on may have more of what is greater than the last that is seen of it, and nothing else.
        seen = [head[0][-1] for head, run, i in zip(heads, runs, at, strict=True) if i + share < len(run[0])]
        ends = [len(keys) if not seen else int(np.searchsorted(keys, min(seen), side="right")) for keys, _ in heads]
        parts = [(keys[:end], counts[:end]) for (keys, counts), end in zip(heads, ends, strict=True) if end]
        if not parts:
            return
        yield parts[0] if len(parts) == 1 else _summed(parts)
        at = [i + end for i, end in zip(at, ends, strict=True)]


def _summed(parts: Sequence[Run]) -> Run:
    keys = np.concatenate([part for part, _ in parts])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(np.concatenate([counts for _, counts in parts])[order], starts)


class _Trie:
    """The n-grams that sorted windows spell out, written to files as they come."""

    def __init__(self, order: int, vocabulary_size: int, longest: int, folder: Path) -> None:
        self.order, self.folder = order, folder
        self.kinds = {
            "first": np.int32 if longest <= np.iinfo(np.int32).max else np.int64,
            "last": mapped_type(vocabulary_size),
            "counts": np.int64,
        }
        self.ids = np.zeros(vocabulary_size, np.int64)
        self.bigrams = np.zeros(vocabulary_size, np.int64)
        """How many bigrams begin with each id."""
        self.sizes = [0] * (order + 1)
        self.open = [0] * (order + 1)
        """How often the last n-gram of each order has occurred so far."""
        self.before: np.ndarray | None = None

    def add(self, rows: np.ndarray, counts: np.ndarray) -> None:
        """Go on with the windows that follow, (windows, order), ids plus 1."""
        before = np.zeros_like(rows[:1]) if self.before is None else self.before
        differs = rows != np.concatenate([before, rows[:-1]])
        new = np.logical_or.accumulate(differs, axis=1) & (rows != 0)
        self.before = rows[-1:].copy()
        heads = rows[:, 0].astype(np.int64) - 1
        self.ids += np.bincount(heads, counts, len(self.ids)).astype(np.int64)
        starts = [np.flatnonzero(column) for column in new.T]
        for n in range(2, self.order + 1):
            began, within = starts[n - 1], rows[:, n - 1] != 0
            if n == 2:
                self.bigrams += np.bincount(heads[began], minlength=len(self.ids))
            else:
                self._append(n, "first", self.sizes[n] + np.searchsorted(began, starts[n - 2]))
            self._append(n, "last", rows[began, n - 1] - 1)
            # Windows before the first that begins an n-gram have the last one of the block before.
            places = np.cumsum(new[:, n - 1])[within]
            sums = np.bincount(places, counts[within], len(began) + 1).astype(np.int64)
            sums[0] += self.open[n]
            self._append(n, "counts", sums[0 if self.sizes[n] else 1 : -1])
            self.open[n] = int(sums[-1])
            self.sizes[n] += len(began)

    def finished(self) -> Counted:
        """Return all that was added."""
        grams = []
        for n in range(2, self.order + 1):
            self._append(n, "counts", np.array([self.open[n]] if self.sizes[n] else []))
            if n == 2:
                self._append(n, "first", np.concatenate([[0], np.cumsum(self.bigrams)]))
            else:
                self._append(n, "first", np.array([self.sizes[n]]))
            first, last, counts = (mapped(self._path(n, name), kind) for name, kind in self.kinds.items())
            grams.append(Grams(first, last, counts))
        return Counted(self.ids, tuple(grams))

    def _append(self, order: int, name: str, values: np.ndarray) -> None:
        with self._path(order, name).open("ab") as file:
            # Not `tofile`, whose error does not say that the disk is full.
            file.write(values.astype(self.kinds[name]).data)

    def _path(self, order: int, name: str) -> Path:
        return self.folder / f"{order}.{name}"
