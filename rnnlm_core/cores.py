"""The cores that the products of a training are divided among: one, or more while they have nothing else to do.

Every product is cut into parts by its sizes alone, so that its bits are the same however many cores compute it, and
the number may change at any time. PyTorch's own threads, if it has several, divide a product by their number.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
MOST_PARTS = 2
SHORTEST_PART = 128
SMALLEST_PART = 1 << 24
"""Rows or columns, and multiplications, of a product below which a part of it costs more than its share."""


class _Chosen:
    number = 0


def use(number: int) -> None:
    """Let the products that follow use so many cores; 0 for as many as PyTorch has threads."""
    _Chosen.number = number


def number() -> int:
    """Return how many cores may be used now."""
    return _Chosen.number or torch.get_num_threads()


def each(compute: Callable[[int], Result], parts: int) -> list[Result]:
    """Return the results of `compute` for parts 0, 1, …, computed side by side where there are cores for it."""
    workers = min(number(), parts)
    if workers <= 1:
        return [compute(part) for part in range(parts)]
    inference = torch.is_inference_mode_enabled()  # of this thread alone

    def compute_alike(part: int) -> Result:
        with torch.inference_mode(inference):
            return compute(part)

    return list(_threads(workers).map(compute_alike, range(parts)))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a (m, k) b (k, n), without a way back: in parts of the longer side, unless PyTorch divides it itself."""
    a, b = a.detach(), b.detach()  # threads of ours do not know that nothing is to be recorded
    rows, columns = a.shape[0], b.shape[1]
    out = a.new_empty(rows, columns)
    if torch.get_num_threads() > 1 or a.device.type != "cpu":
        return torch.mm(a, b, out=out)
    by_rows = rows >= columns
    length = rows if by_rows else columns
    parts = max(1, min(MOST_PARTS, length // SHORTEST_PART, rows * columns * a.shape[1] // SMALLEST_PART))
    if parts == 1:
        return torch.mm(a, b, out=out)

    def compute(part: int) -> None:
        one = slice(part * length // parts, (part + 1) * length // parts)
        if by_rows:
            torch.mm(a[one], b, out=out[one])
        else:
            torch.mm(a, b[:, one], out=out[:, one])

    each(compute, parts)
    return out


@functools.cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="rnnlm-core")


if hasattr(os, "register_at_fork"):
    # A child has the pool, not its threads: it would wait for them.
    os.register_at_fork(after_in_child=_threads.cache_clear)
