"""The processes of one training: each takes some rows of every minibatch, all of them do the identical update.

`torch.distributed` carries what they tell each other, gloo between processors and nccl between GPUs. Numbers are
added up in one order for all ranks, so that none drifts from the others. Nothing that travels is a pickle.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from rnnlm_core.errors import ResourceError

SILENCE = timedelta(hours=1)
"""How long a rank waits for another one that is there: the first one measures the validation text alone."""


class RanksLostError(Exception):
    """Another process of the training is gone, so this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, and which of them this is; alone there is nothing to be told.

    What is called `together` must be called by all of them, in the same order.
    """

    number: int = 0
    size: int = 1

    def rows(self, batch_size: int, number: int | None = None) -> slice:
        """Return which rows of a minibatch are those of a rank (None: of this one)."""
        rank = self.number if number is None else number
        return slice(batch_size * rank // self.size, batch_size * (rank + 1) // self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put in the place of each tensor its sum over all ranks; together. They are of one kind and device."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _while_all_are_there():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def any(self, *wishes: bool) -> list[bool]:
        """Return which of the wishes some rank has; together."""
        if self.size == 1:
            return list(wishes)
        counts = torch.tensor(wishes, dtype=torch.int64)
        self.add_up([counts])
        return [bool(count) for count in counts]

    def from_one(self, data: bytes, one: int = 0) -> bytes:
        """Return what one rank gives, the first if no other is named; together."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        with _while_all_are_there():
            dist.broadcast(length, one)
            content = torch.empty(int(length), dtype=torch.uint8)
            if self.number == one and data:
                content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if len(content):
                dist.broadcast(content, one)
        return content.numpy().tobytes()

    def all_rows(self, own: Tensor, batch_size: int) -> Tensor:
        """Return the rows of all ranks, (batch_size, …), on the CPU; together."""
        if self.size == 1:
            return own
        padded = own.new_zeros(-(-batch_size // self.size), *own.shape[1:], device="cpu")  # all send as much
        padded[: len(own)] = own
        shares = [self.rows(batch_size, rank) for rank in range(self.size)]
        parts = self.each(padded)
        return torch.cat([part[: rows.stop - rows.start] for part, rows in zip(parts, shares, strict=True)])

    def each(self, own: Tensor) -> Tensor:
        """Return what each rank has, (ranks, …): tensors of one shape on the CPU; together."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _while_all_are_there():
            dist.all_gather(parts, own)
        return torch.stack(parts)


ALONE = Ranks()


@contextmanager
def joined(rendezvous: str = "") -> Iterator[Ranks]:
    """Meet the other processes that torchrun has started, and part from them at the end.

    Args:
        rendezvous: a file of this attempt's own by which processes of one machine meet; "": at the address that
            torchrun has put into the environment.

    Raises `RanksLostError` if they are not all there, and `ResourceError` if this PyTorch cannot do it.
    """
    if not dist.is_available():
        raise ResourceError("this PyTorch trains in one process alone", "torch.distributed", "use train.processes=1")
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with _while_all_are_there():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"file://{rendezvous}" if rendezvous else "env://",
            rank=ranks.number,
            world_size=ranks.size,
            timeout=SILENCE,
        )
    yield ranks
    dist.destroy_process_group()


@contextmanager
def _while_all_are_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no class for it
        raise RanksLostError(str(error)) from error
