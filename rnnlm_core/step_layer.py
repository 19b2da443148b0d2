"""Layers of cells that other packages bring: `Cell` is what such a package writes, one step; the loop is here."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnlm_core import cores
from rnnlm_core.cells import State
from rnnlm_core.config import OWN_CELLS, known_names
from rnnlm_core.errors import UsageError, unknown_name
from rnnlm_core.extensions import extensions


class Cell:
    """One step of a recurrent layer: a class with a step, the shapes of its recurrent weights, and how many gates.

    It has no instances and keeps nothing: all that it works with are its arguments.
    """

    num_gates: ClassVar[int]
    """G: the input's share X W_x + b of so many gates, side by side, is computed for all steps at once and handed to
    `step`. 0 if `step` wants the input itself."""
    num_states: ClassVar[int] = 1
    """Parts of the state, each (batch, hidden); the first is the layer's output."""
    title: ClassVar[str] = ""
    """What a model card calls it, with its article; "" = by its name."""

    @staticmethod
    def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of what is trained beside `W_x` and `b`.

        Weight drop (`model.weight_drop`) drops what has two dimensions.
        """
        raise NotImplementedError

    @staticmethod
    def step(inputs: Tensor, state: State, **weights: Tensor) -> State:
        """Return the state after one step.

        Args:
            inputs: (batch, G * hidden), or (batch, input_size) with no gates.
            state: each part (batch, hidden); zeros at the start of a text.
            weights: those of `shapes`, by name.
        """
        raise NotImplementedError


class StepLayer(nn.Module):
    """One layer of such a cell: its loop over the steps, differentiated automatically.

    Parameters: `W_x` (inputs, G * hidden) and `b` (G * hidden) unless G is 0, and those of the cell.
    """

    def __init__(self, cell: type[Cell], input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell, self.input_size = cell, input_size
        width = cell.num_gates * hidden_size
        self.W_x = nn.Parameter(torch.empty(input_size, width)) if width else None
        self.b = nn.Parameter(torch.empty(width)) if width else None
        self.recurrent = _weights(cell, input_size, hidden_size)
        bound = hidden_size**-0.5
        _try(cell, self, hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)  # as `torch.nn` does; `init` of the config may change it

    def forward(self, inputs: Tensor, state: State, weight_drop: float = 0.0) -> tuple[Tensor, State]:
        """Return the outputs of all steps, (steps, batch, hidden), and the last state.

        Args:
            inputs: (steps, batch, input_size), or (steps, batch) token ids, which stand for one-hot rows.
            state: each part (batch, hidden).
            weight_drop: probability with which recurrent weights are dropped, once for all steps.
        """
        weights: dict[str, Any] = dict(self.recurrent)
        if weight_drop:
            weights = {name: F.dropout(w, weight_drop) if w.dim() == 2 else w for name, w in weights.items()}
        outputs = []
        for now in self._shares(inputs).unbind(0):
            state = self.cell.step(now, state, **weights)
            outputs.append(state[0])
        return torch.stack(outputs) if outputs else state[0].new_empty(0, *state[0].shape), state

    def _shares(self, inputs: Tensor) -> Tensor:
        dense = inputs.is_floating_point()
        if self.W_x is None or self.b is None:
            return inputs if dense else F.one_hot(inputs.long(), self.input_size).to(next(self.parameters()).dtype)
        return (cores.linear(inputs, self.W_x) if dense else F.embedding(inputs, self.W_x)) + self.b


def _weights(cell: type[Cell], input_size: int, hidden_size: int) -> nn.ParameterDict:
    """Return the parameters that a cell declares; raises `UsageError` if it declares none that can be."""
    try:
        shapes = cell.shapes(input_size, hidden_size)
        return nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()})
    except Exception as error:  # whatever a class of somebody's raises
        place = f"{_place(cell)} ({type(error).__name__}: {error})"
        raise UsageError("`shapes` of the cell must name what it trains, with shapes", place, "mend it") from error


def _place(cell: type[Cell]) -> str:
    return f"{cell.__module__}:{cell.__qualname__}"


def _try(cell: type[Cell], layer: StepLayer, hidden_size: int) -> None:
    """Run one step; raises `UsageError` if what comes of it is no state of the cell."""
    place = _place(cell)
    like = next(layer.parameters(), None)
    if like is None:
        raise UsageError("a cell must have something to train: gates, or `shapes`", place, "declare it")
    inputs = like.new_zeros(2, cell.num_gates * hidden_size or layer.input_size)
    state = (like.new_zeros(2, hidden_size),) * cell.num_states
    try:
        with torch.no_grad():
            after = cell.step(inputs, state, **dict(layer.recurrent))
    except Exception as error:
        raise UsageError(
            "a step of the cell failed", f"{place} ({type(error).__name__}: {error})", "mend it"
        ) from error
    shapes = [tuple(part.shape) for part in after] if isinstance(after, tuple) else [type(after).__name__]
    if shapes != [(2, hidden_size)] * cell.num_states:
        rule = f"a step of the cell must return a tuple of {cell.num_states} x {(2, hidden_size)}"
        raise UsageError(rule, f"{place} returns {shapes}", "mend it, or `num_states`")


def find_cell(name: str) -> type[Cell]:
    """Return the cell of another package called `name`; an unknown name lists the known ones."""
    found = extensions("cell", OWN_CELLS).get(name)
    if found is None:
        raise unknown_name("cell", name, list(known_names("cell")))
    cell = found.load()
    if not (isinstance(cell, type) and issubclass(cell, Cell)):
        raise UsageError(f"the cell {name} must be a class of rnnlm_core.Cell", found.place, "mend or uninstall it")
    numbers = [getattr(cell, key, None) for key in ("num_gates", "num_states")]
    if [type(number) for number in numbers] != [int, int] or cell.num_gates < 0 or cell.num_states < 1:
        rule = f"the cell {name} must have `num_gates`, a whole number, and at least one of `num_states`"
        raise UsageError(rule, found.place, "mend it")
    with torch.random.fork_rng(devices=[]):  # one of no use, that mistakes are told before a training has begun
        StepLayer(cell, 3, 2)
    return cell
