"""What a case says: rows of a table, each ours beside one other, with the target and the share of the bound."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import Series

UNITS: dict[str, Callable[[float], float]] = {
    "s": lambda seconds: seconds,
    "ms": lambda seconds: 1e3 * seconds,
    "tokens/s": lambda seconds: 1 / seconds,
    "MB/s": lambda seconds: 1e-6 / seconds,
}
"""How seconds per unit of work are shown."""


@dataclass(frozen=True)
class Setting:
    """What a run of the benchmarks was asked for.

    Args:
        folder: an empty folder for what is made on the way.
        device: cpu, cuda or cuda:N.
        quick: tiny sizes and few rounds: whether everything works, no figures to believe.
    """

    folder: Path
    device: str = "cpu"
    quick: bool = False

    @property
    def on_cpu(self) -> bool:
        """Whether the processor trains."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Figure:
    """A measured quantity in the unit of its row: `p25` is the better quartile, `cpu` the median by processor time."""

    median: float
    p25: float
    best: float
    cpu: float | None
    count: int

    @classmethod
    def of(cls, series: Series, unit: str, units_per_one: float = 1) -> "Figure":
        """Return the figure of a series; `units_per_one` units of its blocks make one of the row's."""
        wall, cpu = series.wall, series.cpu

        def show(seconds: float) -> float:
            return UNITS[unit](seconds * units_per_one)

        return cls(show(wall.median), show(wall.p25), show(wall.least), show(cpu.median), wall.count)

    @classmethod
    def single(cls, value: float, cpu: float | None = None) -> "Figure":
        """Return a figure that was measured once."""
        return cls(value, value, value, cpu, 1)


@dataclass(frozen=True)
class Row:
    """One line of a case's table.

    Args:
        name: what is measured.
        unit: of both figures.
        ours: rnnlm's figure.
        peer_name: what it stands beside.
        peer: that figure.
        ratio: how many times as fast as the peer we are (of memory: how many times as much), by wall time.
        target: what the ratio should be at least.
        at_most: the target is a limit instead.
        bound: percent of the physical bound that ours reaches.
        note: what the figures alone do not say.
    """

    case: str
    name: str
    unit: str
    ours: Figure
    peer_name: str = ""
    peer: Figure | None = None
    ratio: float | None = None
    target: float | None = None
    at_most: bool = False
    bound: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None or self.ratio is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {**asdict(self), "met": self.met}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Row":
        """Read what `as_json` wrote."""
        row = cls(**{name: value for name, value in fields.items() if name != "met"})
        return replace(row, ours=Figure(**fields["ours"]), peer=Figure(**fields["peer"]) if fields["peer"] else None)


def speed_ratio(ours: Series, peer: Series) -> float:
    """Return how many times as fast as the peer we are: median against median of wall seconds per unit."""
    return peer.wall.median / ours.wall.median
