"""The language model: token ids in, logits of the next token out, the state carried by the caller.

The model knows nothing of training; `saved_model.py` has its file form. A model of n-grams (`ngram.py`) answers to the
same calls.
"""

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnlm_core import cores
from rnnlm_core.cells import State
from rnnlm_core.config import CELLS, ModelConfig
from rnnlm_core.dropout import VariationalDropout, drop_rows
from rnnlm_core.errors import DataError, ResourceError
from rnnlm_core.ngram import NgramModel
from rnnlm_core.output_loss import output_loss
from rnnlm_core.recurrence import FEWEST_ROWS, Kind, recur, settled
from rnnlm_core.scratch import ScratchLayer, from_concise, to_concise
from rnnlm_core.softmax import FEWEST_TOKENS, AdaptiveSoftmax, MixtureOfSoftmaxes
from rnnlm_core.step_layer import StepLayer, find_cell

MOST_ONE_HOT = 1024
"""Ids up to which a product with one-hot rows costs cuDNN and oneDNN less than a loop of our own does."""
_LAYERS: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}


class LanguageModel(nn.Module):
    """A stack of recurrent layers of one kind between an embedding (or one-hot rows) and an output layer.

    Args:
        cell: `rnn`, `gru`, `lstm`, or the name of a cell that another package brings.
        vocabulary_size: number of ids.
        config: implementation, sizes, dropout and first weights.
    """

    def __init__(self, cell: str, vocabulary_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.cell, self.config = cell, config.for_cell(cell)
        self._step = None if cell in CELLS else find_cell(cell)
        width = config.embedding_size or vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, width) if config.embedding_size else None
        sizes = self.config.layer_sizes
        shapes = zip((width, *sizes[:-1]), sizes, strict=True)
        self.layers = nn.ModuleList(self._layer(i, *shape) for i, shape in enumerate(shapes))
        self.dropout_input = self._dropout(config.dropout_input)
        self.dropout_hidden = self._dropout(config.dropout_hidden)
        self.dropout_output = self._dropout(config.dropout_output)
        self.vocabulary_size = vocabulary_size
        self.output = self._output_layer()
        if config.tie_weights and self.embedding is not None and not isinstance(self.output, AdaptiveSoftmax):
            # The first weights are the output's: those of an embedding, N(0, 1), would make far too large logits.
            self.embedding.weight = self.output.weight
        self._initialize()

    def _layer(self, i: int, input_size: int, hidden_size: int) -> nn.Module:
        if self._step is not None:
            return StepLayer(self._step, input_size, hidden_size)
        if self.config.implementation == "scratch":
            return ScratchLayer(self.cell, input_size, hidden_size, self.config.reset_gate)
        layer = _LAYERS[self.cell](input_size, hidden_size)
        # Laid out as products read them, and a token's row in one place: the shapes stay those of `torch.nn`.
        names = ["weight_hh_l0"] if i or self.config.embedding_size else ["weight_ih_l0", "weight_hh_l0"]
        for name in names:
            weights = cast(Tensor, getattr(layer, name)).detach()
            setattr(layer, name, nn.Parameter(weights.t().contiguous().t()))
        return layer

    def _dropout(self, own: float) -> nn.Dropout:
        p = own or self.config.dropout
        return VariationalDropout(p) if self.config.variational_dropout else nn.Dropout(p)

    def _output_layer(self) -> nn.Linear | AdaptiveSoftmax | MixtureOfSoftmaxes:
        config, size, width = self.config, self.vocabulary_size, self.config.layer_sizes[-1]
        if config.softmax == "adaptive":
            if size < FEWEST_TOKENS:
                what = f"`model.softmax` adaptive needs at least {FEWEST_TOKENS:,} different tokens"
                raise DataError(what, f"{size:,}", "use model.softmax=full")
            return AdaptiveSoftmax(width, size)
        if config.mixture:
            tied = config.embedding_size if config.tie_weights else 0
            return MixtureOfSoftmaxes(width, tied or width, size, config.mixture)
        return nn.Linear(width, size)

    def _initialize(self) -> None:
        """Draw the first weights anew, unless they are those that the layers of `torch.nn` draw themselves."""
        config = self.config
        init = config.init
        if init == "auto":
            init = "book" if config.implementation == "scratch" else "torch"
        if init == "torch":
            return
        for parameter in self.parameters():
            # Drawn row after row: a seed means the same weights however they lie in memory.
            drawn = torch.empty_like(parameter, memory_format=torch.contiguous_format)
            if init == "uniform":
                nn.init.uniform_(drawn, -config.init_range, config.init_range)
            elif parameter.dim() > 1:
                nn.init.normal_(drawn, 0.0, 0.01)
            else:
                nn.init.zeros_(drawn)
            parameter.data.copy_(drawn)

    def weights(self) -> dict[str, Tensor]:
        """Return every trained tensor once, by name, row after row as files have them; they are to be read only.

        Tied weights stand under the embedding's name alone.
        """
        return {
            name: tensor.contiguous()
            for name, tensor in self.state_dict().items()
            if name != "output.weight" or not self.config.tie_weights
        }

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take what `weights` returned; raises RuntimeError if it does not fit."""
        tied = {"output.weight": weights["embedding.weight"]} if self.config.tie_weights else {}
        self.load_state_dict({**weights, **tied})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def loss(self, hidden: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
        """Return `scale` times the mean loss, in nats, of targets (tokens) after hidden states (tokens, hidden)."""
        if isinstance(self.output, nn.Linear):
            return output_loss(hidden, self.output.weight, self.output.bias, targets, scale)
        return self.output.loss(hidden, targets) * scale

    def initial_state(self, batch_size: int) -> list[State]:
        """Return the zero state of every layer."""
        like, parts = next(self.parameters()), self._step.num_states if self._step else 2 if self.cell == "lstm" else 1
        return [(like.new_zeros(batch_size, size),) * parts for size in self.config.layer_sizes]

    def forward(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return the logits after each token, and the state after the last.

        Args:
            ids: (batch, steps) token ids, any integer type.
            state: what `initial_state` or the call before returned.

        Returns:
            logits of shape (batch, steps, vocabulary), in memory step after step, and one state per layer. Those of a
            mixture of softmaxes, and of an adaptive one, are log-probabilities.
        """
        outputs, after = self.hidden_states(ids, state)
        logits: Tensor = self.output(outputs)
        return logits.transpose(0, 1), after

    def token_losses(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return the negative log-likelihood, in nats, of each of `ids` but the first, and the state before the last.

        The ids are one text, (tokens + 1).
        """
        logits, after = self(ids[None, :-1], state)
        return F.cross_entropy(logits[0], ids[1:].long(), reduction="none"), after

    def hidden_states(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return what the output layer sees, (steps, batch, units), and the state; the arguments as in `forward`."""
        outputs, after = self.last_outputs(ids, state)
        return self.dropout_output(outputs), after

    def last_outputs(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return the outputs of the last layer before dropout, (steps, batch, units), and the state."""
        steps = ids.t().int()
        outputs = steps if self.embedding is None else self.dropout_input(self._embedded(self.embedding, steps))
        after = []
        for i, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            if i:
                outputs = self.dropout_hidden(outputs)
            outputs, last = self._run_layer(layer, outputs, before)
            after.append(last)
        return outputs, after

    def _embedded(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        rows: Tensor = embedding(ids)
        p = self.config.dropout_embedding
        return drop_rows(rows, ids, self.vocabulary_size, p) if p and self.training else rows

    def _run_layer(self, layer: Any, inputs: Tensor, before: State) -> tuple[Tensor, State]:
        """Run a layer on (steps, batch, width), or on (steps, batch) ids that stand for one-hot rows.

        With weight drop its recurrent weights are m ⊙ W_h / (1 - p), one m for all steps (DropConnect, Wan et al. 2013;
        Merity et al. 2017, section 2).
        """
        result: tuple[Tensor, State]
        if isinstance(layer, StepLayer):
            result = layer(inputs, before, self.config.weight_drop if self.training else 0.0)
            return result
        if isinstance(layer, ScratchLayer):
            result = layer(inputs, before, self._dropped(layer.W_h))
            return result
        recurrent = self._dropped(layer.weight_hh_l0)
        dense = inputs.is_floating_point()
        if self._runs_in_torch_nn(layer, inputs):
            rows = inputs if dense else F.one_hot(inputs.long(), layer.input_size).to(layer.weight_ih_l0.dtype)
            return _dense_layer(layer, rows, before, recurrent)
        # The product of one-hot rows with the weights is a row look-up, exactly.
        U = layer.weight_ih_l0.t()
        table, ids = (cores.linear(inputs, U), None) if dense else (U, inputs)
        kind, b = cast(Kind, self.cell), layer.bias_hh_l0
        return recur(kind, table, before, recurrent.t(), b, ids=ids, input_bias=layer.bias_ih_l0)

    def _dropped(self, recurrent: Tensor) -> Tensor:
        p = self.config.weight_drop
        return F.dropout(recurrent, p) if p and self.training else recurrent

    def _runs_in_torch_nn(self, layer: Any, inputs: Tensor) -> bool:
        """Whether the layer of `torch.nn` is the fastest that there is: cuDNN, or oneDNN which has the LSTM alone."""
        dense = inputs.is_floating_point()
        way = settled(inputs.device)
        if way == "autograd":
            return dense
        if not dense and layer.input_size > MOST_ONE_HOT:
            return False
        if inputs.device.type != "cpu":
            return True
        return (way == "torch" and self.cell == "lstm") or (dense and inputs.shape[0] * inputs.shape[1] < FEWEST_ROWS)


def _dense_layer(layer: Any, inputs: Tensor, before: State, recurrent: Tensor) -> tuple[Tensor, State]:
    """Run a layer of `torch.nn`, with these recurrent weights in the place of its own."""
    where = inputs.device.type
    if torch.is_autocast_enabled(where) and torch.get_autocast_dtype(where) == torch.bfloat16:
        # Autocast would run cuDNN's layers in float16, whatever was asked for, and no loss is scaled for that.
        with torch.autocast(where, enabled=False):
            return _with_weights(layer, inputs, before, recurrent, torch.bfloat16)
    if recurrent is not layer.weight_hh_l0:
        return _with_weights(layer, inputs, before, recurrent, None)
    first = tuple(part.unsqueeze(0) for part in before)
    outputs, last = layer(inputs, first if len(first) > 1 else first[0])
    last = last if isinstance(last, tuple) else (last,)
    return outputs, tuple(part.squeeze(0) for part in last)


def _with_weights(
    layer: Any, inputs: Tensor, before: State, recurrent: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, State]:
    """Run what a layer of `torch.nn` runs, on weights that are not its own parameters; None: in the types they have."""
    flat = [layer.weight_ih_l0, recurrent, layer.bias_ih_l0, layer.bias_hh_l0]
    inputs, *flat = (tensor if dtype is None else tensor.to(dtype) for tensor in (inputs, *flat))
    first = tuple(part.unsqueeze(0).to(dtype or part.dtype) for part in before)
    run: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh}[layer.mode]
    start = first if len(first) > 1 else first[0]
    outputs, *last = run(inputs, start, flat, True, 1, 0.0, layer.training, False, False)
    return outputs, tuple(part.squeeze(0) for part in last)


Model = LanguageModel | NgramModel
"""What evaluation, generation, scoring and serving work with: `initial_state`, `hidden_states`, `output`, the call,
which is those two together, and `token_losses`; a state is one tuple of tensors, rows first, for each layer."""


def __getattr__(name: str) -> Any:
    """Return what `saved_model` has: the source of models that MLflow has kept since then asks for it here."""
    if name not in ("SavedModel", "load_model", "save_model"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("rnnlm_core.saved_model"), name)


def convert(model: LanguageModel, implementation: Literal["scratch", "concise"]) -> LanguageModel:
    """Return a model of the other implementation that computes the same.

    Raises ValueError for a GRU whose reset gate works before the product, and for a cell of another package: `torch.nn`
    has neither.
    """
    if model.cell not in CELLS:
        raise ValueError(f"torch.nn has no {model.cell}")
    if model.config.implementation == implementation:
        return copy.deepcopy(model)
    placed: Literal["auto", "after"] = "after" if model.cell == "gru" else "auto"
    config = replace(model.config, implementation=implementation, reset_gate=placed)
    other = LanguageModel(model.cell, model.vocabulary_size, config).to(next(model.parameters()))
    shared = {name: tensor for name, tensor in model.weights().items() if not name.startswith("layers.")}
    for i, layer in enumerate(model.layers):
        weights = to_concise(layer) if isinstance(layer, ScratchLayer) else from_concise(model.cell, layer)
        shared |= {f"layers.{i}.{name}": tensor for name, tensor in weights.items()}
    other.set_weights(shared)
    other.train(model.training)
    return other


def detach(state: Sequence[State]) -> list[State]:
    """Return the state cut off from the graph that made it (truncated back-propagation through time)."""
    return [tuple(part.detach() for part in layer) for layer in state]


def num_parameters(model: nn.Module) -> int:
    """Return the number of trained values; of a model of n-grams, how many it has."""
    if isinstance(model, NgramModel):
        return model.num_ngrams
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; raises `ResourceError` if it is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ResourceError(f"no such device here (present: {there})", name, "use `--set train.device=cpu`")
    return device
