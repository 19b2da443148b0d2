"""Minibatches of a long sequence: random and sequential partitioning (d2l, "Language Models and the Dataset").

Both give pairs `(x, y)` of shape (batch_size, num_steps), `y` being `x` shifted by one token. They work on any
device and copy nothing but the minibatch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def random_batches(
    ids: Tensor, batch_size: int, num_steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches of subsequences in random order.

    A random offset in 0..num_steps-1 is dropped; the rest holds `(n - 1) // num_steps` subsequences, which are
    shuffled; what does not fill a minibatch is left out.
    """
    offset = int(torch.randint(0, num_steps, (), generator=generator))
    num_subsequences = (len(ids) - offset - 1) // num_steps
    order = torch.randperm(max(num_subsequences, 0), generator=generator)
    steps = torch.arange(num_steps)
    for i in range(0, num_subsequences // batch_size * batch_size, batch_size):
        starts = offset + order[i : i + batch_size] * num_steps
        places = (starts[:, None] + steps).to(ids.device)
        yield ids[places], ids[places + 1]


def sequential_batches(
    ids: Tensor, batch_size: int, num_steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches in which row i continues row i of the one before.

    A random offset in 0..num_steps (inclusive) is dropped; the rest is laid out in `batch_size` rows.
    """
    offset = int(torch.randint(0, num_steps + 1, (), generator=generator))
    width = (len(ids) - offset - 1) // batch_size
    num_tokens = max(width, 0) * batch_size
    xs = ids[offset : offset + num_tokens].reshape(batch_size, -1)
    ys = ids[offset + 1 : offset + 1 + num_tokens].reshape(batch_size, -1)
    for i in range(0, width // num_steps * num_steps, num_steps):
        yield xs[:, i : i + num_steps], ys[:, i : i + num_steps]
