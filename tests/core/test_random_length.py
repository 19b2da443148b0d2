"""Truncated back-propagation of random lengths: what is drawn, at which rate it counts, and going on exactly."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core import train as train_module
from rnnlm_core.checkpoint import Snapshot
from rnnlm_core.config import SHORTEST_BPTT, ModelConfig, RunConfig, TrainConfig
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError
from rnnlm_core.model import LanguageModel, detach
from rnnlm_core.partition import random_length_batches
from rnnlm_core.snapshot import restore, take_snapshot
from rnnlm_core.train import fit
from rnnlm_core.trainer import Trainer

V = 11
MODEL = ModelConfig(hidden_size=8, num_layers=2, embedding_size=5, dropout=0.3)
PLAIN = ModelConfig(hidden_size=8)
CONFIG = TrainConfig(
    epochs=2, batch_size=4, num_steps=8, seed=3, device="cpu", optimizer="sgd", learning_rate=0.5, bptt="random"
)
IDS = torch.randint(0, V, (400,), generator=torch.Generator().manual_seed(1)).int()
VALID = torch.randint(0, V, (60,), generator=torch.Generator().manual_seed(2)).int()


# What is drawn


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(SHORTEST_BPTT, 40), st.integers(0, 500), st.integers(0, 2**31))
def test_minibatches_follow_each_other_and_leave_out_less_than_the_least(
    batch_size: int, num_steps: int, more: int, seed: int
) -> None:
    length = TrainConfig(batch_size=batch_size, num_steps=num_steps).fewest_tokens + more
    draw = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(0, num_steps + 1, (), generator=torch.Generator().manual_seed(seed)))
    batches = random_length_batches(torch.arange(length), batch_size, num_steps, draw)
    assert len(batches) >= 1
    width = (length - offset - 1) // batch_size
    expected = [offset + row * width for row in range(batch_size)]
    for number, steps in enumerate(batches.lengths):
        x, y = batches[number]
        assert x.shape == (batch_size, steps)
        assert steps >= SHORTEST_BPTT
        assert torch.equal(y, x + 1)
        assert x[:, 0].tolist() == expected
        expected = [start + steps for start in expected]
    assert 0 <= width - sum(batches.lengths) < SHORTEST_BPTT


def test_lengths_are_normal_around_the_one_asked_for_and_rarely_around_its_half() -> None:
    batches = random_length_batches(torch.arange(3_000_000), 1, 70, torch.Generator().manual_seed(0))
    lengths = torch.tensor(batches.lengths[:-1]).double()
    near, half = lengths[lengths > 52.5], lengths[lengths <= 52.5]
    assert len(half) / len(lengths) == pytest.approx(0.05, abs=0.005)
    assert float(near.mean()) == pytest.approx(69.5, abs=0.2)  # whole numbers: half a token below
    assert float(near.std()) == pytest.approx(5, abs=0.15)
    assert float(half.mean()) == pytest.approx(34.5, abs=0.6)


def test_every_epoch_draws_others_and_a_seed_the_same() -> None:
    draw, again = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    first, second = (random_length_batches(IDS, 2, 20, draw).lengths for _ in range(2))
    assert first != second
    assert random_length_batches(IDS, 2, 20, again).lengths == first


# Training


def by_hand(config: TrainConfig) -> tuple[LanguageModel, list[float]]:
    """The loop written out: each update at the rate of its tokens, the loss per token over the whole epoch."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LanguageModel("gru", V, PLAIN)
    parameters, generator, told = list(model.parameters()), torch.Generator().manual_seed(config.seed), []
    for _ in range(config.epochs):
        state, nats = model.initial_state(4), []
        batches = list(random_length_batches(IDS, 4, 8, generator))
        for start in range(0, len(batches), config.accumulate):
            group = batches[start : start + config.accumulate]
            total = [torch.zeros_like(p) for p in parameters]
            for x, y in group:
                logits, state = model(x, detach(state))
                loss = F.cross_entropy(logits.flatten(0, 1), y.reshape(-1).long())
                gradients = torch.autograd.grad(loss * (8 if config.loss == "steps" else 1), parameters)
                total = [t + g / len(group) for t, g in zip(total, gradients, strict=True)]
                nats.append((float(loss.detach()), x.numel()))
            mean_length = sum(x.shape[1] for x, _ in group) / len(group)
            with torch.no_grad():
                for p, g in zip(parameters, total, strict=True):
                    p.sub_(config.learning_rate * mean_length / 8 * g)
        told.append(sum(loss * tokens for loss, tokens in nats) / sum(tokens for _, tokens in nats))
    return model, told


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("loss", ["mean", "steps"])
def test_an_update_counts_as_much_as_its_tokens(loss: str, accumulate: int) -> None:
    rate = 0.5 if loss == "mean" else 0.05
    config = replace(CONFIG, clip_norm=0.0, loss=loss, accumulate=accumulate, learning_rate=rate)
    model, losses = by_hand(config)
    fitted = fit("gru", V, IDS, None, PLAIN, config)
    assert [epoch.train_loss for epoch in fitted.history] == pytest.approx(losses, rel=1e-5)
    assert [epoch.learning_rate for epoch in fitted.history] == [rate] * 2  # what the schedule says
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fitted.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_tokens_are_counted_as_they_are() -> None:
    torch.manual_seed(0)
    made, counted = Trainer("gru", V, IDS, None, PLAIN, CONFIG, torch.device("cpu")), []

    def look() -> None:
        assert made.place is not None
        counted.append(made.place.num_tokens)

    made.run_epoch(look)
    lengths = random_length_batches(IDS, 4, 8, torch.Generator().manual_seed(CONFIG.seed)).lengths
    assert counted == [4 * done for done in itertools.accumulate(lengths[:-1], initial=0)]
    assert len(set(lengths)) > 3


# Stopping and going on


def test_a_training_goes_on_from_between_any_two_updates_to_the_same_bits() -> None:
    def trainer() -> Trainer:
        torch.manual_seed(CONFIG.seed)
        return Trainer("lstm", V, IDS, VALID, MODEL, replace(CONFIG, accumulate=2), torch.device("cpu"))

    whole, taken = trainer(), []

    def keep() -> None:
        taken.append(Snapshot.unpacked(*take_snapshot(whole).packed()))

    for _ in range(2):
        whole.run_epoch(keep)
    assert len(taken) > 8
    for snapshot in taken:
        torch.rand(3)  # another process has another random state
        resumed = trainer()
        restore(resumed, snapshot)
        while len(resumed.history) < 2:
            resumed.run_epoch(lambda: None)
        figures = [[(e.train_loss, e.valid_loss, e.gradient_norm) for e in one.history] for one in (resumed, whole)]
        assert figures[0] == figures[1]
        theirs = whole.model.weights()
        assert all(torch.equal(value, theirs[name]) for name, value in resumed.model.weights().items())


# What does not go together


def test_steps_below_the_least_length_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`train\.num_steps` must be at least 5 with train\.bptt=random"):
        override(RunConfig(), {"train.bptt": "random", "train.num_steps": 4})
    assert override(RunConfig(), {"train.bptt": "random", "train.num_steps": 5}).train.bptt == "random"


def test_the_shortest_text_fills_a_minibatch() -> None:
    config = replace(CONFIG, epochs=20)
    ids: Tensor = IDS[: config.fewest_tokens]
    assert all(math.isfinite(epoch.train_loss) for epoch in fit("rnn", V, ids, None, PLAIN, config).history)


def test_on_a_gpu_it_is_told_that_nothing_is_captured() -> None:
    told: list[str] = []
    train_module._warn_of_device("gru", 5, PLAIN, CONFIG, torch.device("cuda"), told.append)
    assert told == [
        "slower than it could be, without a CUDA graph: with train.bptt=random minibatches differ in length"
    ]


def test_a_warm_up_rises_update_by_update_however_many_an_epoch_has() -> None:
    config = TrainConfig(
        epochs=4, batch_size=2, num_steps=6, bptt="random", device="cpu", optimizer="sgd", warmup_steps=10**6
    )
    trainer = Trainer("rnn", 7, torch.arange(900) % 7, None, ModelConfig(hidden_size=3), config, torch.device("cpu"))
    rates: list[float] = []
    update = trainer._update

    def note(place: Any, batches: Any, together: int, rate: float) -> None:
        rates.append(rate)
        update(place, batches, together, rate)

    trainer._update = note
    counts = []
    for _ in range(config.epochs):
        before = len(rates)
        trainer.run_epoch(lambda: None)
        counts.append(len(rates) - before)
    assert len(set(counts)) > 1
    assert rates == sorted(rates)
