"""Masks that hold for a whole minibatch: what they are, where they are, and that they alone change the mathematics."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core.cells import STEPS, gru_step_reset_before
from rnnlm_core.config import CELLS, ModelConfig, TrainConfig
from rnnlm_core.dropout import VariationalDropout, drop_rows
from rnnlm_core.model import LanguageModel
from rnnlm_core.train import fit

V = 11
every_cell = pytest.mark.parametrize("cell", CELLS)
EVERY = ModelConfig(
    hidden_size=6, num_layers=2, embedding_size=5, dropout_input=0.3, dropout_hidden=0.4, dropout_output=0.5,
    dropout_embedding=0.2, variational_dropout=True, weight_drop=0.6,
)  # fmt: skip


def model_of(cell: str, config: ModelConfig = EVERY) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(cell, V, config).double().train()


def ids_of(batch: int, steps: int) -> Tensor:
    return torch.randint(V, (batch, steps), generator=torch.Generator().manual_seed(2))


# The masks themselves


def test_a_variational_mask_is_one_for_all_steps_and_another_for_each_row() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 40, 50)
    kept = VariationalDropout(0.3)(x) / x
    assert torch.allclose(kept, kept[:1].expand_as(kept))
    assert set(kept[0].mul(0.7).round(decimals=4).unique().tolist()) == {0.0, 1.0}
    assert float((kept[0] > 0).double().mean()) == pytest.approx(0.7, abs=0.05)
    assert not torch.equal(kept[0, 0], kept[0, 1])


def test_without_rate_or_in_evaluation_nothing_is_drawn() -> None:
    x = torch.randn(3, 2, 4)
    before = torch.get_rng_state()
    assert torch.equal(VariationalDropout(0.0)(x), x)
    assert torch.equal(VariationalDropout(0.5).eval()(x), x)
    assert torch.equal(torch.get_rng_state(), before)
    model = model_of("gru").eval()
    made = torch.get_rng_state()
    model(ids_of(2, 3), model.initial_state(2))
    assert torch.equal(torch.get_rng_state(), made)
    with pytest.raises(ValueError, match="between 0 and 1"):
        VariationalDropout(1.5)


def test_a_dropped_word_is_dropped_wherever_it_stands() -> None:
    torch.manual_seed(0)
    table, ids = torch.randn(V, 4, dtype=torch.float64), ids_of(9, 20)
    dropped = drop_rows(table[ids], ids, V, 0.4)
    factor = (0.6 * dropped / table[ids]).round(decimals=6)
    assert set(factor.unique().tolist()) == {0.0, 1.0}
    for word in range(V):
        assert len(factor[ids == word].unique()) == 1


# Where they are: the equations with the masks written in


class Drawn:
    """What `F.dropout` came to, in order: the factors, zero or 1 / (1 - p)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.factors: list[Tensor] = []
        real = F.dropout

        def keep(x: Tensor, *options: Any) -> Tensor:
            out = real(x, *options)
            if options[0]:
                self.factors.append(out.detach() / x.detach())
            return out

        monkeypatch.setattr(F, "dropout", keep)


def written_out(model: LanguageModel, ids: Tensor, masks: list[Tensor]) -> Tensor:
    """Return the logits, step after step, from embedding, layers and output with these masks in front of them."""
    words, of_input, W_0, of_hidden, W_1, of_output = masks
    outputs = model.embedding.weight[ids.t()] * words[ids.t()] * of_input
    for layer, mask, after in zip(model.layers, (W_0, W_1), (of_hidden, of_output), strict=True):
        if model.config.implementation == "scratch":
            gates, W, b = outputs @ layer.W_x + layer.b, layer.W_h * mask, None
            step = gru_step_reset_before if model.cell == "gru" else STEPS[model.cell]
        else:
            gates = outputs @ layer.weight_ih_l0.t() + layer.bias_ih_l0
            W, b, step = (layer.weight_hh_l0 * mask).t(), layer.bias_hh_l0, STEPS[model.cell]
        state = tuple(torch.zeros(ids.shape[0], 6, dtype=torch.float64) for _ in range(1 + (model.cell == "lstm")))
        hidden = []
        for now in gates:
            state = step(now, state, W, b)
            hidden.append(state[0])
        outputs = torch.stack(hidden) * after
    return outputs @ model.output.weight.t() + model.output.bias


@pytest.mark.parametrize("way", ["auto", "torch", "autograd"])
@pytest.mark.parametrize("batch", [2, 8], ids=["few rows", "rows for the kernel"])
@pytest.mark.parametrize("implementation", ["concise", "scratch"])
@every_cell
def test_outputs_and_gradients_are_those_of_the_equations_with_the_masks(
    cell: str, implementation: Any, batch: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)
    model = model_of(cell, ModelConfig(**{**EVERY.__dict__, "implementation": implementation, "init": "torch"}))
    ids, drawn = ids_of(batch, 9), Drawn(monkeypatch)
    logits, _ = model(ids, model.initial_state(batch))
    assert [mask.shape[:1].numel() for mask in drawn.factors[:2]] == [V, 1]
    assert len(drawn.factors) == 6
    expected = written_out(model, ids, drawn.factors).transpose(0, 1)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)
    weights = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    ours = torch.autograd.grad((logits * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@every_cell
def test_recurrent_weights_of_a_one_hot_layer_are_dropped_too(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(cell, ModelConfig(hidden_size=6, weight_drop=0.5))
    ids, drawn = ids_of(8, 9), Drawn(monkeypatch)
    logits, _ = model(ids, model.initial_state(8))
    (mask,) = drawn.factors
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert mask.shape == model.layers[0].weight_hh_l0.shape
    with torch.no_grad():
        model.layers[0].weight_hh_l0.mul_(mask)
    expected, _ = model.eval()(ids, model.initial_state(8))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_each_minibatch_has_its_own_masks_and_evaluation_none() -> None:
    model = model_of("lstm")
    ids, state = ids_of(2, 4), model.initial_state(2)
    assert not torch.equal(model(ids, state)[0], model(ids, state)[0])
    plain = LanguageModel("lstm", V, ModelConfig(hidden_size=6, num_layers=2, embedding_size=5)).double().eval()
    plain.set_weights(model.weights())
    assert torch.equal(model.eval()(ids, state)[0], plain(ids, state)[0])


@pytest.mark.parametrize("way", ["auto", "autograd"])
def test_masks_work_in_lower_precision(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", way)  # autograd: the layers of torch.nn, in bfloat16
    ids = torch.arange(2000).remainder(V).int()
    model = ModelConfig(**{**EVERY.__dict__, "hidden_size": 32, "embedding_size": 16})
    config = TrainConfig(epochs=4, batch_size=8, num_steps=10, learning_rate=0.02, device="cpu", precision="bfloat16")
    last = fit("lstm", V, ids, ids[:100], model, config).history[-1]
    assert last.valid_perplexity is not None
    assert last.valid_perplexity < 1.5


def test_a_place_without_a_rate_of_its_own_has_the_common_one() -> None:
    model = LanguageModel("rnn", V, ModelConfig(hidden_size=4, embedding_size=3, dropout=0.1, dropout_output=0.5))
    assert (model.dropout_input.p, model.dropout_hidden.p, model.dropout_output.p) == (0.1, 0.1, 0.5)
    assert not isinstance(model.dropout_output, VariationalDropout)
