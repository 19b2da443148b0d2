"""The clock of a side: it waits for its turn, and says what a block of work took (`benchmarks/sides/__main__.py`)."""

import json
import resource
import sys
import time
from typing import Any, TextIO


class OverError(Exception):
    """Nobody wants another block."""


class Turns:
    """The clock of a side: `begin` waits for the turn and starts it, `end` stops it and reports."""

    def __init__(self, orders: TextIO, reports: TextIO) -> None:
        self.orders, self.reports = orders, reports
        self.wall = self.cpu = 0.0

    def begin(self) -> None:
        """Wait for the turn; raises `OverError` when there is none any more."""
        self.say(waiting=True)
        if self.orders.readline() != "go\n":
            raise OverError
        self.cpu, self.wall = cpu_seconds(), time.perf_counter()

    def end(self, units: float, **facts: Any) -> None:
        """Report the block: what it did (`units`: tokens, bytes, updates), how long, and facts about it."""
        _wait_for_gpu()
        wall, cpu = time.perf_counter() - self.wall, cpu_seconds() - self.cpu
        self.say(wall=wall, cpu=cpu, units=units, facts=facts)

    def say(self, **message: Any) -> None:
        """Report something."""
        self.reports.write(json.dumps(message) + "\n")
        self.reports.flush()


def cpu_seconds() -> float:
    """Return the processor time of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _wait_for_gpu() -> None:
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.synchronize()
