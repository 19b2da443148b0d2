"""Output layers beside the full softmax: for large vocabularies, and a mixture that can say more than one softmax.

The adaptive and the sampled one, whose steps must not cost more with every rare word, need ids by descending frequency,
as vocabularies have them.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnlm_core.output_loss import token_losses

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


class MixtureOfSoftmaxes(nn.Module):
    """P = Σ_k π_k softmax(W h_k + b), π = softmax(W_π h), h_k = tanh(W_k h + b_k) (Yang et al. 2018).

    One softmax over states of d units gives log P of rank d at most, whatever the contexts; a mixture does not.

    Args:
        hidden_size: units of the state h.
        latent_size: units of the latent states h_k, hence of W, which an embedding may share.
        vocabulary_size: number of ids.
        num_softmaxes: how many are mixed.
    """

    def __init__(self, hidden_size: int, latent_size: int, vocabulary_size: int, num_softmaxes: int) -> None:
        super().__init__()
        self.num_softmaxes = num_softmaxes
        self.prior = nn.Linear(hidden_size, num_softmaxes, bias=False)
        self.latent = nn.Linear(hidden_size, num_softmaxes * latent_size)
        self.weight = nn.Parameter(torch.empty(vocabulary_size, latent_size))
        self.bias = nn.Parameter(torch.empty(vocabulary_size))
        bound = latent_size**-0.5
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)  # as those of `nn.Linear`

    def forward(self, hidden: Tensor) -> Tensor:
        """Return log P of every token, (…, vocabulary), of hidden states (…, hidden): logits whose softmax is P.

        One softmax after the other, so that never all of them are in memory.
        """
        log_prior, latent = self._components(hidden)
        log_p: Tensor | None = None
        for k in range(self.num_softmaxes):
            logits = F.linear(latent[..., k, :], self.weight, self.bias).to(self.weight.dtype)
            one = log_prior[..., k, None] + F.log_softmax(logits, dim=-1)
            log_p = one if log_p is None else torch.logaddexp(log_p, one)
        assert log_p is not None
        return log_p

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats of targets (tokens) after hidden states (tokens, hidden)."""
        log_prior, latent = self._components(hidden)
        each = targets[:, None].expand(-1, self.num_softmaxes).reshape(-1)
        losses = token_losses(latent.flatten(0, 1), self.weight, self.bias, each).view(log_prior.shape)
        return -torch.logsumexp(log_prior - losses, dim=1).mean()

    def _components(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return log π, (…, softmaxes), and the latent states, (…, softmaxes, latent)."""
        log_prior = F.log_softmax(self.prior(hidden).to(self.weight.dtype), dim=-1)
        latent = torch.tanh(self.latent(hidden))
        return log_prior, latent.reshape(*hidden.shape[:-1], self.num_softmaxes, -1)


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
