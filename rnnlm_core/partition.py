"""Minibatches of a long sequence: random and sequential partitioning (d2l, "Language Models and the Dataset").

Both give pairs `(x, y)` of shape (batch_size, num_steps), `y` being `x` shifted by one token. They work on any
device, are told apart by where their rows start, and copy nothing but the minibatch that is asked for.
"""

import torch
from torch import Tensor


class Minibatches:
    """The minibatches of one epoch, each cut out of the ids when it is asked for.

    Args:
        ids: the whole sequence, of any integer type.
        starts: (minibatches, batch_size), where the first token of each row is.
        num_steps: tokens of a row.
    """

    def __init__(self, ids: Tensor, starts: Tensor, num_steps: int) -> None:
        self.ids, self.starts = ids, starts.to(ids.device)
        self.places = torch.arange(num_steps + 1, device=ids.device)

    def __len__(self) -> int:
        return len(self.starts)

    def of_rows(self, rows: slice) -> "Minibatches":
        """Return some rows of each of these minibatches."""
        return Minibatches(self.ids, self.starts[:, rows], len(self.places) - 1)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return cut_out(self.ids, self.starts[number], self.places)


def cut_out(ids: Tensor, starts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minibatch whose rows begin at `starts` (batch_size); `places` are the numbers 0..num_steps."""
    rows = ids[starts[:, None] + places]
    return rows[:, :-1], rows[:, 1:]


def random_batches(ids: Tensor, batch_size: int, num_steps: int, generator: torch.Generator) -> Minibatches:
    """Return minibatches of subsequences in random order.

    A random offset in 0..num_steps-1 is dropped; the rest holds `(n - 1) // num_steps` subsequences, which are
    shuffled; what does not fill a minibatch is left out.
    """
    offset = int(torch.randint(0, num_steps, (), generator=generator))
    num_subsequences = max((len(ids) - offset - 1) // num_steps, 0)
    order = torch.randperm(num_subsequences, generator=generator)
    filled = order[: num_subsequences // batch_size * batch_size].reshape(-1, batch_size)
    return Minibatches(ids, offset + filled * num_steps, num_steps)


def sequential_batches(ids: Tensor, batch_size: int, num_steps: int, generator: torch.Generator) -> Minibatches:
    """Return minibatches in which row i continues row i of the one before.

    A random offset in 0..num_steps (inclusive) is dropped; the rest is laid out in `batch_size` rows.
    """
    offset = int(torch.randint(0, num_steps + 1, (), generator=generator))
    width = max((len(ids) - offset - 1) // batch_size, 0)
    rows = offset + width * torch.arange(batch_size)
    return Minibatches(ids, rows + num_steps * torch.arange(width // num_steps)[:, None], num_steps)


PARTITIONS = {"sequential": sequential_batches, "random": random_batches}
