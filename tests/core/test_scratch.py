"""The layers from scratch against `torch.nn` with equal weights, against the book's formulas, and converted."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnlm_core.config import CELLS, ModelConfig
from rnnlm_core.model import LanguageModel, convert, num_parameters
from rnnlm_core.scratch import ScratchLayer, from_concise, to_concise

V, HIDDEN, STEPS = 7, 5, 6
TORCH = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
NUM_PARTS = {"rnn": 1, "gru": 1, "lstm": 2}
CLOSE = {"rtol": 0, "atol": 1e-10}
every_cell = pytest.mark.parametrize("cell", CELLS)


def scratch_model(cell: str, reset_gate: Any = "after", **sizes: Any) -> LanguageModel:
    """A model from scratch, far from its small first weights so that every term shows."""
    torch.manual_seed(0)
    config = ModelConfig(
        implementation="scratch", reset_gate=reset_gate, init="uniform", init_range=0.9, hidden_size=HIDDEN, **sizes
    )
    return LanguageModel(cell, V, config).double()


def concise_model(cell: str, **sizes: Any) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(init="uniform", init_range=0.9, hidden_size=HIDDEN, **sizes)
    return LanguageModel(cell, V, config).double()


def ids_of(batch_size: int) -> Tensor:
    return torch.randint(0, V, (batch_size, STEPS), generator=torch.Generator().manual_seed(1))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def state_of(model: LanguageModel, batch_size: int, given: bool) -> list[tuple[Tensor, ...]]:
    zero = model.initial_state(batch_size)
    if not given:
        return zero
    return [tuple(normal(*part.shape, seed=10 * i + k) for k, part in enumerate(s)) for i, s in enumerate(zero)]


def peer_of(model: LanguageModel) -> nn.Module:
    """One module of `torch.nn` with all layers; the scratch layer's one bias is its input bias."""
    first: Any = model.layers[0]
    layers = list(model.layers)
    peer = TORCH[model.cell](first.W_x.shape[0], HIDDEN, num_layers=len(layers), batch_first=True).double()
    with torch.no_grad():
        for i, layer in enumerate(layers):
            getattr(peer, f"weight_ih_l{i}").copy_(layer.W_x.T)
            getattr(peer, f"weight_hh_l{i}").copy_(layer.W_h.T)
            getattr(peer, f"bias_ih_l{i}").copy_(layer.b)
            getattr(peer, f"bias_hh_l{i}").zero_()
            if layer.b_h is not None:
                getattr(peer, f"bias_hh_l{i}")[2 * HIDDEN :] = layer.b_h
    return peer


@every_cell
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("given", [False, True], ids=["zero-state", "given-state"])
@pytest.mark.parametrize("embedding_size", [0, 3], ids=["one-hot", "embedding"])
def test_scratch_equals_torch_in_outputs_states_and_gradients(
    cell: str, num_layers: int, batch_size: int, given: bool, embedding_size: int
) -> None:
    model = scratch_model(cell, num_layers=num_layers, embedding_size=embedding_size)
    peer, ids, state = peer_of(model), ids_of(batch_size), state_of(model, batch_size, given)
    table = None if model.embedding is None else model.embedding.weight.detach().clone().requires_grad_()
    inputs = F.one_hot(ids, V).double() if table is None else table[ids]
    stacked = tuple(torch.stack([layer[k] for layer in state]) for k in range(NUM_PARTS[cell]))
    outputs, last = peer(inputs, stacked if cell == "lstm" else stacked[0])
    last = last if cell == "lstm" else (last,)
    expected = outputs @ model.output.weight.detach().T + model.output.bias.detach()

    logits, after = model(ids, state)

    torch.testing.assert_close(logits, expected, **CLOSE)
    ours = [torch.stack([layer[k] for layer in after]) for k in range(NUM_PARTS[cell])]
    for a, b in zip(ours, last, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)

    weights = normal(*expected.shape, seed=3)
    ((logits * weights).sum() + sum(part.square().sum() for part in ours)).backward()
    ((expected * weights).sum() + sum(part.square().sum() for part in last)).backward()
    for i, layer in enumerate(model.layers):
        theirs = {name: getattr(peer, f"{name}_l{i}").grad for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        torch.testing.assert_close(layer.W_x.grad, theirs["weight_ih"].T, **CLOSE)
        torch.testing.assert_close(layer.W_h.grad, theirs["weight_hh"].T, **CLOSE)
        torch.testing.assert_close(layer.b.grad, theirs["bias_ih"], **CLOSE)
        if cell == "gru":
            torch.testing.assert_close(layer.b_h.grad, theirs["bias_hh"][2 * HIDDEN :], **CLOSE)
    if model.embedding is not None:
        torch.testing.assert_close(model.embedding.weight.grad, table.grad, **CLOSE)


def book_gru(layer: ScratchLayer, inputs: Tensor, H: Tensor) -> list[Tensor]:
    """The equations of the book, every gate with weights of its own: H̃ = tanh(X W_xh + (R ⊙ H) W_hh + b_h)."""
    W_xr, W_xz, W_xh = layer.W_x.split(HIDDEN, dim=1)
    W_hr, W_hz, W_hh = layer.W_h.split(HIDDEN, dim=1)
    b_r, b_z, b_h = layer.b.split(HIDDEN)
    hidden = []
    for X in inputs:
        R = 1 / (1 + torch.exp(-(X @ W_xr + H @ W_hr + b_r)))
        Z = 1 / (1 + torch.exp(-(X @ W_xz + H @ W_hz + b_z)))
        candidate = torch.tanh(X @ W_xh + (R * H) @ W_hh + b_h)
        H = Z * H + (1 - Z) * candidate
        hidden.append(H)
    return hidden


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("given", [False, True], ids=["zero-state", "given-state"])
@pytest.mark.parametrize("reset_gate", ["auto", "before"])
def test_the_book_s_gru_is_the_book_s_formula(reset_gate: str, given: bool, num_layers: int, batch_size: int) -> None:
    model = scratch_model("gru", reset_gate, num_layers=num_layers)
    ids, state = ids_of(batch_size), state_of(model, batch_size, given)
    hidden: Sequence[Tensor] = F.one_hot(ids.T, V).double().unbind()
    last = []
    for layer, before in zip(model.layers, state, strict=True):
        hidden = book_gru(layer, torch.stack(list(hidden)), before[0])
        last.append(hidden[-1])
    logits, after = model(ids, state)
    expected = torch.stack(list(hidden), dim=1) @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(logits, expected, **CLOSE)
    for (ours,), theirs in zip(after, last, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@every_cell
@pytest.mark.parametrize("reset_gate", ["before", "after"])
def test_ids_stand_for_one_hot_rows(cell: str, reset_gate: str) -> None:
    torch.manual_seed(0)
    layer = ScratchLayer(cell, V, HIDDEN, reset_gate).double()
    ids = ids_of(3).T
    state = tuple(normal(3, HIDDEN, seed=k) for k in range(NUM_PARTS[cell]))
    (rows, end), (dense, last) = layer(ids, state), layer(F.one_hot(ids, V).double(), state)
    torch.testing.assert_close(rows, dense, rtol=0, atol=1e-14)
    assert rows.shape == (STEPS, 3, HIDDEN)
    assert torch.equal(rows[-1], end[0])
    for a, b in zip(end, last, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


# Conversion


def logits_of(model: LanguageModel) -> Tensor:
    return model(ids_of(3), state_of(model, 3, given=True))[0].detach()


@every_cell
@pytest.mark.parametrize("sizes", [{}, {"num_layers": 2, "embedding_size": 3}], ids=["one-hot", "deep"])
def test_scratch_to_concise_and_back_computes_the_same(cell: str, sizes: dict[str, int]) -> None:
    model = scratch_model(cell, **sizes)
    there = convert(model, "concise")
    back = convert(there, "scratch")
    assert [m.config.implementation for m in (model, there, back)] == ["scratch", "concise", "scratch"]
    assert isinstance(there.layers[0], TORCH[cell])
    torch.testing.assert_close(logits_of(there), logits_of(model), **CLOSE)
    torch.testing.assert_close(logits_of(back), logits_of(model), **CLOSE)
    for name, tensor in model.weights().items():
        torch.testing.assert_close(back.weights()[name], tensor, rtol=0, atol=1e-15)


@every_cell
@pytest.mark.parametrize("sizes", [{}, {"num_layers": 2, "embedding_size": 3}], ids=["one-hot", "deep"])
def test_concise_to_scratch_and_back_computes_the_same(cell: str, sizes: dict[str, int]) -> None:
    model = concise_model(cell, **sizes)
    there = convert(model, "scratch")
    back = convert(there, "concise")
    assert isinstance(there.layers[0], ScratchLayer)
    assert num_parameters(there) < num_parameters(model)  # one bias where there were two
    torch.testing.assert_close(logits_of(there), logits_of(model), **CLOSE)
    torch.testing.assert_close(logits_of(back), logits_of(model), **CLOSE)


@pytest.mark.parametrize("implementation", ["scratch", "concise"])
def test_a_model_converted_to_what_it_is_is_a_copy(implementation: Any) -> None:
    model = scratch_model("lstm") if implementation == "scratch" else concise_model("lstm")
    same = convert(model, implementation)
    assert torch.equal(logits_of(same), logits_of(model))
    with torch.no_grad():
        same.output.weight.zero_()
    assert model.output.weight.any()


@pytest.mark.parametrize("training", [True, False])
def test_a_converted_model_keeps_mode_type_and_tied_weights(training: bool) -> None:
    model = scratch_model("gru", embedding_size=HIDDEN, tie_weights=True, dropout=0.3).train(training)
    there = convert(model, "concise")
    assert there.training is training
    assert there.output.weight.dtype == torch.float64
    assert there.embedding is not None
    assert there.embedding.weight is there.output.weight
    assert there.config.dropout == 0.3
    torch.testing.assert_close(logits_of(there.eval()), logits_of(model.eval()), **CLOSE)


def test_a_gru_that_resets_before_the_product_does_not_convert() -> None:
    model = scratch_model("gru", "before")
    for attempt in (lambda: convert(model, "concise"), lambda: to_concise(model.layers[0])):
        with pytest.raises(ValueError, match="reset gate after the product: this layer has it before"):
            attempt()


def test_the_candidate_s_recurrent_bias_of_torch_stays_inside_the_reset_gate() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, HIDDEN).double()
    weights = from_concise("gru", layer)
    assert torch.equal(weights["b_h"], layer.bias_hh_l0[2 * HIDDEN :])
    assert torch.equal(weights["b"][2 * HIDDEN :], layer.bias_ih_l0[2 * HIDDEN :])
    both = layer.bias_ih_l0 + layer.bias_hh_l0
    assert torch.equal(weights["b"][: 2 * HIDDEN], both[: 2 * HIDDEN])


# First weights and sizes


@every_cell
@pytest.mark.parametrize("init", ["auto", "book"])
def test_the_book_s_first_weights_are_small_and_its_biases_zero(cell: str, init: Any) -> None:
    torch.manual_seed(0)
    model = LanguageModel(cell, 40, ModelConfig(implementation="scratch", hidden_size=64, init=init))
    for name, parameter in model.state_dict().items():
        if parameter.dim() == 1:
            assert not parameter.any(), name
        else:
            assert float(parameter.std()) == pytest.approx(0.01, rel=0.1), name
            assert abs(float(parameter.mean())) < 0.001, name


def test_torch_s_first_weights_from_scratch_are_uniform_by_the_hidden_size() -> None:
    torch.manual_seed(0)
    model = LanguageModel("lstm", 40, ModelConfig(implementation="scratch", hidden_size=64, init="torch"))
    for parameter in model.layers.state_dict().values():
        assert float(parameter.abs().max()) == pytest.approx(64**-0.5, rel=0.1)
        assert float(parameter.abs().max()) <= 64**-0.5


@pytest.mark.parametrize("implementation", ["concise", "scratch"])
@every_cell
def test_uniform_first_weights_fill_their_range_biases_too(cell: str, implementation: Any) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        implementation=implementation, hidden_size=64, embedding_size=32, init="uniform", init_range=0.05
    )
    for name, parameter in LanguageModel(cell, 200, config).state_dict().items():
        assert float(parameter.max()) <= 0.05, name
        assert float(parameter.min()) >= -0.05, name
        assert float(parameter.abs().max()) > 0.04, name
        assert float(parameter.std()) == pytest.approx(0.05 / 3**0.5, rel=0.25), name


def test_concise_keeps_the_first_weights_of_torch() -> None:
    torch.manual_seed(3)
    layer, output = nn.LSTM(V, HIDDEN), nn.Linear(HIDDEN, V)
    torch.manual_seed(3)
    model = LanguageModel("lstm", V, ModelConfig(hidden_size=HIDDEN))
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.parameters(), (*layer.parameters(), *output.parameters()), strict=True)
    )


@pytest.mark.parametrize(
    ("cell", "hidden_size", "expected"), [("rnn", 512, 291_356), ("gru", 256, 226_076), ("lstm", 256, 299_036)]
)
def test_the_book_s_models_have_the_book_s_number_of_parameters(cell: str, hidden_size: int, expected: int) -> None:
    config = ModelConfig(implementation="scratch", hidden_size=hidden_size)
    assert num_parameters(LanguageModel(cell, 28, config)) == expected


def test_a_reset_gate_after_the_product_has_a_bias_of_its_own() -> None:
    after, before = (num_parameters(scratch_model("gru", place)) for place in ("after", "before"))
    assert after - before == HIDDEN
