"""From a text to the corpus: cleaning, tokens, vocabulary, ids."""

from collections.abc import Iterator

from benchmarks import targets
from benchmarks.measure import Pool, Worker
from benchmarks.rows import Figure, Row, Setting, speed_ratio
from benchmarks.texts import write_long
from rnnlm_core.errors import IntegrityError

NUM_BYTES = 74_000_000
PEER = "d2l 0.17.6"
WRITTEN = "tokens, vocabulary and Parquet corpus written"
FACTS = ("tokens", "vocabulary")


def text(setting: Setting) -> Iterator[Row]:
    """Ours in memory, as the book does it, and ours as the stages do it, beside the book's lists."""
    path = setting.folder / "long.txt"
    size = 200_000 if setting.quick else NUM_BYTES
    name = write_long(path, size)
    for level in ("char", "word"):
        workers = {
            "ours": Worker("ours.text_in_memory", {"path": str(path), "level": level}),
            WRITTEN: Worker("ours.text", {"path": str(path), "level": level, "folder": str(setting.folder)}),
            PEER: Worker("book.text", {"path": str(path), "level": level}),
        }
        with Pool() as pool:
            series = pool.compare(workers, rounds=1, warm_up=0)
        made = {side: {fact: one.facts[fact] for fact in FACTS} for side, one in series.items()}
        if made["ours"] != made[PEER] or made[WRITTEN] != made[PEER]:
            raise IntegrityError("the corpora differ", made, "their ratio would mean nothing: find out why")
        for side, what, aim in (("ours", "in memory", targets.TEXT[level]), (WRITTEN, WRITTEN, None)):
            yield Row(
                case="text",
                name=f"{level}s of {size / 1e6:.0f} MB, lines of {name}, {what}",
                unit="MB/s",
                ours=Figure.of(series[side], "MB/s"),
                peer_name=f"{PEER}, in memory",
                peer=Figure.of(series[PEER], "MB/s"),
                ratio=speed_ratio(series[side], series[PEER]),
                target=aim,
                note=f"{made['ours']['tokens']:,} tokens, {made['ours']['vocabulary']:,} kinds on either side",
            )
    path.unlink()
