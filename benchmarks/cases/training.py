"""What the cases of a training step share: the sizes, the floor, and ours."""

from dataclasses import dataclass
from typing import Any

from benchmarks.bound import percent_of_bound, training_flops
from benchmarks.measure import Series, Worker
from benchmarks.rows import Setting
from rnnlm_core.child_process import MEMORY
from tasks.workspace import cpu_slots

FLOOR = "floor"


@dataclass(frozen=True)
class Size:
    """A training: its network, its minibatches, and how many of them are a block."""

    vocabulary: int
    hidden: int
    batch_size: int
    num_steps: int
    updates: int

    @property
    def tokens(self) -> int:
        """Tokens of one update."""
        return self.batch_size * self.num_steps


def side(name: str, cell: str, size: Size, setting: Setting, threads: int, **more: Any) -> Worker:
    """Return the worker that trains one cell on noise; with 0 threads it takes what the machine has."""
    ours = name.startswith("ours.")
    settings = {
        "cell": cell,
        "vocabulary": size.vocabulary,
        "hidden": size.hidden,
        "batch_size": size.batch_size,
        "num_steps": size.num_steps,
        "updates": size.updates,
        "device": setting.device,
        **more,
    }
    if not ours:
        return Worker(name, settings, threads)
    # As the flow starts every training: one thread of PyTorch's, memory that is kept, the cores that nobody uses.
    return Worker(name, {**settings, "num_cores": threads or cpu_slots()}, 1, MEMORY)


def floor(setting: Setting, threads: int) -> Worker:
    """Return the worker that measures how fast matrices are multiplied."""
    size, products = (1024, 10) if setting.on_cpu else (4096, 20)
    return Worker(
        "sgemm.rate", {"device": setting.device, "size": 128 if setting.quick else size, "products": products}, threads
    )


def percent(cell: str, size: Size, ours: Series, floor_series: Series) -> float:
    """Return the share of the bound that ours reaches, by the fastest product of the run."""
    rate = max(block.facts["flops_per_second"] for block in floor_series.blocks)
    return percent_of_bound(training_flops(cell, size.hidden, size.vocabulary), rate, ours.wall.median)
