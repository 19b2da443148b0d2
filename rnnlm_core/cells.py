"""The recurrent cells as equations: one step each, the loop is elsewhere.

`gates` is the input's share of the gates, X W_x + b, of shape (batch, G * hidden), already looked up or multiplied;
`W` of shape (hidden, G * hidden) and `b` (None = 0) are the recurrent weights and biases, the gates side by side in
the order of `torch.nn`: R, Z, H̃ for the GRU and I, F, C̃, O for the LSTM.
"""

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""What a layer carries from step to step, each of shape (batch, hidden): (H,), for the LSTM (H, C)."""


def rnn_step(gates: Tensor, state: State, W: Tensor, b: Tensor | None) -> State:
    """H' = tanh(X W_xh + H W_hh + b_h) (d2l, "Recurrent Neural Networks")."""
    (H,) = state
    return (torch.tanh(gates + _recurrent(H, W, b)),)


def gru_step(gates: Tensor, state: State, W: Tensor, b: Tensor | None) -> State:
    """R, Z = σ(·); H̃ = tanh(X W_xh + b_x + R ⊙ (H W_hh + b_h)); H' = Z ⊙ H + (1 - Z) ⊙ H̃.

    The reset gate works after the product, as in `torch.nn.GRU` and cuDNN.
    """
    (H,) = state
    x_r, x_z, x_h = gates.chunk(3, dim=-1)
    h_r, h_z, h_h = _recurrent(H, W, b).chunk(3, dim=-1)
    R = torch.sigmoid(x_r + h_r)
    Z = torch.sigmoid(x_z + h_z)
    candidate = torch.tanh(x_h + R * h_h)
    return (candidate + Z * (H - candidate),)


def gru_step_reset_before(gates: Tensor, state: State, W: Tensor, b: Tensor | None) -> State:
    """R, Z = σ(·); H̃ = tanh(X W_xh + (R ⊙ H) W_hh + b_h); H' = Z ⊙ H + (1 - Z) ⊙ H̃.

    The reset gate works before the product (Cho et al. 2014; d2l, "Gated Recurrent Units").
    """
    (H,) = state
    hidden = H.shape[-1]
    x_rz, x_h = gates[:, : 2 * hidden], gates[:, 2 * hidden :]
    b_rz, b_h = (None, None) if b is None else (b[: 2 * hidden], b[2 * hidden :])
    R, Z = torch.sigmoid(x_rz + _recurrent(H, W[:, : 2 * hidden], b_rz)).chunk(2, dim=-1)
    candidate = torch.tanh(x_h + _recurrent(R * H, W[:, 2 * hidden :], b_h))
    return (Z * H + (1 - Z) * candidate,)


def lstm_step(gates: Tensor, state: State, W: Tensor, b: Tensor | None) -> State:
    """I, F, O = σ(·); C̃ = tanh(·); C' = F ⊙ C + I ⊙ C̃; H' = O ⊙ tanh(C') (d2l, "Long Short-Term Memory")."""
    H, C = state
    i, f, c, o = (gates + _recurrent(H, W, b)).chunk(4, dim=-1)
    C = torch.sigmoid(f) * C + torch.sigmoid(i) * torch.tanh(c)
    return (torch.sigmoid(o) * torch.tanh(C), C)


def _recurrent(H: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return H @ W if b is None else torch.addmm(b, H, W)


STEPS = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}
NUM_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
