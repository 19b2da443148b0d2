"""What training, evaluation and generation return, as plain data: reading a record needs no PyTorch."""

import math
from dataclasses import dataclass

from rnnlm_core.store import Handle


def perplexity(loss: float) -> float:
    """Return exp(loss), `inf` where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are in nats per token; `valid_loss` is None without validation split.

    What was counted in one pass, and not trained, has one epoch without learning rate or gradients.
    """

    number: int
    epochs: int
    train_loss: float
    valid_loss: float | None
    learning_rate: float | None
    gradient_norm: float | None
    tokens_per_second: float
    seconds: float

    @property
    def train_perplexity(self) -> float:
        """exp of the mean training loss of the epoch, measured while training (of n-grams, after it)."""
        return perplexity(self.train_loss)

    @property
    def valid_perplexity(self) -> float | None:
        """exp of the mean loss over the whole validation stream, after the epoch."""
        return None if self.valid_loss is None else perplexity(self.valid_loss)


@dataclass(frozen=True)
class Trained:
    """What `train` returns: the model of the best epoch, and the record of all epochs."""

    cell: str
    model: Handle
    best_epoch: int
    num_parameters: int
    device: str
    tokens_per_second: float
    history: tuple[Epoch, ...]

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return self.history[self.best_epoch - 1]


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` returns. `loss` is in nats per token; bits per character compare across tokenizers."""

    split: str
    loss: float
    perplexity: float
    bits_per_char: float
    oov_rate: float
    num_tokens: int
    eos: str
    """Whether one `<eos>` per line is among the tokens (`line`) or not (`none`)."""


@dataclass(frozen=True)
class Sample:
    """A prefix as the model read it, and the text with its continuation."""

    prefix: str
    text: str
