"""The cells against their equations written out gate by gate, and against one step of `torch.nn`, in float64."""

import pytest
import torch
from torch import Tensor

from rnnlm_core.cells import STEPS, gru_step, gru_step_reset_before, lstm_step, rnn_step

BATCH, HIDDEN, INPUTS = 3, 5, 4
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
TORCH_CELLS = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parts(cell: str) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    num_gates = GATES[cell]
    state = tuple(normal(BATCH, HIDDEN, seed=10 + i) for i in range(2 if cell == "lstm" else 1))
    return (
        normal(BATCH, num_gates * HIDDEN, seed=1),
        state,
        normal(HIDDEN, num_gates * HIDDEN, seed=2),
        normal(num_gates * HIDDEN, seed=3),
    )


def gate(number: int, tensor: Tensor) -> Tensor:
    return tensor[..., number * HIDDEN : (number + 1) * HIDDEN]


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def test_rnn_is_tanh_of_input_and_state() -> None:
    gates, (H,), W, b = parts("rnn")
    (after,) = rnn_step(gates, (H,), W, b)
    torch.testing.assert_close(after, torch.tanh(gates + H @ W + b), rtol=0, atol=1e-12)


def test_gru_resets_after_the_product_and_updates_towards_the_candidate() -> None:
    gates, (H,), W, b = parts("gru")
    R = logistic(gate(0, gates) + H @ gate(0, W) + gate(0, b))
    Z = logistic(gate(1, gates) + H @ gate(1, W) + gate(1, b))
    candidate = torch.tanh(gate(2, gates) + R * (H @ gate(2, W) + gate(2, b)))
    (after,) = gru_step(gates, (H,), W, b)
    torch.testing.assert_close(after, Z * H + (1 - Z) * candidate, rtol=0, atol=1e-12)


@pytest.mark.parametrize("biased", [True, False])
def test_the_book_s_gru_resets_before_the_product(biased: bool) -> None:
    gates, (H,), W, b = parts("gru")
    W_hr, W_hz, W_hh = (gate(i, W) for i in range(3))
    b_r, b_z, b_h = (gate(i, b) if biased else 0.0 for i in range(3))
    R = logistic(gate(0, gates) + H @ W_hr + b_r)
    Z = logistic(gate(1, gates) + H @ W_hz + b_z)
    candidate = torch.tanh(gate(2, gates) + (R * H) @ W_hh + b_h)
    (after,) = gru_step_reset_before(gates, (H,), W, b if biased else None)
    torch.testing.assert_close(after, Z * H + (1 - Z) * candidate, rtol=0, atol=1e-12)


def test_where_the_reset_gate_works_makes_a_difference() -> None:
    gates, state, W, b = parts("gru")
    assert (gru_step(gates, state, W, b)[0] - gru_step_reset_before(gates, state, W, b)[0]).abs().max() > 0.1


@pytest.mark.parametrize("cell", STEPS)
def test_a_step_without_recurrent_bias_is_one_with_zeros(cell: str) -> None:
    gates, state, W, b = parts(cell)
    for bare, zero in zip(STEPS[cell](gates, state, W, None), STEPS[cell](gates, state, W, 0 * b), strict=True):
        torch.testing.assert_close(bare, zero, rtol=0, atol=1e-12)


def test_lstm_forgets_writes_and_shows() -> None:
    gates, (H, C), W, b = parts("lstm")
    pre = [gate(i, gates) + H @ gate(i, W) + gate(i, b) for i in range(4)]
    I, F, O = logistic(pre[0]), logistic(pre[1]), logistic(pre[3])  # noqa: E741 - the literature's names
    memory = F * C + I * torch.tanh(pre[2])
    shown, kept = lstm_step(gates, (H, C), W, b)
    torch.testing.assert_close(kept, memory, rtol=0, atol=1e-12)
    torch.testing.assert_close(shown, O * torch.tanh(memory), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", STEPS)
def test_a_step_equals_the_cell_of_torch(cell: str) -> None:
    _, state, _, _ = parts(cell)
    torch.manual_seed(0)
    reference = TORCH_CELLS[cell](INPUTS, HIDDEN, dtype=torch.float64)
    X = normal(BATCH, INPUTS, seed=4)
    with torch.no_grad():
        expected = reference(X, state if cell == "lstm" else state[0])
        gates = X @ reference.weight_ih.t() + reference.bias_ih
        after = STEPS[cell](gates, state, reference.weight_hh.t(), reference.bias_hh)
    for ours, theirs in zip(after, expected if cell == "lstm" else (expected,), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", STEPS)
def test_a_step_leaves_the_state_it_was_given(cell: str) -> None:
    gates, state, W, b = parts(cell)
    before = [part.clone() for part in state]
    STEPS[cell](gates, state, W, b)
    assert all(torch.equal(part, old) for part, old in zip(state, before, strict=True))
