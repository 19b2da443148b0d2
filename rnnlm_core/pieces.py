"""The parquet files of one text or split: `train.parquet`, or in several pieces `train-00000-of-00007.parquet` ….

Whoever reads asks here, so that nobody else knows which of the two it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rnnlm_core.errors import IntegrityError


@dataclass(frozen=True)
class Span:
    """`length` tokens (or characters) of a split, which are those from `start` of a file."""

    split: str
    file: str
    start: int
    length: int

    def within(self, file: str, start: int, length: int) -> "Span | None":
        """Return what of it lies in [start, start + length) of a file, counted from there; None for nothing."""
        first, stop = max(self.start, start), min(self.start + self.length, start + length)
        if file != self.file or first >= stop:
            return None
        return Span(self.split, file, first - start, stop - first)


def spans_of_shards(spans: Sequence[Span], counts: Sequence[dict[str, int]]) -> list[tuple[Span, ...]]:
    """Return what of each span lies in each shard; `counts` says how much of each file a shard holds, in order."""
    at: dict[str, int] = {}
    found = []
    for shard in counts:
        parts = [span.within(file, at.get(file, 0), n) for span in spans for file, n in shard.items()]
        found.append(tuple(part for part in parts if part is not None))
        for file, n in shard.items():
            at[file] = at.get(file, 0) + n
    return found


def piece_name(name: str, number: int, of: int) -> str:
    """Return what piece `number` of `of` is called; the only one has no number."""
    return f"{name}.parquet" if of == 1 else f"{name}-{number:05d}-of-{of:05d}.parquet"


def piece_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a text or split in their order, none if there is none.

    Raises `IntegrityError` if pieces are missing.
    """
    if (whole := folder / piece_name(name, 0, 1)).exists():
        return [whole]
    found = sorted(folder.glob(f"{name}-?????-of-?????.parquet"))
    if [path.name for path in found] != [piece_name(name, number, len(found)) for number in range(len(found))]:
        held = ", ".join(path.name for path in found)
        raise IntegrityError("pieces are missing", f"{folder} ({held})", "run the same command again to rebuild it")
    return found
