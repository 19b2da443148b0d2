"""The cores that the products of a training are divided among: one, or more while they have nothing else to do.

Every product is cut into parts by its sizes alone, so that its bits are the same however many cores compute it, and
the number may change at any time. PyTorch's own threads, if it has several, divide a product by their number.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

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
    """Return a (m, k) b (k, n), without a way back: in parts of the rows, unless PyTorch divides it itself.

    Of a transposed `a` in parts of the depth: what a library is given should lie in memory in one piece.
    """
    a, b = a.detach(), b.detach()  # threads of ours do not know that nothing is to be recorded
    by_depth = not a.is_contiguous()
    length = a.shape[1] if by_depth else a.shape[0]
    parts = max(1, min(MOST_PARTS, length // SHORTEST_PART, a.numel() * b.shape[1] // SMALLEST_PART))
    if parts == 1 or torch.get_num_threads() > 1 or a.device.type != "cpu":
        return _whole(a, b)
    pieces = [slice(part * length // parts, (part + 1) * length // parts) for part in range(parts)]
    if by_depth:
        return functools.reduce(Tensor.add_, each(lambda part: _whole(a[:, pieces[part]], b[pieces[part]]), parts))
    out = a.new_empty(a.shape[0], b.shape[1])
    each(lambda part: _whole(a[pieces[part]], b, out[pieces[part]]), parts)
    return out


def linear(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return inputs (…, k) weights (k, n), with both ways in `product`s where that is worth their overhead."""
    plain = inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu") or inputs.dtype != weights.dtype
    if plain or inputs.numel() * weights.shape[1] < SMALLEST_PART:
        return inputs @ weights
    result: Tensor = _Linear.apply(inputs, weights)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        return product(inputs.flatten(0, -2), weights).view(*inputs.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, Tensor | None]:
        inputs, weights = ctx.saved_tensors
        of_inputs, of_weights = ctx.needs_input_grad
        rows, above = inputs.flatten(0, -2), above.flatten(0, -2)
        d_inputs = product(above, weights.t()).view_as(inputs) if of_inputs else None
        if not of_weights:
            return d_inputs, None
        # Laid out as the weights are.
        row_major = weights.stride(1) == 1
        return d_inputs, product(rows.t(), above) if row_major else product(above.t(), rows).t()


def _whole(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    if a.dtype != torch.float32 or a.device.type != "cpu" or not _onednn_is_faster():
        return torch.mm(a, b, out=out)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b).t(), None, "none", [], "")
    return found if out is None else out.copy_(found)


def _dense(a: Tensor) -> Tensor:
    # oneDNN takes apart what is neither row by row nor column by column element by element: fifty times as long.
    if a.is_contiguous() or a.t().is_contiguous():
        return a
    return a.contiguous() if a.stride(1) == 1 else a.t().contiguous().t()


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN's products are the faster ones of PyTorch's two libraries.

    MKL uses vectors of 512 bits on Intel's processors alone: docs/performance.md has both elsewhere.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and "BLAS_INFO=mkl" in torch.__config__.show()
    about = Path("/proc/cpuinfo")
    if not (wide and about.exists()):
        return False
    return "GenuineIntel" not in about.read_text(encoding="utf-8") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="rnnlm-core")


if hasattr(os, "register_at_fork"):
    # A child has the pool, not its threads: it would wait for them.
    os.register_at_fork(after_in_child=_threads.cache_clear)
