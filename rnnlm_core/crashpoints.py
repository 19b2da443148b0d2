"""Named places where a process can be made to die, as by `kill -9`, so that every gap between two writes is tried.

`RNNLM_CRASH=NAME` kills the process that first gets to the point of this name, `RNNLM_CRASH=NAME@3` the third time.
Points of the store end with the kind of artifact: `published:corpus`.
"""

import os
import signal
from collections import Counter
from typing import Final

from rnnlm_core.errors import unknown_name

KINDS: Final = ("text", "tokens", "statistics", "vocabulary", "corpus", "ids", "checkpoint", "model", "comparison")
STEPS: Final = ("drafted", "filled", "sealed", "published")
POINTS: Final = (
    *(f"{step}:{kind}" for kind in KINDS for step in STEPS),
    "removed",
    "written",
    "replaced",
    "unlisted",
    "flow opened",
    "run created",
    "training known",
    "model logged",
    "run finished",
    "version registered",
    "champion moved",
    "flow finished",
)
REMOTE_POINTS: Final = ("uploading", "uploaded")
"""Every point that the run of a short text comes by, and those that only a store with a remote has.

A draft is `drafted` (an empty folder), `filled`, `sealed` (with its manifest), `published` (under its name). What is
`removed` has left its place but is still on the disk. A single file is `written` under a temporary name and then
`replaced`; the checkpoints of a training are `unlisted` before they are removed. At `uploading` an artifact lies in the
remote without its manifest, at `uploaded` with it. The rest is told to MLflow.
"""

POINTS_OF_SHARDS: Final = tuple(f"{step}:{kind}" for kind in ("counts", "merges", "pieces") for step in STEPS)
"""Those that only a text in several shards comes by."""

_reached: Counter[str] = Counter()


def crashpoint(name: str) -> None:
    """Die here without a word if `RNNLM_CRASH` says so; do nothing otherwise."""
    wanted = os.environ.get("RNNLM_CRASH")
    if not wanted:
        return
    point, _, number = wanted.partition("@")
    known = [*POINTS, *POINTS_OF_SHARDS, *REMOTE_POINTS]
    if point not in known:
        raise unknown_name("crash point", point, known)
    if point != name:
        return
    _reached[name] += 1
    if _reached[name] == int(number or 1):
        os.kill(os.getpid(), signal.SIGKILL)
