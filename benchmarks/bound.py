"""The physical model: the fewest floating-point operations a token needs, over what this machine does in a second.

Counted are the products alone (two operations per multiply-add). Training costs three times the forward pass: the
gradients of what goes in and of the weights are a product each; a one-hot input has no gradient.
"""

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def forward_flops(
    cell: str, hidden: int, vocabulary: int, *, layers: int = 1, embedding: int = 0, one_hot_product: bool = False
) -> float:
    """Return the operations of one token's forward pass.

    Args:
        cell: rnn, gru or lstm.
        hidden: units per layer.
        vocabulary: tokens that have an id.
        layers: recurrent layers.
        embedding: width of a dense input; 0 = one-hot.
        one_hot_product: whether one-hot rows are multiplied; otherwise a row of the weights is looked up, for nothing.
    """
    return _dense(cell, hidden, vocabulary, layers, embedding) + one_hot_product * _one_hot(cell, hidden, vocabulary)


def training_flops(
    cell: str, hidden: int, vocabulary: int, *, layers: int = 1, embedding: int = 0, one_hot_product: bool = False
) -> float:
    """Return the operations of one token's training: forward, and both gradients."""
    dense = 3 * _dense(cell, hidden, vocabulary, layers, embedding)
    return dense + one_hot_product * 2 * _one_hot(cell, hidden, vocabulary)


def percent_of_bound(flops: float, flops_per_second: float, seconds: float) -> float:
    """Return how much of the machine's speed a figure is: the least time there can be over the time it took."""
    return 100 * flops / flops_per_second / seconds


def _dense(cell: str, hidden: int, vocabulary: int, layers: int, embedding: int) -> float:
    gates = 2 * GATES[cell] * hidden
    return layers * gates * hidden + (layers - 1) * gates * hidden + gates * embedding + 2 * hidden * vocabulary


def _one_hot(cell: str, hidden: int, vocabulary: int) -> float:
    return 2 * GATES[cell] * hidden * vocabulary
