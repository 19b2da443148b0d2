"""Averaged SGD: when averaging begins, what is averaged, and that a training goes on with it exactly."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rnnlm_core.checkpoint import Checkpoints, Snapshot
from rnnlm_core.config import ModelConfig, RunConfig, TrainConfig
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError, Stopped
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.snapshot import restore, take_snapshot
from rnnlm_core.store import Store
from rnnlm_core.train import fit
from rnnlm_core.trainer import Trainer
from rnnlm_core.weight_average import WeightAverage, triggers

V = 11
MODEL = ModelConfig(hidden_size=8, num_layers=2, embedding_size=5, dropout=0.3, tie_weights=True)
CONFIG = TrainConfig(
    epochs=8, batch_size=4, num_steps=5, seed=3, device="cpu", optimizer="nt-asgd", non_monotone=1, learning_rate=6.0,
    momentum=0.0, weight_decay=1e-3,
)  # fmt: skip
IDS, VALID = (
    torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(seed)).int()
    for length, seed in ((150, 1), (60, 2))
)


# The trigger and the mean


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_the_trigger_is_that_of_awd_lstm(losses: list[float], n: int) -> None:
    *before, now = losses
    assert triggers(losses, n) == (len(before) > n and now > min(before[:-n]))


def test_one_bad_epoch_does_not_trigger() -> None:
    assert not triggers([5.0, 3.0, 4.0], 2)
    assert not triggers([5.0, 3.0, 4.0, 4.0], 2)
    assert triggers([5.0, 3.0, 4.0, 4.0, 4.0], 2)
    assert not triggers([5.0, 4.0, 3.0, 3.5, 4.0], 2)  # worse than the last two, not than those before


def test_the_mean_is_the_mean_and_the_weights_come_back() -> None:
    torch.manual_seed(0)
    model, seen = nn.Linear(3, 4).double(), []
    average = WeightAverage(model)
    for _ in range(7):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        average.add()
        seen.append(model.weight.detach().clone())
    with average.in_use():
        torch.testing.assert_close(model.weight.detach(), torch.stack(seen).mean(0), rtol=0, atol=1e-14)
    assert torch.equal(model.weight, seen[-1])


def test_the_mean_is_that_of_torch_s_asgd() -> None:
    """At a rate that stays (t0 = 0, λ = 0); its mean forgets the first update, so ours begins with the second."""
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(3, 2).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    average, x = WeightAverage(ours), torch.randn(5, 3, dtype=torch.float64)
    plain = torch.optim.SGD(ours.parameters(), lr=0.03, weight_decay=0.1)
    asgd = torch.optim.ASGD(theirs.parameters(), lr=0.03, t0=0, lambd=0, weight_decay=0.1)
    for step in range(6):
        for model, optimizer in ((ours, plain), (theirs, asgd)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        if step:
            average.add()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(average.means[name], asgd.state[parameter]["ax"], rtol=0, atol=1e-7)


# A training


def trainer(config: TrainConfig = CONFIG, model: ModelConfig = MODEL) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer("lstm", V, IDS, VALID, model, config, torch.device("cpu"))


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_after_the_trigger_the_averages_are_measured_and_kept_and_the_training_goes_on_without() -> None:
    made, seen = trainer(), []

    def look() -> None:
        seen.append(copied(made.model.weights()))

    while made.average is None:
        made.run_epoch(look)
        assert len(made.history) < 30
    began = len(made.history)
    losses = [epoch.valid_loss for epoch in made.history if epoch.valid_loss is not None]
    assert triggers(losses, CONFIG.non_monotone)
    assert not any(triggers(losses[:end], CONFIG.non_monotone) for end in range(1, began))
    seen.clear()
    made.best_epoch = 0  # so that the next one is kept, whatever it is
    epoch = made.run_epoch(look)
    after = [*seen[1:], copied(made.model.weights())]  # after each update
    means = {name: torch.stack([weights[name] for weights in after]).mean(0) for name in after[0]}
    for name, mean in means.items():
        torch.testing.assert_close(made.best_weights[name], mean)
    own = stream_loss(made.model, VALID) / (len(VALID) - 1)
    made.model.set_weights(made.best_weights)
    assert epoch.valid_loss == stream_loss(made.model, VALID) / (len(VALID) - 1)
    assert epoch.valid_loss < own  # at this rate the last weights alone are far from the best


def test_before_the_trigger_it_is_sgd() -> None:
    config = replace(CONFIG, epochs=2, learning_rate=0.5)
    averaged, plain = (
        fit("lstm", V, IDS, VALID, MODEL, replace(config, optimizer=name)) for name in ("nt-asgd", "sgd")
    )
    assert [e.valid_loss for e in averaged.history] == [e.valid_loss for e in plain.history]


def test_a_training_goes_on_from_between_any_two_updates_to_the_same_bits() -> None:
    whole, taken = trainer(replace(CONFIG, accumulate=2)), []

    def keep() -> None:
        taken.append(Snapshot.unpacked(*take_snapshot(whole).packed()))

    for _ in range(6):
        whole.run_epoch(keep)
    assert whole.average is not None
    counts = [snapshot.facts["averaged_updates"] for snapshot in taken]
    began = counts.index(0)
    assert counts == [None] * began + list(range(len(counts) - began))
    for place in (1, began - 1, began, began + 1, began + 6, len(taken) - 1):
        torch.rand(place)  # another process has another random state
        resumed = trainer(replace(CONFIG, accumulate=2))
        restore(resumed, taken[place])
        while len(resumed.history) < 6:
            resumed.run_epoch(lambda: None)
        assert [e.valid_loss for e in resumed.history] == [e.valid_loss for e in whole.history]
        assert resumed.average is not None
        for ours, theirs in (
            (resumed.average.means, whole.average.means),
            (resumed.model.weights(), whole.model.weights()),
            (resumed.best_weights, whole.best_weights),
        ):
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_stopped_training_loses_no_average(store: Store) -> None:
    whole = fit("lstm", V, IDS, VALID, MODEL, CONFIG)
    calls, stop, checkpoints = itertools.count(1), 7 * 6 + 4, Checkpoints(store, "key")  # an epoch has seven updates
    with pytest.raises(Stopped, match="in epoch 7"):
        fit("lstm", V, IDS, VALID, MODEL, CONFIG, checkpoints=checkpoints, should_stop=lambda: next(calls) == stop)
    again = fit("lstm", V, IDS, VALID, MODEL, CONFIG, checkpoints=checkpoints)
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.model.state_dict().items())
    assert [e.valid_loss for e in again.history] == [e.valid_loss for e in whole.history]


def test_without_an_average_a_snapshot_says_so(store: Store) -> None:
    checkpoints = Checkpoints(store, "key")
    fit("rnn", V, IDS, VALID, MODEL, replace(CONFIG, epochs=1, optimizer="sgd"), checkpoints=checkpoints)
    snapshot, _ = checkpoints.load()
    assert snapshot is not None
    assert snapshot.facts["averaged_updates"] is None
    assert not [name for name in snapshot.tensors if name.startswith("average")]


def test_a_training_too_short_to_average_is_told() -> None:
    told: list[str] = []
    for epochs in (3, 4):
        fit("rnn", V, IDS, VALID, MODEL, replace(CONFIG, epochs=epochs), warn=told.append)
    assert ["ends before its weights can be averaged: 3 epochs" in text for text in told] == [True]


def test_patience_that_ends_before_the_average_begins_is_refused() -> None:
    changes = {"train.optimizer": "nt-asgd", "train.epochs": 20, "corpus.split": "80/10/10"}
    override(RunConfig(), changes | {"train.patience": 6})
    with pytest.raises(ConfigError, match=r"`train.patience` must be above train.non_monotone \(5\) with"):
        override(RunConfig(), changes | {"train.patience": 5})
