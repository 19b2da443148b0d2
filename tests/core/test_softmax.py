"""Output layers for large vocabularies: exact probabilities, or an estimate that comes near them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core.config import ModelConfig, RunConfig, TrainConfig
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError, DataError, UsageError
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.model import LanguageModel, num_parameters
from rnnlm_core.saved_model import SavedModel, load_model, save_model
from rnnlm_core.softmax import AdaptiveSoftmax, draw_tokens, sampled_loss
from rnnlm_core.train import fit
from rnnlm_core.vocabulary import Vocabulary

V, H = 1500, 32


def hidden_and_targets(tokens: int = 40) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(tokens, H, generator=draw), torch.randint(V, (tokens,), generator=draw)


def zipf_stream(length: int) -> Tensor:
    """Ids of which the next is the last plus one, three times of four: something to learn."""
    draw = torch.Generator().manual_seed(2)
    ids = (torch.rand(length, generator=draw) * math.log(V + 1)).exp().long() - 1
    follow = torch.rand(length, generator=draw) < 0.75
    for i in range(1, length):
        if follow[i]:
            ids[i] = (ids[i - 1] + 1) % V
    return ids.int()


def test_every_token_of_an_adaptive_softmax_has_a_probability() -> None:
    torch.manual_seed(0)
    layer = AdaptiveSoftmax(H, V)
    states, targets = hidden_and_targets()
    log_p = layer(states)
    assert log_p.shape == (40, V)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(40), atol=1e-5)
    assert torch.allclose(layer.loss(states, targets), F.nll_loss(log_p, targets), atol=1e-6)
    assert torch.equal(layer(states.view(4, 10, H)).flatten(0, 1), log_p)


def test_an_adaptive_softmax_has_far_fewer_weights() -> None:
    full = num_parameters(LanguageModel("gru", V, ModelConfig(hidden_size=256, embedding_size=16)).output)
    adaptive = num_parameters(
        LanguageModel("gru", V, ModelConfig(hidden_size=256, embedding_size=16, softmax="adaptive")).output
    )
    assert adaptive < full / 3


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_training_with_an_adaptive_softmax_learns(cell: str) -> None:
    ids = zipf_stream(6000)
    model = ModelConfig(hidden_size=H, embedding_size=H)
    train = TrainConfig(epochs=3, batch_size=10, num_steps=20, learning_rate=1e-2, device="cpu")
    losses = [epoch.train_loss for epoch in fit(cell, V, ids, None, replace(model, softmax="adaptive"), train).history]
    assert losses[0] - 0.5 > losses[-1]
    assert losses[-1] < math.log(V) - 2


def test_a_model_with_an_adaptive_softmax_is_saved_loaded_and_measured(tmp_path: Path) -> None:
    from rnnlm_core.levels import tokenizer

    torch.manual_seed(0)
    model = LanguageModel("lstm", V, ModelConfig(hidden_size=H, embedding_size=8, softmax="adaptive")).eval()
    words = Vocabulary({f"w{i}": V - i for i in range(V - 1)})
    save_model(tmp_path, model, words, tokenizer("word"), "none", {})
    loaded = load_model(tmp_path)
    ids = zipf_stream(1100)
    assert stream_loss(loaded.model, ids) == stream_loss(model, ids)
    with torch.inference_mode():
        log_p, _ = model(ids[None, :-1], model.initial_state(1))
    assert stream_loss(model, ids) == pytest.approx(float(F.nll_loss(log_p[0], ids[1:].long(), reduction="sum")))


def test_a_small_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="adaptive needs at least 1,000 different tokens: 28"):
        LanguageModel("rnn", 28, ModelConfig(softmax="adaptive"))


def test_no_onnx_file_of_an_adaptive_softmax() -> None:
    from rnnlm_core.levels import tokenizer
    from rnnlm_core.onnx_export import export_onnx

    model = LanguageModel("rnn", V, ModelConfig(hidden_size=16, softmax="adaptive"))
    saved = SavedModel(model, Vocabulary({}), tokenizer("word"), "none", {})
    with pytest.raises(UsageError, match="needs the full softmax"):
        export_onnx(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.softmax": "adaptive", "model.tie_weights": True, "model.embedding_size": 256}, "must be full with"),
        ({"model.softmax": "adaptive", "model.hidden_size": 8}, "must be at least 16"),
        ({"model.softmax": "adaptive", "train.softmax_samples": 100}, "`train.softmax_samples` has no effect"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RunConfig(), changes)


def test_draws_follow_zipf_and_know_their_probability() -> None:
    torch.manual_seed(0)
    drawn, log_q = draw_tokens(50, 200_000)
    every = torch.arange(50)
    exact = ((every + 2).double() / (every + 1)).log() / math.log(51)
    assert float(exact.sum()) == pytest.approx(1)
    assert torch.allclose(torch.bincount(drawn, minlength=50) / 200_000, exact.float(), atol=4e-3)
    assert torch.allclose(log_q.exp(), exact[drawn])


def test_the_sampled_sum_is_without_bias_and_the_loss_comes_near_the_full_one() -> None:
    torch.manual_seed(0)
    states, targets = hidden_and_targets()
    weight, bias = torch.randn(V, H) / H**0.5, torch.randn(V)
    full = F.cross_entropy(F.linear(states, weight, bias), targets)
    few, many = (
        torch.stack([sampled_loss(states, weight, bias, targets, samples) for _ in range(200)])
        for samples in (20, 2000)
    )
    assert abs(float(many.mean() - full)) < 0.02
    assert few.std() > 3 * many.std()
    assert few.mean() < many.mean()  # the log of an estimate is too small, the more so the fewer are drawn


def test_gradients_reach_targets_and_drawn_tokens_alone() -> None:
    torch.manual_seed(0)
    states, targets = hidden_and_targets()
    weight = torch.randn(V, H, requires_grad=True)
    state = torch.get_rng_state()
    sampled_loss(states, weight, torch.zeros(V), targets, 30).backward()
    torch.set_rng_state(state)
    drawn, _ = draw_tokens(V, 30)
    assert weight.grad is not None
    touched = set(weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert touched == set(drawn.tolist()) | set(targets.tolist())


def test_training_on_samples_lowers_the_full_loss() -> None:
    ids = zipf_stream(6000)
    model = ModelConfig(hidden_size=H, embedding_size=H)
    train = TrainConfig(epochs=3, batch_size=10, num_steps=20, learning_rate=1e-2, device="cpu")
    full = fit("gru", V, ids, ids[:2000], model, train).history[-1]
    sampled = fit("gru", V, ids, ids[:2000], model, replace(train, softmax_samples=300)).history[-1]
    assert full.valid_loss is not None
    assert sampled.valid_loss is not None
    assert sampled.valid_loss < full.valid_loss + 0.3


@pytest.mark.parametrize("implementation", ["scratch", "concise"])
def test_the_adaptive_loss_stays_in_single_precision(implementation: str) -> None:
    ids = zipf_stream(3000)
    model = ModelConfig(hidden_size=H, embedding_size=H, softmax="adaptive", implementation=implementation)
    train = TrainConfig(epochs=1, batch_size=10, num_steps=20, device="cpu")
    exact, lower = (
        fit("gru", V, ids, None, model, replace(train, precision=precision)).history[-1].train_loss
        for precision in ("float32", "bfloat16")
    )
    assert lower == pytest.approx(exact, rel=0.03)
    assert lower != float(torch.tensor(lower).bfloat16())
