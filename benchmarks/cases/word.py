"""One update at word level: the one-hot input is as wide as the vocabulary."""

from collections.abc import Iterator

from benchmarks import targets
from benchmarks.cases.training import FLOOR, Size, floor, percent, side
from benchmarks.measure import Pool
from benchmarks.rows import Figure, Row, Setting, speed_ratio

NOVEL, PENN_TREEBANK = 4_580, 10_000
"""Words with an id: all of the novel's, and those of the Penn Treebank."""
PEER = "d2l 0.17.6 concise"


def word(setting: Setting) -> Iterator[Row]:
    """Ours beside the book's concise cells, one thread each."""
    with Pool() as pool:
        for vocabulary in (40,) if setting.quick else (NOVEL, PENN_TREEBANK):
            size = Size(vocabulary, 8, 2, 4, 2) if setting.quick else Size(vocabulary, 256, 32, 35, 2)
            for cell in ("lstm", "gru", "rnn"):
                workers = {
                    "ours": side("ours.training", cell, size, setting, 1),
                    PEER: side("book.training", cell, size, setting, 1, kind="concise"),
                    FLOOR: floor(setting, 1),
                }
                series = pool.compare(workers, rounds=2 if setting.quick else 4)
                yield Row(
                    case="word",
                    name=f"{cell}, vocabulary {vocabulary:,}",
                    unit="ms",
                    ours=Figure.of(series["ours"], "ms", size.tokens),
                    peer_name=PEER,
                    peer=Figure.of(series[PEER], "ms", size.tokens),
                    ratio=speed_ratio(series["ours"], series[PEER]),
                    target=targets.WORD_CPU.get((cell, vocabulary)) if setting.on_cpu else None,
                    bound=percent(cell, size, series["ours"], series[FLOOR]),
                )
