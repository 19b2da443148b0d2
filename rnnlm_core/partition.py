"""Minibatches of a long sequence: random and sequential partitioning (d2l, "Language Models and the Dataset").

They give pairs `(x, y)` of shape (batch_size, num_steps), `y` being `x` shifted by one token. They work on any
device, are told apart by where their rows start, and copy nothing but the minibatch that is asked for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnlm_core.config import SHORTEST_BPTT

DEVIATION = 5.0
"""Of the lengths around the one that is asked for."""
RARELY = 0.05
"""How often a length is drawn around the half of it."""


class Minibatches:
    """The minibatches of one epoch, each cut out of the ids when it is asked for.

    Args:
        ids: the whole sequence, of any integer type.
        starts: (minibatches, batch_size), where the first token of each row is.
        num_steps: tokens of a row, the same in all minibatches, or of each.
    """

    def __init__(self, ids: Tensor, starts: Tensor, num_steps: int | Sequence[int]) -> None:
        self.ids, self.starts = ids, starts.to(ids.device)
        self.lengths = [num_steps] * len(starts) if isinstance(num_steps, int) else num_steps
        self.places = torch.arange(max(self.lengths, default=0) + 1, device=ids.device)

    def __len__(self) -> int:
        return len(self.starts)

    def of_rows(self, rows: slice) -> "Minibatches":
        """Return some rows of each of these minibatches."""
        return Minibatches(self.ids, self.starts[:, rows], self.lengths)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return cut_out(self.ids, self.starts[number], self.places[: self.lengths[number] + 1])


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
    rows, width = _laid_out(ids, batch_size, num_steps, generator)
    return Minibatches(ids, rows + num_steps * torch.arange(width // num_steps)[:, None], num_steps)


def random_length_batches(ids: Tensor, batch_size: int, num_steps: int, generator: torch.Generator) -> Minibatches:
    """Return minibatches of sequential partitioning, each of a length of its own (Merity et al. 2017, section 4.1).

    s = max(5, int(x)), x from N(b, 5²), b = `num_steps` with probability 0.95 and `num_steps` / 2 otherwise. The last
    one has what is left, and is left out if that is fewer than 5.
    """
    rows, width = _laid_out(ids, batch_size, num_steps, generator)
    most = width // SHORTEST_BPTT + 1
    around = torch.where(torch.rand(most, generator=generator) < RARELY, num_steps / 2, float(num_steps))
    lengths = (around + DEVIATION * torch.randn(most, generator=generator)).long().clamp_(min=SHORTEST_BPTT)
    ends = lengths.cumsum(0)
    ends = torch.cat([ends[ends < width], torch.tensor([width])])
    lengths = ends.diff(prepend=torch.zeros(1, dtype=ends.dtype))
    filled = lengths >= SHORTEST_BPTT
    starts, lengths = (ends - lengths)[filled], lengths[filled]
    return Minibatches(ids, rows + starts[:, None], lengths.tolist())


def _laid_out(ids: Tensor, batch_size: int, num_steps: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Return where each row of a sequence begins, after a random offset in 0..num_steps, and how long they are."""
    offset = int(torch.randint(0, num_steps + 1, (), generator=generator))
    width = max((len(ids) - offset - 1) // batch_size, 0)
    return offset + width * torch.arange(batch_size), width


PARTITIONS = {"sequential": sequential_batches, "random": random_batches}
