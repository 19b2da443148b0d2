"""What a text looks like: how often tokens, pairs and triples occur, and how their counts fall with their rank.

Zipf's law: the count of the i-th most frequent item is about C / i^α (d2l, chapter "Language Models and the Dataset",
section "Natural Language Statistics"). On a log–log plot that is a line of slope -α.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rnnlm_core.pictures import save_picture
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import Tokens, file_tokens, token_tokenizer

PICTURE = "zipf.png"
FACTS = "statistics.json"
MOST_TOKENS = 5_000_000
"""Statistics are those of the first so many tokens: enough for the picture, in bounded memory."""
NUM_TOP = 10
NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}
COLOURS = {1: "#0072B2", 2: "#D55E00", 3: "#009E73"}


@dataclass(frozen=True)
class Grams:
    """How often the sequences of `n` tokens occur."""

    n: int
    num_types: int
    exponent: float | None
    """α of Zipf's law; None where there are too few ranks for a line."""
    top: tuple[tuple[tuple[str, ...], int], ...]
    """The most frequent ones with their counts."""

    @property
    def name(self) -> str:
        """`unigram`, `bigram` or `trigram`."""
        return NAMES[self.n]


@dataclass(frozen=True)
class Statistics:
    """What `statistics` returns: an artifact with picture and facts, and the facts."""

    handle: Handle
    num_tokens: int
    grams: tuple[Grams, ...]


def statistics(tokens: Tokens, store: Store) -> Statistics:
    """Count unigrams, bigrams and trigrams of a `tokens` artifact (of its training file, if it came divided)."""
    folder = store.open(tokens.handle)
    ids, types = _read(folder, "whole" if "whole" in tokens.num_tokens else "train")
    counted = {n: count_grams(ids, n, len(types)) for n in NAMES if len(ids) >= n}
    grams = tuple(
        Grams(
            n=n,
            num_types=len(counts),
            exponent=zipf_exponent(counts),
            top=tuple(
                (tuple(types[i] for i in gram), int(count))
                for gram, count in zip(found[:NUM_TOP].tolist(), counts[:NUM_TOP], strict=True)
            ),
        )
        for n, (found, counts) in counted.items()
    )
    with store.draft("statistics") as draft:
        facts = {"num_tokens": len(ids), "grams": [asdict(entry) for entry in grams]}
        (draft.folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
        noun = token_tokenizer(folder).noun
        plot_zipf({n: counts for n, (_, counts) in counted.items()}, grams, noun, draft.folder / PICTURE)
        return Statistics(draft.publish(), len(ids), grams)


def count_grams(ids: np.ndarray, n: int, num_types: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sequences of `n` ids and their counts, most frequent first, ties in order of first appearance.

    Args:
        ids: a sequence of ids below `num_types`.
        n: length of the sequences counted.
        num_types: number of different ids.

    Returns:
        ids of shape (types, n), counts of shape (types,).
    """
    # One number per n-gram; where that does not fit into 64 bits, the numbers of the shorter ones are made dense.
    keys = ids.astype(np.int64)
    size = num_types
    for i in range(1, n):
        if size * num_types >= 2**63:
            kinds, keys = np.unique(keys, return_inverse=True)
            size = len(kinds)
        keys = keys[: len(ids) - i] * num_types + ids[i:]
        size *= num_types
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    return ids[first[order][:, None] + np.arange(n)], counts[order]


def zipf_exponent(counts: Sequence[int] | np.ndarray) -> float | None:
    """Return α of counts ∝ 1 / rank^α, or None for fewer than 10 ranks.

    Least squares on log count against log rank, at up to 100 ranks spaced evenly in the logarithm, from rank 10 (the
    most frequent few lie off the line) to the last that occurs twice; all ranks where there are fewer than 100.
    """
    counts = np.asarray(counts)
    last = int((counts >= 2).sum()) if (counts >= 2).sum() >= 10 else len(counts)
    if last < 10:
        return None
    start = 10 if last >= 100 else 1
    ranks = np.unique(np.geomspace(start, last, 100).round().astype(np.int64))
    slope, _ = np.polyfit(np.log(ranks), np.log(counts[ranks - 1]), 1)
    return float(-slope)


def plot_zipf(counts: dict[int, np.ndarray], grams: Sequence[Grams], noun: str, path: Path) -> None:
    """Draw count against rank of each n-gram, both logarithmic, with the fitted exponents in the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for entry in grams:
        values = counts[entry.n]
        label = entry.name if entry.exponent is None else f"{entry.name}, α = {entry.exponent:.2f}"
        ranks = np.unique(np.geomspace(1, len(values), 2000).round().astype(np.int64))
        axes.plot(ranks, values[ranks - 1], color=COLOURS[entry.n], label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"rank ({noun})")
    axes.set_ylabel("count")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", frameon=False)
    save_picture(figure, path)


def _read(folder: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """Return the first tokens of a file as numbers in order of first appearance, and the tokens they stand for."""
    number: dict[str, int] = {}
    parts, left = [np.empty(0, dtype=np.int32)], MOST_TOKENS
    for indices, dictionary in file_tokens(folder, name):
        table = np.array([number.setdefault(token, len(number)) for token in dictionary], dtype=np.int32)
        parts.append(table[indices[:left]])
        left -= len(parts[-1])
        if not left:
            break
    return np.concatenate(parts), list(number)
