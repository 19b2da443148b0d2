"""How a text in one file is divided: contiguous parts, in order, that do not overlap."""

from collections.abc import Mapping

from rnnlm_core.config import SPLITS
from rnnlm_core.pieces import Span


def split_lengths(size: int, shares: tuple[int, int, int] | None) -> dict[str, int]:
    """Return how much of `size` each split gets; rounding goes to the last split that has a share."""
    assert shares is not None, "a corpus in one file is divided by shares"
    train, valid, test = shares
    total = train + valid + test
    first = size * train // total
    second = size * (train + valid) // total - first
    if not test:
        second = size - first if valid else 0
        first = size - second
    return {"train": first, "valid": second, "test": size - first - second}


def split_spans(counts: Mapping[str, int], shares: tuple[int, int, int] | None) -> list[Span]:
    """Return which tokens of which file each split holds; `counts` are the tokens of the files, or of `whole`."""
    if "whole" not in counts:
        return [Span(name, name, 0, counts[name]) for name in SPLITS if name in counts]
    spans, start = [], 0
    for name, length in split_lengths(counts["whole"], shares).items():
        if shares and shares[SPLITS.index(name)]:
            spans.append(Span(name, "whole", start, length))
        start += length
    return spans
