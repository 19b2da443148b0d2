"""A training as a message: what a process is asked to train, and how it does it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm_core.config import CHECKPOINT_SECONDS, OWN_CELLS, ModelConfig, TrainConfig
from rnnlm_core.store import Handle, Store

if TYPE_CHECKING:
    from rnnlm_core.outcomes import Epoch
    from rnnlm_core.ranks import Ranks

MEMORY_RAN_OUT = "if memory ran out lower train.batch_size or model.hidden_size, then run the same command again"


@dataclass(frozen=True)
class Job:
    """What a child is asked to train.

    `threads` = 0 leaves the number of threads to PyTorch; a checkpoint is written every `checkpoint_seconds`.
    `remote` is the address of the store's remote, if it has one.
    """

    cell: str
    corpus: Handle
    vocabulary: Handle
    model: ModelConfig
    train: TrainConfig
    store: str
    key: str
    threads: int = 1
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    remote: str = ""


def store_of(fields: dict[str, Any]) -> Store:
    """Return the store that a job names."""
    store = Store(Path(fields["store"]))
    if fields["remote"]:
        from rnnlm_core.remote import connect

        store.remote = connect(fields["remote"])
    return store


def run_job(
    fields: dict[str, Any], say: Callable[..., None], should_stop: Callable[[], bool], **more: "Ranks"
) -> dict[str, Any]:
    """Train what a job asks for and say what comes of it on the way; `more` is for `train.train`."""
    import torch

    from rnnlm_core.extensions import find
    from rnnlm_core.process_usage import Meter
    from rnnlm_core.train import train

    if fields["cell"] not in OWN_CELLS:
        find("cell", fields["cell"])
    say(begun=True)
    meter = Meter()

    def progress(epoch: "Epoch") -> None:
        say(usage=meter.read())
        say(epoch=asdict(epoch))

    store = store_of(fields)
    if fields["threads"]:
        torch.set_num_threads(fields["threads"])
    trained = train(
        fields["cell"],
        Handle(**fields["corpus"]),
        Handle(**fields["vocabulary"]),
        ModelConfig(**fields["model"]),
        TrainConfig(**fields["train"]),
        store,
        key=fields["key"],
        checkpoint_seconds=fields["checkpoint_seconds"],
        progress=progress,
        resumed=lambda epochs: say(resumed=epochs),
        should_stop=should_stop,
        warn=lambda text: say(warning=text),
        **more,
    )
    return asdict(trained)
