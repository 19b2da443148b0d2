"""Continuing texts, greedily: one, and many as one batch."""

import random
import string
from collections.abc import Iterator

from benchmarks import targets
from benchmarks.measure import Pool, Worker
from benchmarks.rows import Figure, Row, Setting, speed_ratio
from rnnlm_core.config import CELLS
from rnnlm_core.errors import IntegrityError

LETTERS = string.ascii_lowercase + " "
PREFIX_LENGTH = 14
PEER = "d2l 0.17.6, predict_ch8, one after the other"


def generate(setting: Setting) -> Iterator[Row]:
    """Ours as one batch beside the book's prediction in a loop; one thread each."""
    length, hidden = (5, 8) if setting.quick else (200, 256)
    draw = random.Random(0)  # noqa: S311 - no secret
    with Pool() as pool:
        for count in (1, 4 if setting.quick else 64):
            prefixes = ["".join(draw.choices(LETTERS, k=PREFIX_LENGTH)) for _ in range(count)]
            for cell in CELLS:
                settings = {
                    "cell": cell,
                    "letters": LETTERS,
                    "hidden": hidden,
                    "prefixes": prefixes,
                    "length": length,
                    "device": setting.device,
                }
                workers = {"ours": Worker("ours.generate", settings), PEER: Worker("book.generate", settings)}
                rounds = 2 if setting.quick else 7 if count == 1 else 1
                series = pool.compare(workers, rounds)
                ours, peer = series["ours"], series[PEER]
                if ours.facts != peer.facts:
                    raise IntegrityError("not as many characters", f"{ours.facts}, {peer.facts}", "find out why")
                yield Row(
                    case="generate",
                    name=f"{cell}, {count} prefix{'es' if count > 1 else ''}, {length} tokens each",
                    unit="tokens/s",
                    ours=Figure.of(ours, "tokens/s"),
                    peer_name=PEER,
                    peer=Figure.of(peer, "tokens/s"),
                    ratio=speed_ratio(ours, peer),
                    target=targets.GENERATE.get(count),
                )
