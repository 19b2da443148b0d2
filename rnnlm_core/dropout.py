"""Dropout that a language model has beside `torch.nn.Dropout`: masks that hold for a whole minibatch.

What is kept is divided by 1 - p, so that a model in use needs no change. At p = 0, and in evaluation mode, nothing is
drawn. The recurrent weights are dropped by `torch.nn.Dropout` itself, before a layer runs (weight drop).
"""

from torch import Tensor, nn
from torch.nn import functional as F


class VariationalDropout(nn.Dropout):
    """x_t ⊙ m / (1 - p) with one mask m ~ Bernoulli(1 - p) for all steps t (Gal and Ghahramani 2016).

    Each row of a minibatch has its own mask (Merity et al. 2017). `torch.nn.Dropout` draws one for every step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return inputs of shape (steps, batch, width) with the units dropped."""
        if not self.training or not self.p:
            return input
        return input * F.dropout(input.new_ones(1, *input.shape[1:]), self.p)


def drop_rows(rows: Tensor, ids: Tensor, num_ids: int, p: float) -> Tensor:
    """Return m_w E_w / (1 - p) for each token w, with one m_w ~ Bernoulli(1 - p) for all its places in the minibatch.

    Embedding dropout (Gal and Ghahramani 2016; Merity et al. 2017, section 4.3): whole words are dropped.

    Args:
        rows: (…, width), the rows E_w that were looked up.
        ids: (…), the tokens w.
        num_ids: size of the vocabulary.
        p: the share of the vocabulary that is dropped.
    """
    return rows * F.embedding(ids, F.dropout(rows.new_ones(num_ids, 1), p))
