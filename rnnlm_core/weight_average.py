"""Averaged SGD: the weights of many updates, averaged, are better than those of the last one at a high rate.

NT-ASGD (Merity et al. 2017) begins to average as soon as plain SGD no longer gets anywhere: the trigger looks at the
validation loss, and not at each epoch alone, because that loss goes up and down.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def triggers(losses: Sequence[float], n: int) -> bool:
    """Whether averaging begins after the last of these validation losses: v_T > min(v_1, …, v_{T-1-n}).

    The non-monotonic criterion (Merity et al. 2017, algorithm 1): worse than the best of all but the last `n` epochs
    before it.
    """
    earlier = losses[: max(len(losses) - 1 - n, 0)]
    return bool(earlier) and losses[-1] > min(earlier)


class WeightAverage:
    """The mean of a model's weights after each of the updates so far (Polyak and Juditsky 1992).

    w̄_t = w̄_{t-1} + (w_t - w̄_{t-1}) / t. The training itself goes on with its own weights w_t.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.means = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.num_updates = 0

    @torch.no_grad()
    def add(self) -> None:
        """Take the weights after one more update into the mean."""
        self.num_updates += 1
        for name, parameter in self.parameters.items():
            self.means[name].lerp_(parameter, 1 / self.num_updates)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the model has the averages for weights; afterwards its own again, to the bit."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._give(self.means)
        try:
            yield
        finally:
            self._give(own)

    def restore(self, means: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on from the means of so many updates."""
        self.num_updates = num_updates
        for name, mean in self.means.items():  # in memory as they were: that can settle the last bit
            mean.copy_(means[name])

    @torch.no_grad()
    def _give(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
