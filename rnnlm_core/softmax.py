"""Output layers for large vocabularies: what a step costs must not grow with every rare word.

Both need ids by descending frequency, as vocabularies have them.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_TOKENS = 1000
"""Tokens below which an adaptive softmax saves nothing."""


class AdaptiveSoftmax(nn.Module):
    """The adaptive softmax (Grave et al. 2017): frequent tokens in a head, the rest in tails of fewer units.

    The head holds a fiftieth of the vocabulary, the first tail what follows up to a fifth, with a fourth of the
    units, the second the rest, with a sixteenth. Each token has an exact probability; they sum to 1.
    """

    def __init__(self, hidden_size: int, vocabulary_size: int) -> None:
        super().__init__()
        cutoffs = [vocabulary_size // 50, vocabulary_size // 5]
        self.layers = nn.AdaptiveLogSoftmaxWithLoss(hidden_size, vocabulary_size, cutoffs, div_value=4.0)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return log P of every token, (…, vocabulary), of hidden states (…, hidden): logits whose softmax is P."""
        log_p = self.layers.log_prob(hidden.flatten(0, -2))
        return log_p.view(*hidden.shape[:-1], -1)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats of targets (tokens) after hidden states (tokens, hidden).

        Only the head, and the tails that a target lies in, are computed.
        """
        with torch.autocast(hidden.device.type, enabled=False):  # its parts would have different precisions
            return cast(Tensor, self.layers(hidden.to(self.layers.head.weight.dtype), targets.long()).loss)


def sampled_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, samples: int) -> Tensor:
    """Return the mean loss with the softmax's sum estimated from sampled tokens (Bengio and Senécal 2003).

    Z = exp(z_target) + the rest; the rest is estimated, without bias, by the mean of exp(z_k) / Q(k) over `samples`
    tokens k drawn for the whole minibatch from Q(k) = log((k + 2) / (k + 1)) / log(V + 1), which is Zipf's law for
    ids by descending frequency. A draw that is a token's own target counts nothing for it. The log of an estimate is
    on average below the log of the sum: a training loss is smaller than the full softmax's.

    Args:
        hidden: (tokens, hidden).
        weight: (vocabulary, hidden).
        bias: (vocabulary).
        targets: (tokens) ids.
        samples: how many tokens are drawn.
    """
    targets = targets.long()
    drawn, log_q = draw_tokens(len(weight), samples, hidden.device)
    rest = F.linear(hidden, weight[drawn], bias[drawn]) - (log_q + math.log(samples)).to(hidden.dtype)
    rest = rest.masked_fill(drawn == targets[:, None], -math.inf)
    of_target = (hidden * weight[targets]).sum(1) + bias[targets]
    return (torch.logaddexp(of_target, rest.logsumexp(1)) - of_target).mean()


def draw_tokens(vocabulary_size: int, samples: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return tokens drawn by Zipf's law with replacement, from PyTorch's generator, and the log of each probability."""
    uniform = torch.rand(samples, dtype=torch.float64, device=device)
    drawn = (uniform * math.log(vocabulary_size + 1)).exp().long().sub_(1).clamp_(0, vocabulary_size - 1)
    probabilities = ((drawn + 2).double() / (drawn + 1)).log() / math.log(vocabulary_size + 1)
    return drawn, probabilities.log()
