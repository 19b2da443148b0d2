"""The learning rate of every update: the schedule, after a warm-up."""

import math
from collections.abc import Sequence

from rnnlm_core.config import TrainConfig
from rnnlm_core.outcomes import Epoch


def learning_rate(config: TrainConfig, history: Sequence[Epoch], update: float, updates: int) -> float:
    """Return the learning rate of update `update` (from 0) of `updates` in the epoch that follows `history`.

    An epoch with fewer or more updates than others gives them as parts of the usual number.
    """
    done = len(history) * updates + update
    rate = config.learning_rate
    if config.schedule == "cosine":
        rest = config.epochs * updates - config.warmup_steps
        rate *= 0.5 * (1 + math.cos(math.pi * max(done - config.warmup_steps, 0) / max(rest, 1)))
    elif config.schedule == "step":
        rate *= config.decay ** -max(len(history) + 1 - config.decay_after, 0)  # not `/=`: that overflows
    elif config.schedule == "plateau":
        rate *= config.decay ** -_epochs_in_vain(history)
    return rate * (done + 1) / config.warmup_steps if done < config.warmup_steps else rate


def _epochs_in_vain(history: Sequence[Epoch]) -> int:
    """Return how many epochs did not lower the validation loss."""
    losses = [epoch.valid_loss for epoch in history if epoch.valid_loss is not None]
    lowest = math.inf
    in_vain = 0
    for loss in losses:
        in_vain += loss >= lowest
        lowest = min(lowest, loss)
    return in_vain
