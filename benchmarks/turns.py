"""One side of a comparison, seen from inside its process: it waits for its turn, does a block of work, says how long.

The process is `python -m benchmarks.turns`. It reads what to be (JSON) from standard input, then one line per turn,
`go` or `over`; then it can be told to be something else, and ends when its input ends. Between turns it does nothing,
so that the sides do not disturb each other.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from typing import Any, TextIO

SIDES = {
    "ours": "benchmarks.sides.ours",
    "book": "benchmarks.sides.book",
    "plain": "benchmarks.sides.plain",
    "sgemm": "benchmarks.sides.sgemm",
}


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


def peak_bytes() -> int:
    """Return the largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _wait_for_gpu() -> None:
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.synchronize()


def main() -> None:
    """Be one side after the other, until there are no more."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to standard error, not between the reports
    turns = Turns(sys.stdin, reports)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        who, _, what = order["side"].partition(".")
        with contextlib.suppress(OverError):
            getattr(importlib.import_module(SIDES[who]), what)(turns, **order["settings"])
        turns.say(over=True)


if __name__ == "__main__":
    main()
