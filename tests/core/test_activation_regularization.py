"""AR and TAR: the formula, and a training whose gradients have it and whose reported loss has not."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core.activation_regularization import activation_regularization
from rnnlm_core.config import ModelConfig, TrainConfig
from rnnlm_core.model import LanguageModel, detach
from rnnlm_core.partition import sequential_batches
from rnnlm_core.train import fit

V = 11
MODEL = ModelConfig(hidden_size=8, num_layers=2, embedding_size=5, dropout=0.4)
CONFIG = TrainConfig(
    epochs=1, batch_size=4, num_steps=5, seed=3, device="cpu", optimizer="sgd", learning_rate=0.5, clip_norm=0.0,
    activation_regularization=2.0, temporal_activation_regularization=1.5,
)  # fmt: skip
IDS = torch.randint(0, V, (150,), generator=torch.Generator().manual_seed(1)).int()


def test_the_formula_element_by_element() -> None:
    torch.manual_seed(0)
    h, dropped = torch.randn(2, 4, 3, 5, dtype=torch.float64).unbind(0)
    squares = [x * x for x in dropped.flatten().tolist()]
    steps = [(b - a) ** 2 for one, two in pairwise(h)
             for a, b in zip(one.flatten().tolist(), two.flatten().tolist(), strict=True)]  # fmt: skip
    ar, tar = math.fsum(squares) / len(squares), math.fsum(steps) / len(steps)
    for alpha, beta in ((2.0, 0.0), (0.0, 1.0), (2.0, 1.0)):
        assert float(activation_regularization(h, dropped, alpha, beta)) == pytest.approx(alpha * ar + beta * tar)


def test_a_single_step_has_no_difference() -> None:
    h = torch.ones(1, 2, 3)
    assert float(activation_regularization(h, h, 0.0, 5.0)) == 0


def by_hand(config: TrainConfig) -> LanguageModel:
    torch.manual_seed(config.seed)  # of the weights, then of the dropout
    model = LanguageModel("gru", V, MODEL)
    state = model.initial_state(4)
    for x, y in sequential_batches(IDS, 4, 5, torch.Generator().manual_seed(config.seed)):
        h, state = model.last_outputs(x, detach(state))
        dropped = F.dropout(h, 0.4)
        loss = F.cross_entropy(model.output(dropped).flatten(0, 1), y.t().reshape(-1).long())
        loss = loss + config.activation_regularization * dropped.pow(2).mean()
        loss = loss + config.temporal_activation_regularization * (h[1:] - h[:-1]).pow(2).mean()
        loss = loss * (5 if config.loss == "steps" else 1)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(config.learning_rate * g)
    return model


def vector(model: LanguageModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("loss", ["mean", "steps"])
def test_a_training_descends_the_regularised_loss(loss: str) -> None:
    config = replace(CONFIG, loss=loss, learning_rate=0.5 if loss == "mean" else 0.1)
    fitted, expected = fit("gru", V, IDS, None, MODEL, config), by_hand(config)
    torch.testing.assert_close(vector(fitted.model), vector(expected), rtol=1e-4, atol=1e-5)
    for key in ("activation_regularization", "temporal_activation_regularization"):
        without = fit("gru", V, IDS, None, MODEL, replace(config, **{key: 0.0}))
        assert (vector(fitted.model) - vector(without.model)).abs().max() > 1e-4


def test_the_reported_loss_is_the_cross_entropy() -> None:
    still = replace(CONFIG, learning_rate=1e-12)
    plain = replace(still, activation_regularization=0.0, temporal_activation_regularization=0.0)
    one, other = (fit("gru", V, IDS, IDS, MODEL, config).history[0] for config in (still, plain))
    assert (one.train_loss, one.valid_loss) == (other.train_loss, other.valid_loss)
    assert one.gradient_norm > other.gradient_norm


def test_the_outputs_become_smaller_and_smoother() -> None:
    def outputs(**changes: float) -> Tensor:
        off = {"activation_regularization": 0.0, "temporal_activation_regularization": 0.0}
        model = fit("gru", V, IDS, None, MODEL, replace(CONFIG, epochs=30, **{**off, **changes})).model
        return model.last_outputs(IDS[None, :100], model.initial_state(1))[0]

    plain = outputs()
    assert outputs(activation_regularization=5.0).square().mean() < 0.8 * plain.square().mean()
    smooth = outputs(temporal_activation_regularization=5.0)
    assert smooth.diff(dim=0).square().mean() < 0.8 * plain.diff(dim=0).square().mean()
