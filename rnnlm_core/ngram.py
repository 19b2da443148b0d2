"""The n-gram model: a table of n-grams that is asked as a network is, state by state.

What a network calls its hidden states are here the places of the n-grams that end at a token, one of each order: they
are all that the model knows of the text so far, they lead to the places after the next token, and what they predict are
log-probabilities, of every id or, for an evaluation, of the ids that came. Estimated by `kneser_ney.py`.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnnlm_core.cells import State
from rnnlm_core.config import NGRAM, ModelConfig
from rnnlm_core.kneser_ney import Smoothed
from rnnlm_core.levels import EOS, Tokenizer
from rnnlm_core.mapped_ids import mapped_type
from rnnlm_core.ngram_counts import BLOCK, find
from rnnlm_core.vocabulary import Vocabulary

IDS = "1.probabilities"
PARTS = ("first", "last", "shares", "weights")
_TYPES = {"float64": "F64", "int64": "I64", "int32": "I32", "int16": "I16", "uint8": "U8"}
"""What safetensors calls the types of the arrays."""


class NgramModel(nn.Module):
    """An n-gram model of interpolated Kneser-Ney, with the interface of `LanguageModel` and no parameters to train.

    Args:
        config: order and kind of discounts.
        ids: the probability of each id by itself.
        grams: the n-grams of orders 2, 3, … up to `config.order`.
        line_end: the id that ends a line, if each line is predicted by itself. A text then begins as a line does.
    """

    cell = NGRAM

    def __init__(
        self, config: ModelConfig, ids: np.ndarray, grams: Sequence[Smoothed], line_end: int | None = None
    ) -> None:
        super().__init__()
        assert len(grams) == config.order - 1
        self.config = config.for_cell(NGRAM)
        self.ids, self.grams, self.line_end = ids, tuple(grams), line_end
        self.vocabulary_size = len(ids)

    @property
    def device(self) -> torch.device:
        """Where it works: on the processor."""
        return torch.device("cpu")

    @property
    def num_ngrams(self) -> int:
        """How many n-grams it has, of all orders; every id is one of order 1."""
        return len(self.ids) + sum(len(one.last) for one in self.grams)

    def initial_state(self, batch_size: int) -> list[State]:
        """Return the state before a text: (batch, order - 1) places of the n-grams that end here, -1 for none."""
        places = torch.full((batch_size, len(self.grams)), -1)
        if self.line_end is not None:
            places[:, :1] = self.line_end
        return [(places,)]

    def forward(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return log-probabilities of the next token after each of `ids` (batch, steps), and the state.

        In double precision, of shape (batch, steps, vocabulary).
        """
        places, after = self.hidden_states(ids, state)
        return self.output(places).transpose(0, 1), after

    def hidden_states(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return the places after each token, (steps, batch, order - 1), and the state."""
        places = self._places(ids, state)[:-1]
        return torch.from_numpy(places.transpose(2, 1, 0)), [_state(places)]

    def output(self, places: Tensor) -> Tensor:
        """Return the log-probability of every id after each of `places` (…, order - 1): (…, vocabulary)."""
        shape = places.shape[:-1]
        rows = places.numpy().reshape(math.prod(shape), len(self.grams))
        found = np.tile(self.ids, (len(rows), 1))
        for one, column in zip(self.grams, rows.T, strict=True):
            for row in np.flatnonzero(column >= 0):
                place = column[row]
                here = slice(one.first[place], one.first[place + 1])
                found[row] *= one.weights[place]
                found[row, one.last[here]] += one.shares[here]
        return torch.from_numpy(np.log(found)).reshape(*shape, self.vocabulary_size)

    def token_losses(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return the negative log-likelihood, in nats, of each of `ids` but the first, and the state before the last.

        Nothing is computed for the ids that did not come.
        """
        every = self._places(ids[None], state)[:, 0]
        places, came = every[:-1, :-1], ids[1:].long().numpy()
        probabilities = self.ids[came]
        for one, before, reached in zip(self.grams, places, every[1:, 1:], strict=True):
            known, there = np.flatnonzero(before >= 0), np.flatnonzero(reached >= 0)
            probabilities[known] *= one.weights[before[known]]
            probabilities[there] += one.shares[reached[there]]
        return torch.from_numpy(-np.log(probabilities)), [_state(places[:, None])]

    def _places(self, ids: Tensor, state: Sequence[State]) -> np.ndarray:
        """Return where the n-gram of each order is that ends at each id, (order, batch, steps); -1 for none.

        Raises IndexError for an id that the vocabulary does not have.
        """
        tokens, before = ids.long().numpy(), state[0][0].numpy()
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary_size:
            raise IndexError(f"ids from {tokens.min()} to {tokens.max()}, of {self.vocabulary_size}")
        places = np.empty((self.config.order, *tokens.shape), np.int64)
        places[0] = tokens
        for n, one in enumerate(self.grams):
            history = np.concatenate([before[:, n : n + 1], places[n, :, :-1]], axis=1)
            places[n + 1] = find(one.first, one.last, history.ravel(), tokens.ravel()).reshape(tokens.shape)
        return places

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that it consists of, by name."""
        grams = {f"{n}.{part}": getattr(one, part) for n, one in enumerate(self.grams, start=2) for part in PARTS}
        return {IDS: self.ids, **grams}


def line_end(tokenizer: Tokenizer, vocabulary: Vocabulary) -> int | None:
    """Return the id that ends a line, None where a text has no lines of its own: then nothing is forgotten."""
    return vocabulary[EOS] if tokenizer.about["eos"] == "line" and EOS in vocabulary else None


def described(config: ModelConfig) -> dict[str, Any]:
    """Return what a model's description says of its config."""
    return {"order": config.order, "discounts": config.discounts}


def write_ngrams(path: Path, model: NgramModel) -> None:
    """Write a model's arrays as safetensors; its own writer would hold all of them in memory."""
    arrays = sorted(model.arrays().items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, dict[str, Any]] = {}
    at = 0
    for name, array in arrays:
        place = [at, at := at + array.nbytes]
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers of eight bytes come first, and begin where they should
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in arrays:
            for start in range(0, len(array), BLOCK):
                file.write(array[start : start + BLOCK].tobytes())


def read_ngrams(tensors: Mapping[str, Tensor], about: Mapping[str, Any], size: int, line_end: int | None) -> NgramModel:
    """Return the model of arrays that `write_ngrams` wrote, for a vocabulary of `size`; `about` is `described`.

    Raises ValueError or TypeError for what are none of a model.
    """
    config = ModelConfig(**about)
    if type(config.order) is not int or not 1 <= config.order <= len(tensors):
        raise ValueError("its order is none of a model")
    if described(config) != about or config.discounts not in ("modified", "single"):
        raise ValueError("its description is of another kind")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    names = {IDS, *(f"{n}.{part}" for n in range(2, config.order + 1) for part in PARTS)}
    if strange := sorted(arrays.keys() ^ names):
        raise ValueError(f"{strange[0]} is {'missing' if strange[0] in names else 'not asked for'}")
    grams = [Smoothed(*(arrays[f"{n}.{part}"] for part in PARTS)) for n in range(2, config.order + 1)]
    _check_probabilities(IDS, arrays[IDS], size)
    above = size
    for n, one in enumerate(grams, start=2):
        _check_places(f"{n}.first", one.first, above, len(one.last))
        _check_ids(f"{n}.last", one.last, size)
        _check_probabilities(f"{n}.weights", one.weights, above)
        _check_probabilities(f"{n}.shares", one.shares, len(one.last), lowest=0.0)
        above = len(one.last)
    return NgramModel(config, arrays[IDS], grams, line_end)


def _check_probabilities(name: str, values: np.ndarray, size: int, lowest: float = math.ulp(0.0)) -> None:
    if values.dtype != np.float64 or values.shape != (size,):
        raise ValueError(f"{name} holds {values.dtype} {values.shape}, not float64 ({size},)")
    if size and not lowest <= values.min() <= values.max() <= 1:  # false for NaN as well
        raise ValueError(f"{name} holds what is no probability")


def _check_places(name: str, values: np.ndarray, size: int, upto: int) -> None:
    if values.dtype not in (np.int32, np.int64) or values.shape != (size + 1,):
        raise ValueError(f"{name} holds {values.dtype} {values.shape}, not places ({size + 1},)")
    if values[0] != 0 or values[-1] != upto or (values[1:] < values[:-1]).any():
        raise ValueError(f"{name} holds what are no places")


def _check_ids(name: str, values: np.ndarray, size: int) -> None:
    if values.dtype != mapped_type(size) or values.ndim != 1:
        raise ValueError(f"{name} holds {values.dtype} {values.shape}, not ids")
    if len(values) and not 0 <= values.min() <= values.max() < size:
        raise ValueError(f"{name} holds ids that the vocabulary lacks")


def _state(places: np.ndarray) -> State:
    """Return the state after places of shape (order - 1, batch, steps)."""
    return (torch.from_numpy(np.ascontiguousarray(places[:, :, -1].T)),)
