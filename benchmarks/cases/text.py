"""From a text to the corpus: cleaning, tokens, vocabulary, ids."""

from collections.abc import Iterator

from benchmarks import targets
from benchmarks.measure import Pool, Worker
from benchmarks.rows import Figure, Row, Setting, speed_ratio
from benchmarks.texts import write_long
from rnnlm_core.errors import IntegrityError

NUM_BYTES = 74_000_000
PEER = "d2l 0.17.6"
FACTS = ("tokens", "vocabulary")


def text(setting: Setting) -> Iterator[Row]:
    """Ours, which also writes and verifies tokens, vocabulary and Parquet corpus, beside the book's lists in memory."""
    path = setting.folder / "long.txt"
    size = 200_000 if setting.quick else NUM_BYTES
    name = write_long(path, size)
    for level in ("char", "word"):
        workers = {
            "ours": Worker("ours.text", {"path": str(path), "level": level, "folder": str(setting.folder)}),
            PEER: Worker("book.text", {"path": str(path), "level": level}),
        }
        with Pool() as pool:
            series = pool.compare(workers, rounds=1 if setting.quick else 2, warm_up=0)
        made = {side: {fact: one.facts[fact] for fact in FACTS} for side, one in series.items()}
        if made["ours"] != made[PEER]:
            raise IntegrityError("the two corpora differ", made, "their ratio would mean nothing: find out why")
        yield Row(
            case="text",
            name=f"{level}s of {size / 1e6:.0f} MB, lines of {name}",
            unit="MB/s",
            ours=Figure.of(series["ours"], "MB/s"),
            peer_name=PEER,
            peer=Figure.of(series[PEER], "MB/s"),
            ratio=speed_ratio(series["ours"], series[PEER]),
            target=targets.TEXT[level],
            note=f"{made['ours']['tokens']:,} tokens, {made['ours']['vocabulary']:,} kinds on either side",
        )
    path.unlink()
