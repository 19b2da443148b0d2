"""Interpolated Kneser-Ney smoothing (Kneser and Ney 1995; modified: Chen and Goodman 1998, section 3).

    P(w | h) = (c(h w) - D(c(h w))) / c(h ·)  +  weight(h) P(w | h')        where h w was counted, else the second term
    weight(h) = (D₁ N₁(h ·) + D₂ N₂(h ·) + D₃ N₃₊(h ·)) / c(h ·)            1 where nothing goes on from h

h' is h without its first token, N₁(h ·) the number of tokens that follow h once, and so on; the last one below is the
uniform distribution: P(w) = (c(w) - D(c(w))) / c(·) + weight / V. Of the longest n-grams c is how often they occur. Of
shorter ones it is how many different tokens stand before them, N₁₊(· h w), unless none can: an n-gram that begins a
line has the number of its occurrences, as in SRILM and KenLM.

Of each order, from the numbers n₁ … n₄ of n-grams with c = 1 … 4 and Y = n₁ / (n₁ + 2 n₂):

    modified  D₁ = 1 - 2 Y n₂ / n₁,  D₂ = 2 - 3 Y n₃ / n₂,  D₃ = 3 - 4 Y n₄ / n₃ (for 3 and more)
    single    D₁ = D₂ = D₃ = Y

Small texts and small vocabularies have orders that lack one of the four numbers, or for which a modified discount would
not be above 0: such an order has the single one, and without n₁ or n₂ 0.5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnnlm_core.ngram_counts import BLOCK, Check, Counted, blocks_of, find, zeros_on_disk

WITHOUT_COUNTS = 0.5
"""The discount of an order that has nothing to estimate one from."""


@dataclass(frozen=True)
class Smoothed:
    """The n-grams of one order above 1 with what they are predicted by; `first` and `last` are those of `Grams`.

    `shares` has the first term of P for each n-gram, `weights` the weight of each n-gram of the order before.
    """

    first: np.ndarray
    last: np.ndarray
    shares: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """P(w) of every id, the n-grams of orders 2, 3, …, and the discounts (D₁, D₂, D₃) of all orders from 1.

    `simpler` are the orders whose discounts are not those that were asked for.
    """

    ids: np.ndarray
    grams: tuple[Smoothed, ...]
    discounts: tuple[tuple[float, float, float], ...]
    simpler: tuple[int, ...]


def estimate(
    counted: Counted,
    modified: bool,
    line_end: int | None,
    folder: Path,
    block: int = BLOCK,
    check: Check = lambda: None,
) -> Estimate:
    """Smooth what was counted, in memory that does not grow with it; the arrays that are returned lie in `folder`.

    `line_end` is what `count_ngrams` was given.
    """
    used = _used_counts(counted, line_end, folder, block, check)
    found = [discounts(_counts_of_counts(counts, block), modified) for counts in used]
    grams = []
    for n, (one, counts) in enumerate(zip(counted.grams, used[1:], strict=True), start=2):
        shares = zeros_on_disk(folder / f"{n}.shares", len(one.last), np.float64)
        weights = zeros_on_disk(folder / f"{n}.weights", len(one.first) - 1, np.float64)
        for begin, end in blocks_of(one.first, block):
            check()
            here = slice(int(one.first[begin]), int(one.first[end]))
            shares[here], weights[begin:end] = _terms(
                one.first[begin : end + 1].astype(np.int64), counts[here], found[n - 1][0]
            )
        grams.append(Smoothed(one.first, one.last, shares, weights))
    shares, (weight,) = _terms(np.array([0, len(used[0])]), used[0], found[0][0])
    simpler = tuple(n for n, (_, asked) in enumerate(found, start=1) if not asked)
    return Estimate(shares + weight / len(shares), tuple(grams), tuple(three for three, _ in found), simpler)


def discounts(n: Sequence[int], modified: bool) -> tuple[tuple[float, float, float], bool]:
    """Return (D₁, D₂, D₃) of n-grams of which n[i] have the count i + 1, and whether they are those asked for."""
    n1, n2, n3, n4 = n
    if not (n1 and n2):
        return (WITHOUT_COUNTS,) * 3, False
    y = n1 / (n1 + 2 * n2)
    if modified and n3 and n4:
        three = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if min(three) > 0:
            return three, True
    return (y, y, y), not modified


def _terms(first: np.ndarray, counts: np.ndarray, taken: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each n-gram, and the weight of each that they go on from; `first` begins anywhere."""
    histories = np.repeat(np.arange(len(first) - 1), np.diff(first))
    size = np.minimum(counts, 3)
    total = np.bincount(histories, counts, len(first) - 1)
    lost = sum(
        discount * np.bincount(histories[size == i], minlength=len(first) - 1) for i, discount in enumerate(taken, 1)
    )
    counted = total > 0
    weights = np.divide(lost, total, out=np.ones(len(total)), where=counted)
    left = counts - np.array([0.0, *taken])[size]
    return np.divide(left, total[histories], out=np.zeros_like(left), where=counted[histories]), weights


def _used_counts(counted: Counted, line_end: int | None, folder: Path, block: int, check: Check) -> list[np.ndarray]:
    """Return c of the n-grams of each order, from 1."""
    if not counted.grams:
        return [counted.ids]
    used = [np.zeros_like(counted.ids)]
    used += [
        zeros_on_disk(folder / f"{n}.used", len(one.last), np.int64) for n, one in enumerate(counted.grams[:-1], 2)
    ]
    shorter = np.empty(0, np.int64)
    """Where, in the order before, each n-gram without its first id is."""
    for n, one in enumerate(counted.grams, start=2):
        before, shorter = shorter, zeros_on_disk(folder / f"{n}.shorter", len(one.last), np.int64)
        for begin, end in blocks_of(one.first, block):
            check()
            here = slice(int(one.first[begin]), int(one.first[end]))
            places = one.last[here].astype(np.int64)
            if n > 2:
                below = np.repeat(before[begin:end], np.diff(one.first[begin : end + 1]))
                places = find(counted.grams[n - 3].first, counted.grams[n - 3].last, below, places)
                assert (places >= 0).all(), "a text has every part of its n-grams"
            shorter[here] = places
            np.add.at(used[n - 2], places, 1)
    if line_end is not None:
        for one, counts, (begin, end) in zip(counted.grams, used[1:], _beginning(counted, line_end), strict=False):
            counts[begin:end] = one.counts[begin:end]
    return [*used, counted.grams[-1].counts]


def _beginning(counted: Counted, line_end: int) -> Iterator[tuple[int, int]]:
    """Yield where, in each order from 2, the n-grams are that stand at the beginning of a line."""
    begin, end = line_end, line_end + 1
    for one in counted.grams:
        begin, end = int(one.first[begin]), int(one.first[end])
        yield begin, end


def _counts_of_counts(counts: np.ndarray, block: int) -> list[int]:
    """Return how many n-grams have the counts 1, 2, 3 and 4."""
    number = np.zeros(6, np.int64)
    for start in range(0, len(counts), block):
        number += np.bincount(np.minimum(counts[start : start + block], 5), minlength=6)
    return [int(n) for n in number[1:5]]
