"""The minimal gated unit, a cell for rnnlm: one gate that forgets and resets."""

import torch
from torch import Tensor

from rnnlm_core import Cell, State


class MinimalGatedUnit(Cell):
    """F = σ(X W_xf + H W_hf + b_f); H̃ = tanh(X W_xh + (F ⊙ H) W_hh + b_h); H' = (1 - F) ⊙ H + F ⊙ H̃.

    Zhou, Wu, Zhang and Zhou, "Minimal gated unit for recurrent neural networks" (2016), equations 8 to 10.
    """

    num_gates = 2
    title = "a minimal gated unit"

    @staticmethod
    def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Return the recurrent weights; X W_x + b is computed outside, for all steps at once."""
        return {"W_hf": (hidden_size, hidden_size), "W_hh": (hidden_size, hidden_size)}

    @staticmethod
    def step(inputs: Tensor, state: State, W_hf: Tensor, W_hh: Tensor) -> State:
        """Return H' (batch, hidden) of H (batch, hidden) and the input's share of both gates (batch, 2 * hidden)."""
        (H,) = state
        x_f, x_h = inputs.chunk(2, dim=-1)
        F = torch.sigmoid(x_f + H @ W_hf)
        candidate = torch.tanh(x_h + (F * H) @ W_hh)
        return (H + F * (candidate - H),)
