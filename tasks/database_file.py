"""A SQLite file that appears as a whole: two processes that create one together, or a kill, would leave it broken."""

import glob
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout


def create_whole(path: Path, fill: Callable[[Path], None]) -> None:
    """Have `fill` make a database under a temporary name, and give it its own; do nothing if it is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _turn_to_create(path):
        if path.exists():
            return
        for left in _drafts(path):  # nobody else's: we hold the lock
            left.unlink(missing_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        fill(draft)
        draft.replace(path)


def remove_drafts(path: Path) -> list[Path]:
    """Remove what processes left that were killed while they created a database; return what was removed."""
    if not _drafts(path):
        return []
    try:
        with _turn_to_create(path).acquire(timeout=0):
            left = _drafts(path)
            for draft in left:
                draft.unlink(missing_ok=True)
            return left
    except Timeout:  # somebody is creating it now
        return []


def _turn_to_create(path: Path) -> FileLock:
    return FileLock(f"{path}.lock")


def _drafts(path: Path) -> list[Path]:
    """Return the databases that were never finished, with their journals."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"))
