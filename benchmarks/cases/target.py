"""How long until a training perplexity of the book is reached, on its 10,000 characters."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks import targets
from benchmarks.measure import Block, Pool, Process, Worker
from benchmarks.rows import Figure, Row, Setting
from benchmarks.texts import book_corpus, novel
from rnnlm_core.child_process import MEMORY

PEER = "d2l 0.17.6 concise, SGD lr 1, its own threads"
BOOK_EPOCHS = 500
PERPLEXITIES = {"gru": 1.1, "lstm": 1.2, "rnn": 1.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "gru": {"learning_rate": 1e-2},
    "lstm": {"learning_rate": 7e-3, "batch_size": 24},
    "rnn": {"learning_rate": 3e-3},
}
"""Ours, all with Adam; all else is as in the book: steps, hidden size, clipping, text. The RNN does not settle at 1e-2
(perplexity 6.3 after 80 epochs), GRU and LSTM not at 2e-2."""


@dataclass
class Way:
    """How far a training has come: the seconds of its blocks, and the facts of the last."""

    wall: float = 0.0
    cpu: float = 0.0
    facts: dict[str, Any] | None = None
    ended: bool = False

    def take(self, block: Block, epochs: int) -> None:
        """Add a block; the training ends when it is there, or has no epochs left."""
        self.wall += block.wall
        self.cpu += block.cpu
        self.facts = block.facts
        self.ended = bool(block.facts["reached"]) or block.facts["epoch"] == epochs


def target(setting: Setting) -> Iterator[Row]:
    """Both train whole, taking turns of some epochs, until each is there or has done the book's 500 epochs."""
    from rnnlm_core.presets import d2l_time_machine

    epochs, per_block = (3, 1) if setting.quick else (BOOK_EPOCHS, 20)
    config, made = d2l_time_machine(), book_corpus(setting.folder / "target")
    for cell, perplexity in PERPLEXITIES.items():
        own = {"optimizer": "adam", "epochs": epochs, "device": setting.device, **SETTINGS[cell]}
        train = replace(config.train, **own)
        ours = {
            "cell": cell,
            "store": made.store,
            "corpus": made.corpus,
            "vocabulary": made.vocabulary,
            "model": asdict(config.model),
            "train": asdict(train),
            "target": perplexity,
            "epochs_per_block": per_block,
        }
        peer = {
            "cell": cell,
            "novel": str(novel(setting.folder / "target")),
            "target": perplexity,
            "most_epochs": epochs,
            "epochs_per_block": per_block,
            "device": setting.device,
        }
        workers = {
            "ours": Worker("ours.to_perplexity", ours, 1, MEMORY),
            "peer": Worker("book.to_perplexity", peer, 0),
        }
        with Pool() as pool, pool.begun(workers) as processes:
            ways = _race(processes, epochs)
        yield _row(cell, perplexity, ways["ours"], ways["peer"])


def _race(processes: dict[str, Process], epochs: int) -> dict[str, Way]:
    ways = {name: Way() for name in processes}
    while not all(way.ended for way in ways.values()):
        for name, process in processes.items():
            if not ways[name].ended:
                ways[name].take(process.block(), epochs)
    return ways


def _row(cell: str, perplexity: float, ours: Way, peer: Way) -> Row:
    assert ours.facts is not None
    assert peer.facts is not None
    told = "; ".join(
        f"{name} {'there after' if way['reached'] else 'not there in'} {way['epoch']} epochs ({way['perplexity']:.3f})"
        for name, way in (("ours", ours.facts), ("d2l", peer.facts))
    )
    if ours.facts["reached"] and not peer.facts["reached"]:
        told += ": the ratio is a lower bound"
    return Row(
        case="target",
        name=f"{cell}, training perplexity {perplexity}",
        unit="s",
        ours=Figure.single(ours.wall, ours.cpu),
        peer_name=PEER,
        peer=Figure.single(peer.wall, peer.cpu),
        ratio=peer.wall / ours.wall if ours.facts["reached"] else None,
        target=targets.TIME_TO_PERPLEXITY[cell],
        note=f"ours: Adam, {_said(SETTINGS[cell])}, every core; {told}",
    )


def _said(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())
