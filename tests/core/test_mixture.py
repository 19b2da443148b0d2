"""A mixture of softmaxes: the formula, its gradients, and that everything that uses a model can use one that has it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core import output_loss
from rnnlm_core.config import GenerateConfig, ModelConfig, RunConfig, TrainConfig
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.generate import continue_text
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel, num_parameters
from rnnlm_core.saved_model import SavedModel, load_model, save_model
from rnnlm_core.score import score_texts
from rnnlm_core.softmax import MixtureOfSoftmaxes
from rnnlm_core.train import fit
from rnnlm_core.vocabulary import Vocabulary

V, H, D, K = 40, 6, 3, 4
LETTERS = Vocabulary(dict.fromkeys("abcdefgh", 9))
MIXED = ModelConfig(hidden_size=8, embedding_size=5, mixture=3, tie_weights=True)


def layer() -> MixtureOfSoftmaxes:
    torch.manual_seed(0)
    made = MixtureOfSoftmaxes(H, D, V, K).double()
    for parameter in made.parameters():
        parameter.data.mul_(4)  # far from uniform
    return made


def states(tokens: int = 30) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(tokens, H, generator=draw).double(), torch.randint(V, (tokens,), generator=draw)


def by_hand(mixture: MixtureOfSoftmaxes, h: Tensor) -> list[float]:
    """P of every token after one state, in numbers of Python's."""
    values = {name: parameter.tolist() for name, parameter in mixture.named_parameters()}

    def product(rows: list[list[float]], x: list[float], bias: list[float]) -> list[float]:
        return [math.fsum(a * b for a, b in zip(row, x, strict=True)) + c for row, c in zip(rows, bias, strict=True)]

    def softmax(logits: list[float]) -> list[float]:
        exps = [math.exp(z - max(logits)) for z in logits]
        return [e / math.fsum(exps) for e in exps]

    prior = softmax(product(values["prior.weight"], h.tolist(), [0.0] * K))
    latent = [math.tanh(z) for z in product(values["latent.weight"], h.tolist(), values["latent.bias"])]
    each = [softmax(product(values["weight"], latent[k * D : k * D + D], values["bias"])) for k in range(K)]
    return [math.fsum(pi * p[token] for pi, p in zip(prior, each, strict=True)) for token in range(V)]


def test_it_is_the_sum_of_the_paper() -> None:
    mixture, (hidden, _) = layer(), states(5)
    p = mixture(hidden).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(5, dtype=torch.float64))
    for row, h in zip(p, hidden, strict=True):
        assert row.tolist() == pytest.approx(by_hand(mixture, h), rel=1e-10)
    torch.testing.assert_close(mixture(hidden.view(5, 1, H))[:, 0], mixture(hidden))


@pytest.mark.parametrize("block", [10_000, 7])
def test_the_loss_and_its_gradients_are_those_of_the_log_probabilities(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_loss, "MOST_LOGITS", block * V)  # in one block, or in many that are computed again
    mixture, (hidden, targets) = layer(), states()
    wanted = [hidden.requires_grad_(), *mixture.parameters()]
    loss, expected = mixture.loss(hidden, targets.int()), F.nll_loss(mixture(hidden), targets)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    pairs = zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_mixture_has_the_rank_that_one_softmax_lacks() -> None:
    hidden, _ = states(60)
    one = torch.nn.Linear(D, V).double()
    log_p = F.log_softmax(4 * one(hidden[:, :D]), dim=1)
    assert int(torch.linalg.matrix_rank(log_p, rtol=1e-9)) <= D + 2
    assert int(torch.linalg.matrix_rank(layer()(hidden), rtol=1e-9)) > 3 * D


# As the output of a model


def model_of(cell: str = "gru", **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(cell, len(LETTERS), replace(MIXED, **changes)).eval()


@pytest.mark.parametrize("implementation", ["concise", "scratch"])
def test_a_tied_mixture_shares_the_embedding_s_weights(implementation: str) -> None:
    model = model_of(implementation=implementation)
    assert model.embedding is not None
    assert model.embedding.weight is model.output.weight
    assert model.embedding.weight.shape == (len(LETTERS), 5)
    free = model_of(implementation=implementation, tie_weights=False)
    assert free.output.weight.shape == (len(LETTERS), 8)  # latent states as wide as the hidden ones
    tied, apart = num_parameters(model.output), num_parameters(free.output)
    assert (tied, apart) == (8 * 3 + 9 * 15 + 9 * 5 + 9, 8 * 3 + 9 * 24 + 9 * 8 + 9)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": False}, {"embedding_size": 0, "tie_weights": False}], ids=str)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_it_is_saved_measured_scored_and_continued(cell: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(cell, **changes)
    with torch.no_grad():
        model.output.bias[0] = -50  # no <unk>, which is five characters
    save_model(tmp_path, model, LETTERS, tokenizer("char"), "none", {})
    saved = load_model(tmp_path)
    text = "abcdefghabcbcdedefgh" * 3
    ids = torch.tensor(LETTERS[list(text)])
    with torch.inference_mode():
        log_p, _ = saved.model(ids[None, :-1], saved.model.initial_state(1))
    nats = float(-log_p[0].gather(1, ids[1:, None]).sum())
    assert stream_loss(saved.model, ids) == pytest.approx(nats, rel=1e-5)
    (scored,) = score_texts(saved, [text])
    assert scored.loss == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    for options in ({}, {"beam": 3}, {"temperature": 1.0, "seed": 2}):
        assert len(continue_text(saved, "abc", GenerateConfig(length=9, **options)).text) == 12
    greedy = continue_text(saved, "abc", GenerateConfig(length=1)).text
    with torch.inference_mode():
        after, _ = saved.model(torch.tensor([LETTERS[list("abc")]]), saved.model.initial_state(1))
    assert greedy == "abc" + LETTERS.to_tokens(int(after[0, -1].argmax()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns_what_can_be_learnt(precision: str) -> None:
    ids = torch.arange(600).remainder(11).int()
    config = TrainConfig(
        epochs=12, batch_size=4, num_steps=5, seed=3, device="cpu", learning_rate=0.02, precision=precision
    )
    history = fit("gru", 11, ids, ids[:50], MIXED, config).history
    assert history[0].train_perplexity > 3
    assert history[-1].train_perplexity < 1.2
    assert history[-1].valid_perplexity is not None
    assert history[-1].valid_perplexity < 1.2


def test_one_softmax_is_no_mixture() -> None:
    with pytest.raises(ConfigError, match=r"`model\.mixture` must be 0 .* or at least 2\. Got 1"):
        override(RunConfig(), {"model.mixture": 1})


def test_onnx_has_the_mixture() -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from rnnlm_core.onnx_export import check_onnx, export_onnx

    for changes in ({}, {"tie_weights": False, "embedding_size": 0}):
        model = model_of("lstm", init="uniform", init_range=1.0, num_layers=2, **changes)
        saved = SavedModel(model, LETTERS, tokenizer("char"), "none", {})
        data = export_onnx(saved)
        assert check_onnx(data, saved) < 1e-4
