"""A bidirectional encoder: for text that is there as a whole. It is no language model.

Its backward direction reads from the end, so its output at a token knows the tokens after it: asked to predict them
it only has to copy, and its perplexity means nothing (the book shows one of 1.1). For filling gaps, tagging and
encoding (d2l, "Bidirectional Recurrent Neural Networks") that is what one wants.
"""

import torch
from torch import Tensor, nn

_LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class BidirectionalEncoder(nn.Module):
    """Token ids to one vector per token that has read the text in both directions.

    Args:
        cell: `rnn`, `gru` or `lstm`.
        vocabulary_size: number of ids.
        embedding_size: width of the embedding.
        hidden_size: width of each direction; the output is twice as wide.
        num_layers: layers of both directions, each on the output of the one below.
        dropout: between layers.
    """

    def __init__(
        self,
        cell: str,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dropout and num_layers == 1:
            raise ValueError(f"dropout between layers needs at least two of them, got dropout={dropout}, num_layers=1")
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.layers = _LAYERS[cell](
            embedding_size, hidden_size, num_layers, dropout=dropout, bidirectional=True, batch_first=True
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return (batch, steps, 2 * hidden) for ids of shape (batch, steps): forward half, then backward half."""
        outputs: Tensor
        outputs, _ = self.layers(self.embedding(ids.to(torch.int64)))
        return outputs
