"""The process of a side: `python -m benchmarks.sides`.

It reads what to be (JSON) from standard input, then one line per turn, `go` or `over`; then it can be told to be
something else, and ends when its input ends. Between turns it does nothing: the sides do not disturb each other.
"""

import contextlib
import importlib
import json
import os
import sys

from benchmarks.turns import OverError, Turns

SIDES = {
    "ours": "benchmarks.sides.ours",
    "book": "benchmarks.sides.book",
    "plain": "benchmarks.sides.plain",
    "sgemm": "benchmarks.sides.sgemm",
}


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
