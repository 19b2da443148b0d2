"""The three cells of the book, whole: from the corpus to three trained models, as many updates on either side."""

from collections.abc import Iterator
from dataclasses import asdict, replace

from benchmarks import targets
from benchmarks.measure import Pool, Worker
from benchmarks.rows import Figure, Row, Setting, speed_ratio
from benchmarks.texts import book_corpus, novel

ORDER = ("gru", "lstm", "rnn")  # the slowest first, as the flow submits them
PEER = "d2l 0.17.6 concise, one after the other, its own threads"


def cells(setting: Setting) -> Iterator[Row]:
    """Ours in processes side by side, started anew each time; the book's in one that is warm."""
    from rnnlm_core.presets import d2l_time_machine

    epochs, rounds = (2, 1) if setting.quick else (60, 1)
    config, made = d2l_time_machine(), book_corpus(setting.folder / "cells")
    train = replace(config.train, epochs=epochs, device=setting.device)
    settings = {
        "store": made.store,
        "corpus": made.corpus,
        "vocabulary": made.vocabulary,
        "model": asdict(config.model),
        "train": asdict(train),
        "order": ORDER,
    }
    peer = {
        "novel": str(novel(setting.folder / "cells")),
        "order": ORDER,
        "epochs": epochs,
        "device": setting.device,
    }
    workers = {"ours": Worker("ours.cells", settings, 0), PEER: Worker("book.cells", peer, 0)}
    # A block is a minute: one before the first would double the time, and the book's is warm after a second of it.
    with Pool() as pool:
        series = pool.compare(workers, rounds, warm_up=0)
    yield Row(
        case="cells",
        name=f"rnn, gru and lstm, {epochs} epochs of {len(ORDER)} cells",
        unit="s",
        ours=Figure.of(series["ours"], "s"),
        peer_name=PEER,
        peer=Figure.of(series[PEER], "s"),
        ratio=speed_ratio(series["ours"], series[PEER]),
        target=targets.CELLS_CPU if setting.on_cpu else targets.CELLS_GPU,
        note="ours includes starting the processes, checkpoints and the saved models",
    )
