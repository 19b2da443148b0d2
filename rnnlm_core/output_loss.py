"""The output layer and its loss in one: cross-entropy of H W^T + b, with its gradients written out.

Automatic differentiation would keep the logits, their logarithms and two arrays of gradients, each (tokens,
vocabulary), and read them from memory ten times; here the logits become their own gradients while they are in the
cache, and a vocabulary too large for that is done in blocks of tokens.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rnnlm_core import cores, native
from rnnlm_core.recurrence import settled

FEWEST_LOGITS = 1 << 18
"""Logits up to which nothing is gained: all of them stay in the cache anyway."""
MOST_LOGITS = 1 << 24
"""Logits that are in memory at a time (64 MiB in single precision)."""
PARTS = 4
"""Parts that the rows of a block are done in, on one core or several: their order settles the last bits of a sum."""


def output_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    """Return `scale` times the mean cross-entropy of the tokens that follow.

    Args:
        hidden: (tokens, hidden) states, any dropout done.
        weight: (vocabulary, hidden).
        bias: (vocabulary).
        targets: (tokens) ids of any integer type.
        scale: of the loss and of all gradients.

    Returns:
        a number in nats per token, with the gradients of `F.cross_entropy(F.linear(hidden, weight, bias), targets)`.

    Raises IndexError for a target that is not in the vocabulary (on the CPU).
    """
    targets = targets.long()
    same = hidden.dtype == weight.dtype and weight.dtype in (torch.float32, torch.float64)
    # A GPU has the plain operations at once, as long as it has room for them.
    enough = FEWEST_LOGITS if hidden.device.type == "cpu" else MOST_LOGITS
    plain = len(hidden) * len(weight) <= enough or settled(hidden.device) == "autograd"
    if plain or not same or torch.is_autocast_enabled(hidden.device.type):
        loss = F.cross_entropy(F.linear(hidden, weight, bias), targets)
        return loss if scale == 1 else loss * scale
    if hidden.device.type == "cpu":
        lowest, highest = targets.aminmax()
        if lowest < 0 or highest >= len(weight):
            raise IndexError(f"targets from {int(lowest)} to {int(highest)}, of {len(weight)}")
    written_out: Tensor = _OutputLoss.apply(hidden, weight, bias, targets, scale)  # type: ignore[no-untyped-call]
    return written_out


def token_losses(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each token, (tokens), in nats; the arguments as in `output_loss`.

    Of more than `MOST_LOGITS` logits a block is in memory at a time, and computed again on the way back.
    """

    def losses(states: Tensor, wanted: Tensor) -> Tensor:
        logits = F.linear(states, weight, bias).to(weight.dtype)
        return F.cross_entropy(logits, wanted.long(), reduction="none")

    block = _block(len(weight))
    if len(hidden) <= block:
        return losses(hidden, targets)
    parts = zip(torch.split(hidden, block), torch.split(targets, block), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def _block(vocabulary: int) -> int:
    """Return how many tokens are done at a time."""
    return max(1, MOST_LOGITS // vocabulary)


class _OutputLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scale: float) -> Tensor:
        here = settled(hidden.device) == "native"
        tokens, block = len(hidden), _block(len(weight))
        d_hidden, d_weight, d_bias = [], None, torch.zeros_like(bias)
        total = hidden.new_zeros((), dtype=torch.float64)
        for start in range(0, tokens, block):
            states, wanted = hidden[start : start + block], targets[start : start + block]
            logits = cores.product(states, weight.t())
            losses = (_native if here else _in_torch)(logits, bias, wanted, scale / tokens, d_bias)
            total += losses.sum(dtype=torch.float64)
            d_hidden.append(cores.product(logits, weight))
            share = cores.product(logits.t(), states)
            d_weight = share if d_weight is None else d_weight.add_(share)
        assert d_weight is not None
        ctx.save_for_backward(d_hidden[0] if len(d_hidden) == 1 else torch.cat(d_hidden), d_weight, d_bias)
        return (total * (scale / tokens)).to(hidden.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.saved_tensors
        if above.device.type != "cpu" or float(above) != 1:
            found = tuple(one * above for one in found)
        return (*found, None, None)


def _in_torch(logits: Tensor, bias: Tensor, targets: Tensor, scale: float, d_bias: Tensor) -> Tensor:
    """Turn logits less their bias into gradients, add these up in `d_bias`, and return the losses of the tokens."""
    logits += bias
    logits -= logits.amax(1, keepdim=True)
    places = targets[:, None]
    losses = -logits.gather(1, places)[:, 0]
    logits.exp_()
    sums = logits.sum(1, keepdim=True)
    losses += sums[:, 0].log()
    logits *= scale / sums
    logits.scatter_add_(1, places, torch.full_like(losses, -scale)[:, None])
    d_bias += logits.sum(0)
    return losses


class _Arguments(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("width", "begin", "upto")],
        *[(name, ctypes.c_void_p) for name in ("logits", "bias", "targets")],
        ("scale", ctypes.c_double),
        *[(name, ctypes.c_void_p) for name in ("losses", "gradient")],
    ]


def _native(logits: Tensor, bias: Tensor, targets: Tensor, scale: float, d_bias: Tensor) -> Tensor:
    """Do what `_in_torch` does in one pass over memory."""
    rows, width = logits.shape
    bias, targets = bias.contiguous(), targets.contiguous()
    losses, sums = logits.new_empty(rows), logits.new_zeros(PARTS, width)
    call = native.function("loss", logits.dtype == torch.float32)

    def compute(part: int) -> None:
        some = part * rows // PARTS, (part + 1) * rows // PARTS
        given = logits.data_ptr(), bias.data_ptr(), targets.data_ptr()
        call(ctypes.byref(_Arguments(width, *some, *given, scale, losses.data_ptr(), sums[part].data_ptr())))

    cores.each(compute, PARTS)
    d_bias += sums.sum(0)
    return losses
