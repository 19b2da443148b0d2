"""Recurrent layers from scratch: the book's parameters and equations (`cells.py`); `recurrence.py` has the loop.

One bias per gate, where `torch.nn` has two. Weights convert both ways, so that either can stand beside the other.
"""

from typing import cast

import torch
from torch import Tensor, nn

from rnnlm_core import cores
from rnnlm_core.cells import NUM_GATES, State
from rnnlm_core.recurrence import Kind, recur


class ScratchLayer(nn.Module):
    """One layer of a cell.

    Parameters, the gates side by side: `W_x` (inputs, G * hidden), `W_h` (hidden, G * hidden), `b` (G * hidden); a
    GRU whose reset gate works after the product has `b_h` (hidden) of its own inside that product.

    Args:
        cell: `rnn`, `gru` or `lstm`.
        input_size: width of the inputs (the vocabulary for one-hot inputs).
        hidden_size: width of the state.
        reset_gate: `before` or `after` the product, for the GRU.
    """

    def __init__(self, cell: str, input_size: int, hidden_size: int, reset_gate: str = "before") -> None:
        super().__init__()
        self.cell, self.hidden_size, self.reset_gate = cell, hidden_size, reset_gate
        width = NUM_GATES[cell] * hidden_size
        self.W_x = nn.Parameter(torch.empty(input_size, width))
        self.W_h = nn.Parameter(torch.empty(hidden_size, width))
        self.b = nn.Parameter(torch.empty(width))
        after = cell == "gru" and reset_gate == "after"
        self.b_h = nn.Parameter(torch.empty(hidden_size)) if after else None
        self.kind: Kind = "gru-before" if cell == "gru" and not after else cast(Kind, cell)
        bound = hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)  # as `torch.nn` does; `init` of the config may change it

    def forward(self, inputs: Tensor, state: State, W_h: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the hidden states of all steps, and the last state.

        Args:
            inputs: (steps, batch, input_size), or (steps, batch) token ids, which stand for one-hot rows: their
                product with `W_x` is a row of it.
            state: each part (batch, hidden).
            W_h: recurrent weights in the place of its own.
        """
        W = self.W_h if W_h is None else W_h
        b = None if self.b_h is None else torch.cat([self.b_h.new_zeros(2 * self.hidden_size), self.b_h])
        if inputs.is_floating_point():
            return recur(self.kind, cores.linear(inputs, self.W_x), state, W, b, input_bias=self.b)
        return recur(self.kind, self.W_x, state, W, b, ids=inputs, input_bias=self.b)


def to_concise(layer: ScratchLayer) -> dict[str, Tensor]:
    """Return the weights of the layer of `torch.nn` that computes the same.

    Raises ValueError for a GRU whose reset gate works before the product: `torch.nn` has none.
    """
    if layer.cell == "gru" and layer.reset_gate == "before":
        raise ValueError("torch.nn.GRU has its reset gate after the product: this layer has it before")
    return torch_layout(layer)


def torch_layout(layer: ScratchLayer) -> dict[str, Tensor]:
    """Return the weights under the names and in the shapes of `torch.nn`, wherever the reset gate works."""
    recurrent = torch.zeros_like(layer.b)
    if layer.b_h is not None:
        recurrent[2 * layer.hidden_size :] = layer.b_h
    return {
        "weight_ih_l0": layer.W_x.detach().t().contiguous(),
        "weight_hh_l0": layer.W_h.detach().t().contiguous(),
        "bias_ih_l0": layer.b.detach().clone(),
        "bias_hh_l0": recurrent.detach(),
    }


def from_concise(cell: str, layer: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the scratch layer that computes the same as a layer of `torch.nn`."""
    given = {name: tensor.detach() for name, tensor in layer.named_parameters()}
    inputs, recurrent = given["bias_ih_l0"], given["bias_hh_l0"]
    weights = {"W_x": given["weight_ih_l0"].t().contiguous(), "W_h": given["weight_hh_l0"].t().contiguous()}
    if cell != "gru":
        return {**weights, "b": inputs + recurrent}
    hidden = len(recurrent) // 3
    # The candidate's recurrent bias is inside the reset gate's product: it cannot be added to the other one.
    both = torch.cat([(inputs + recurrent)[: 2 * hidden], inputs[2 * hidden :]])
    return {**weights, "b": both, "b_h": recurrent[2 * hidden :].clone()}
