"""The recurrent cells as equations: one step each, the loop is elsewhere.

`gates` is the input's share of the gates, X W_x + b_x, of shape (batch, G * hidden), already looked up or multiplied;
`W` of shape (hidden, G * hidden) and `b` are the recurrent weights. The order of the gates is that of `torch.nn`.
"""

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""What a layer carries from step to step, each of shape (batch, hidden): (H,), for the LSTM (H, C)."""


def rnn_step(gates: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """H' = tanh(X W_xh + H W_hh + b_h) (d2l, "Recurrent Neural Networks")."""
    (H,) = state
    return (torch.tanh(gates + torch.addmm(b, H, W)),)


def gru_step(gates: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """R, Z = σ(·); H̃ = tanh(X W_xh + b_x + R ⊙ (H W_hh + b_h)); H' = Z ⊙ H + (1 - Z) ⊙ H̃.

    The reset gate works after the product, as in `torch.nn.GRU` and cuDNN; Cho et al. (2014) put it before.
    """
    (H,) = state
    x_r, x_z, x_n = gates.chunk(3, dim=-1)
    h_r, h_z, h_n = torch.addmm(b, H, W).chunk(3, dim=-1)
    R, Z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    candidate = torch.tanh(x_n + R * h_n)
    return (candidate + Z * (H - candidate),)


def lstm_step(gates: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """I, F, O = σ(·); C̃ = tanh(·); C' = F ⊙ C + I ⊙ C̃; H' = O ⊙ tanh(C') (d2l, "Long Short-Term Memory")."""
    H, C = state
    i, f, c, o = (gates + torch.addmm(b, H, W)).chunk(4, dim=-1)
    C = torch.sigmoid(f) * C + torch.sigmoid(i) * torch.tanh(c)
    return (torch.sigmoid(o) * torch.tanh(C), C)


STEPS = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}
