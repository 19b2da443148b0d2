"""The floor: how fast this machine multiplies matrices of single precision, measured between the others' turns."""

import time

from benchmarks.turns import Turns


def rate(turns: Turns, device: str, size: int, products: int) -> None:
    """Multiply square matrices; the fact `flops_per_second` is the fastest product of the block."""
    import torch

    from rnnlm_core import cores

    left, right = torch.rand(2, size, size, device=device).unbind()
    while True:
        turns.begin()
        times = []
        for _ in range(products):
            started = time.perf_counter()
            cores.product(left, right)  # by the faster of PyTorch's libraries
            if left.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        turns.end(products, flops_per_second=2 * size**3 / min(times))
