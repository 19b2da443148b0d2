"""One update at the book's size: forward, backward, clipping, SGD; characters, one-hot input."""

from collections.abc import Iterator

from benchmarks import targets
from benchmarks.cases.training import FLOOR, Size, floor, percent, side
from benchmarks.measure import Pool, Worker
from benchmarks.rows import Figure, Row, Setting, speed_ratio
from rnnlm_core.config import CELLS

BOOK = Size(vocabulary=28, hidden=256, batch_size=32, num_steps=35, updates=8)
QUICK = Size(vocabulary=9, hidden=8, batch_size=2, num_steps=4, updates=2)
CHAPTER = "d2l 0.17.6, the chapter's scratch cell"
IN_1_0_3 = {"rnn": ("scratch", "concise"), "gru": ("concise",), "lstm": ()}
"""What the package of the newest edition has of each cell."""


def step(setting: Setting) -> Iterator[Row]:
    """Ours beside the book's and a plain loop; first all with one thread, then each as it comes."""
    size, rounds = (QUICK, 2) if setting.quick else (BOOK, 7)
    with Pool() as pool:
        for threads, how in ((1, "one thread each"), (0, "threads as each comes")):
            if threads == 0 and not setting.on_cpu:
                continue  # the processor's threads do not train there
            for cell in CELLS:
                ours = side("ours.training", cell, size, setting, threads)
                others: dict[str, tuple[str, Worker]] = {
                    "d2l 0.17.6 concise": (
                        "concise",
                        side("book.training", cell, size, setting, threads, kind="concise"),
                    ),
                    CHAPTER: ("scratch", side("book.training", cell, size, setting, threads, kind="scratch")),
                    "torch.nn, plain loop": ("", side("plain.training", cell, size, setting, threads)),
                }
                if threads:
                    for kind in IN_1_0_3[cell]:
                        worker = side("book.newest", cell, size, setting, threads, kind=kind)
                        others[f"d2l 1.0.3 {kind}"] = (kind, worker)
                workers = {
                    "ours": ours,
                    **{name: worker for name, (_, worker) in others.items()},
                    FLOOR: floor(setting, 1),
                }
                series = pool.compare(workers, rounds)
                for name, (kind, _) in others.items():
                    yield Row(
                        case="step",
                        name=f"{cell}, {how}",
                        unit="ms",
                        ours=Figure.of(series["ours"], "ms", size.tokens),
                        peer_name=name,
                        peer=Figure.of(series[name], "ms", size.tokens),
                        ratio=speed_ratio(series["ours"], series[name]),
                        target=_target(cell, kind, setting),
                        bound=percent(cell, size, series["ours"], series[FLOOR]),
                    )


def _target(cell: str, kind: str, setting: Setting) -> float | None:
    if not kind:
        return None
    return (targets.STEP_CPU if setting.on_cpu else targets.STEP_GPU)[kind][cell]
