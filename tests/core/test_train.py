import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnlm_core import recurrence, trainer
from rnnlm_core import train as train_module
from rnnlm_core.checkpoint import Checkpoints
from rnnlm_core.config import CELLS, ModelConfig, TrainConfig
from rnnlm_core.errors import DataError, IntegrityError, ResourceError, Stopped
from rnnlm_core.learning_rate import learning_rate
from rnnlm_core.model import LanguageModel, num_parameters
from rnnlm_core.outcomes import Epoch
from rnnlm_core.partition import random_batches, sequential_batches
from rnnlm_core.saved_model import load_model
from rnnlm_core.store import Handle, Store
from rnnlm_core.train import Fitted, fit, train

V = 11
MODEL = ModelConfig(hidden_size=8)
DEEP = ModelConfig(hidden_size=8, num_layers=2, embedding_size=5, dropout=0.3)
CONFIG = TrainConfig(epochs=3, batch_size=4, num_steps=5, seed=3, device="cpu")
PARTITIONS = ("sequential", "random")
every_cell = pytest.mark.parametrize("cell", CELLS)


def noise(length: int, seed: int) -> Tensor:
    return torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(seed)).int()


TRAIN, VALID = noise(150, 1), noise(60, 2)


def fit_noise(cell: str = "gru", model: ModelConfig = MODEL, config: TrainConfig = CONFIG, **more: Any) -> Fitted:
    """Fit noise; with `checkpoints`, one before each update and after each epoch."""
    return fit(cell, V, TRAIN, VALID, model, config, **{"checkpoint_seconds": 0.0, **more})


def numbers(epoch: Epoch) -> tuple[Any, ...]:
    """What an epoch says but for the clock."""
    return epoch.number, epoch.train_loss, epoch.valid_loss, epoch.learning_rate, epoch.gradient_norm


def assert_same(one: Fitted, other: Fitted) -> None:
    """Equal to the last bit."""
    assert [numbers(epoch) for epoch in one.history] == [numbers(epoch) for epoch in other.history]
    assert one.best_epoch == other.best_epoch
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# The numbers


GOLDEN = {
    "rnn": [(2.448300293513707, 2.4860146975113175), (2.3938869408198764, 2.477169226791899)],
    "gru": [(2.434206349509103, 2.441486605143143), (2.404526846749442, 2.4610252946110096)],
    "lstm": [(2.422105312347412, 2.4247701410519875), (2.3980210168021068, 2.447632870431674)],
}


@every_cell
def test_golden_losses(cell: str) -> None:
    """The numbers of a seed: a change that moves them must say why."""
    config = replace(CONFIG, epochs=2, optimizer="sgd", learning_rate=1.0)
    history = fit_noise(cell, DEEP, config).history
    assert [(e.train_loss, e.valid_loss) for e in history] == [pytest.approx(pair, rel=1e-6) for pair in GOLDEN[cell]]


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@every_cell
def test_an_epoch_is_truncated_backpropagation_with_clipped_sgd(cell: str, clip_norm: float, partition: str) -> None:
    """The loop written out again: state carried or reset, cut off, gradients scaled to the norm, plain descent."""
    rate = 0.5
    config = replace(CONFIG, epochs=1, optimizer="sgd", learning_rate=rate, clip_norm=clip_norm, partition=partition)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LanguageModel(cell, V, MODEL)
    batches = {"sequential": sequential_batches, "random": random_batches}[partition]
    losses, norms, state = [], [], model.initial_state(4)
    for x, y in batches(TRAIN, 4, 5, torch.Generator().manual_seed(config.seed)):
        if partition == "random":
            state = model.initial_state(4)
        logits, state = model(x, [tuple(part.detach() for part in layer) for layer in state])
        loss = -F.log_softmax(logits, -1).gather(-1, y.long()[..., None]).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(rate * scale * g)
        losses.append(float(loss.detach()))
        norms.append(norm)

    fitted = fit_noise(cell, MODEL, config)

    (epoch,) = fitted.history
    assert epoch.train_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert epoch.gradient_norm == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fitted.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [DEEP, replace(DEEP, implementation="scratch")], ids=["concise", "scratch"])
@every_cell
def test_the_same_seed_gives_the_same_bits(cell: str, model: ModelConfig) -> None:
    assert_same(fit_noise(cell, model), fit_noise(cell, model))


def test_another_seed_gives_another_model() -> None:
    one, other = fit_noise(), fit_noise(config=replace(CONFIG, seed=4))
    assert one.history[0].train_loss != other.history[0].train_loss


def test_the_random_state_of_the_caller_is_left_and_not_used() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = fit_noise(model=DEEP)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert_same(fit_noise(model=DEEP), one)


def test_training_learns_what_can_be_learnt() -> None:
    ids = torch.arange(300).remainder(V).int()
    fitted = fit("gru", V, ids, ids[:50], MODEL, replace(CONFIG, epochs=15, learning_rate=0.05))
    assert fitted.history[0].train_perplexity > 4
    assert fitted.best_epoch > 10
    assert fitted.history[-1].valid_perplexity is not None
    assert fitted.history[-1].valid_perplexity < 1.2


def test_perplexity_is_exp_of_the_mean_loss_and_inf_where_that_overflows() -> None:
    epoch = Epoch(1, 1, 2.0, 3.0, 0.1, 1.0, 1.0, 1.0)
    assert (epoch.train_perplexity, epoch.valid_perplexity) == (math.exp(2), math.exp(3))
    far = replace(epoch, train_loss=800.0, valid_loss=None)
    assert (far.train_perplexity, far.valid_perplexity) == (math.inf, None)


def test_progress_tells_every_epoch_once_in_order() -> None:
    told: list[Epoch] = []
    fitted = fit_noise(progress=told.append)
    assert tuple(told) == fitted.history
    assert [(epoch.number, epoch.epochs) for epoch in told] == [(1, 3), (2, 3), (3, 3)]
    assert all(0 < epoch.tokens_per_second < math.inf and epoch.seconds > 0 for epoch in told)


def test_the_fitted_model_is_in_evaluation_mode() -> None:
    assert not fit_noise(model=DEEP).model.training


# Which epoch is kept


def test_the_epoch_with_the_lowest_validation_loss_is_kept() -> None:
    config = replace(CONFIG, epochs=12, learning_rate=0.05)
    fitted = fit_noise(config=config)
    losses = [epoch.valid_loss for epoch in fitted.history]
    assert losses[fitted.best_epoch - 1] == min(losses)
    assert fitted.best_epoch < 12
    shorter = fit_noise(config=replace(config, epochs=fitted.best_epoch))
    assert all(torch.equal(v, shorter.model.state_dict()[k]) for k, v in fitted.model.state_dict().items())


def test_without_validation_split_the_last_epoch_is_kept() -> None:
    fitted = fit("gru", V, TRAIN, None, MODEL, replace(CONFIG, epochs=5, learning_rate=5.0, optimizer="sgd"))
    assert fitted.best_epoch == 5
    assert [epoch.valid_loss for epoch in fitted.history] == [None] * 5


# Learning rate and clipping


def history_of(*valid_losses: float | None) -> list[Epoch]:
    return [Epoch(i, 99, 1.0, loss, 0.1, 1.0, 1.0, 1.0) for i, loss in enumerate(valid_losses, 1)]


def rates_of(config: TrainConfig, updates: int) -> list[float]:
    """The rate of every update of a training whose validation loss never rises."""
    return [
        learning_rate(config, history_of(*(10.0 - i for i in range(done))), update, updates)
        for done in range(config.epochs)
        for update in range(updates)
    ]


def test_cosine_goes_from_the_learning_rate_to_zero() -> None:
    config = replace(CONFIG, epochs=4, schedule="cosine", learning_rate=0.4)
    rates = rates_of(config, 2)
    assert rates[0] == 0.4
    assert rates[4] == pytest.approx(0.2)
    assert rates[6] == pytest.approx(0.2 * (1 - math.sqrt(0.5)))
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(config, history_of(1.0, 1.0, 1.0, 1.0), 0, 2) == pytest.approx(0, abs=1e-15)


def test_cosine_after_the_warm_up_starts_full_and_ends_at_zero() -> None:
    config = replace(CONFIG, epochs=3, schedule="cosine", learning_rate=0.4, warmup_steps=2)
    rates = rates_of(config, 4)
    assert rates[:3] == [0.2, 0.4, 0.4]
    assert rates[7] == pytest.approx(0.2)  # 5 of the 10 updates after the warm-up
    assert learning_rate(config, history_of(1.0, 1.0, 1.0), 0, 4) == pytest.approx(0, abs=1e-15)


def test_step_leaves_the_first_epochs_and_then_divides_once_each() -> None:
    """Zaremba et al.: 4 epochs at 1, then half of the one before."""
    config = replace(CONFIG, epochs=8, schedule="step", learning_rate=1.0, decay=2.0, decay_after=4)
    assert rates_of(config, 2)[::2] == [1, 1, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]
    assert rates_of(config, 2)[1::2] == rates_of(config, 2)[::2]
    third = replace(config, epochs=4, learning_rate=0.9, decay=3.0, decay_after=1)
    assert rates_of(third, 1) == pytest.approx([0.9, 0.3, 0.1, 0.1 / 3])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 1.0),
        ([3.0], 1.0),
        ([3.0, 2.0], 1.0),
        ([3.0, 2.0, 2.5], 1 / 4),
        ([3.0, 2.0, 2.5, 2.2], 1 / 16),  # lower than before, not lower than the lowest
        ([3.0, 2.0, 2.5, 1.9], 1 / 4),
        ([3.0, 2.0, 2.5, 1.9, 1.9], 1 / 16),  # equal is not lower
    ],
)
def test_plateau_divides_after_each_epoch_in_vain(losses: list[float], expected: float) -> None:
    config = replace(CONFIG, epochs=9, schedule="plateau", learning_rate=1.0, decay=4.0)
    assert [learning_rate(config, history_of(*losses), update, 5) for update in (0, 4)] == [expected] * 2


def test_a_warm_up_rises_linearly_over_epochs_to_what_the_schedule_says() -> None:
    config = replace(CONFIG, epochs=3, learning_rate=0.8, warmup_steps=4)
    assert rates_of(config, 3) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    step = replace(config, schedule="step", decay=2.0, decay_after=1)
    assert rates_of(step, 3) == pytest.approx([0.2, 0.4, 0.6, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2])


def test_a_training_follows_its_plateau() -> None:
    config = replace(CONFIG, epochs=8, schedule="plateau", learning_rate=0.05, decay=4.0)
    history = fit_noise(config=config).history
    rates = [epoch.learning_rate for epoch in history]
    assert rates == [learning_rate(config, history[:i], 0, 1) for i in range(8)]
    assert rates[-1] < rates[0]


@pytest.mark.parametrize(
    ("warmup_steps", "accumulate", "expected"), [(28, 1, [7 / 28, 14 / 28]), (4, 3, [3 / 4, 1]), (9, 7, [1 / 9, 2 / 9])]
)
def test_the_schedule_counts_updates_not_minibatches(warmup_steps: int, accumulate: int, expected: list[float]) -> None:
    config = replace(
        CONFIG, epochs=2, partition="random", learning_rate=1e-3, warmup_steps=warmup_steps, accumulate=accumulate
    )
    rates = [epoch.learning_rate for epoch in fit_noise(config=config).history]  # 7 minibatches an epoch
    assert rates == pytest.approx([1e-3 * share for share in expected])


def test_cosine_moves_with_every_update_over_all_epochs() -> None:
    config = replace(CONFIG, epochs=2, schedule="cosine", learning_rate=0.4, partition="random")
    rates = [epoch.learning_rate for epoch in fit_noise(config=config).history]
    last = [(1 - 1 / 7) / 2, 1 - 1 / 7 / 2]  # 7 minibatches of 4 x 5 in 150 tokens: the last update of each epoch
    assert rates == [pytest.approx(0.2 * (1 + math.cos(math.pi * done))) for done in last]


def test_a_constant_rate_stays() -> None:
    assert [epoch.learning_rate for epoch in fit_noise().history] == [CONFIG.learning_rate] * 3


def vector(model: nn.Module) -> Tensor:
    """Return all weights in a row, whatever their order in memory."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def first_update(clip_norm: float) -> float:
    """Return the length of one update of plain SGD at learning rate 1."""
    config = replace(CONFIG, epochs=1, optimizer="sgd", learning_rate=1.0, clip_norm=clip_norm)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        start = vector(LanguageModel("gru", V, MODEL))
    fitted = fit("gru", V, TRAIN[: config.fewest_tokens], None, MODEL, config)
    return float((vector(fitted.model) - start).norm())


def test_clip_norm_limits_the_update() -> None:
    free = first_update(0.0)
    assert free > 0.1
    assert first_update(0.01) == pytest.approx(0.01, rel=1e-3)
    assert first_update(100.0) == first_update(0.0)


def test_the_gradient_norm_is_told_as_it_was_before_clipping() -> None:
    one = replace(CONFIG, epochs=1, optimizer="sgd", learning_rate=1e-9)
    free, clipped = (fit_noise(config=replace(one, clip_norm=limit)).history[0] for limit in (0.0, 0.001))
    assert clipped.gradient_norm == pytest.approx(free.gradient_norm, rel=1e-4)
    assert free.gradient_norm > 0.1


def test_a_loss_summed_over_steps_is_told_per_token_and_clipped_as_a_sum() -> None:
    one = replace(CONFIG, epochs=1, optimizer="sgd", learning_rate=1e-9, clip_norm=0.0)
    mean, summed = (fit_noise(config=replace(one, loss=loss)).history[0] for loss in ("mean", "steps"))
    assert summed.train_loss == pytest.approx(mean.train_loss, rel=1e-6)
    assert summed.gradient_norm == pytest.approx(mean.gradient_norm * CONFIG.num_steps, rel=1e-4)


# Momentum, weight decay, accumulation, patience


def by_hand(config: TrainConfig, cell: str = "gru") -> nn.Module:
    """Plain descent written out again: groups of minibatches averaged, decay in the gradient, heavy ball."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LanguageModel(cell, V, MODEL)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(config.seed)
    velocity: list[Tensor] | None = None
    for _ in range(config.epochs):
        batches = list(sequential_batches(TRAIN, config.batch_size, config.num_steps, generator))
        state = model.initial_state(config.batch_size)
        for start in range(0, len(batches), config.accumulate):
            group = batches[start : start + config.accumulate]
            total = [torch.zeros_like(p) for p in parameters]
            for x, y in group:
                logits, state = model(x, [tuple(part.detach() for part in layer) for layer in state])
                surprise = -F.log_softmax(logits, -1).gather(-1, y.long()[..., None]).squeeze(-1)
                loss = surprise.sum(dim=1).mean() if config.loss == "steps" else surprise.mean()
                total = [t + g for t, g in zip(total, torch.autograd.grad(loss, parameters), strict=True)]
            with torch.no_grad():
                step = [t / len(group) + config.weight_decay * p for t, p in zip(total, parameters, strict=True)]
                if velocity is not None:
                    step = [config.momentum * v + g for v, g in zip(velocity, step, strict=True)]
                velocity = step
                for p, v in zip(parameters, velocity, strict=True):
                    p.sub_(config.learning_rate * v)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.05},
        {"accumulate": 2},
        {"accumulate": 3},  # 7 minibatches: the last group is smaller
        {"accumulate": 100},
        {"momentum": 0.8, "weight_decay": 0.05, "accumulate": 3},
        {"loss": "steps", "learning_rate": 0.03},
        {"loss": "steps", "learning_rate": 0.03, "accumulate": 3},
    ],
    ids=str,
)
def test_training_is_what_the_options_say_by_hand(changes: dict[str, Any]) -> None:
    plain = replace(CONFIG, epochs=2, optimizer="sgd", learning_rate=0.3, clip_norm=0.0)
    config = replace(plain, **changes)
    expected = by_hand(config)
    fitted = fit("gru", V, TRAIN, None, MODEL, config)
    without = fit("gru", V, TRAIN, None, MODEL, plain)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(fitted.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert (vector(fitted.model) - vector(without.model)).abs().max() > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_minibatches_are_one_of_their_size(accumulate: int, optimizer: str) -> None:
    """29 subsequences in random order: four minibatches of 7, or two of 14, or one of 28."""
    small = replace(CONFIG, partition="random", batch_size=7, optimizer=optimizer, learning_rate=0.02, clip_norm=0.1)
    parts = fit("lstm", V, TRAIN, None, MODEL, replace(small, accumulate=accumulate))
    whole = fit("lstm", V, TRAIN, None, MODEL, replace(small, batch_size=7 * accumulate))
    for ours, theirs in zip(parts.history, whole.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_decay_apart_from_the_gradient_is_another_than_within_it() -> None:
    def weights(optimizer: str, decay: float) -> Tensor:
        config = replace(CONFIG, optimizer=optimizer, weight_decay=decay)
        return vector(fit("gru", V, TRAIN, None, MODEL, config).model)

    torch.testing.assert_close(weights("adamw", 0.0), weights("adam", 0.0))
    within, apart = weights("adam", 0.5), weights("adamw", 0.5)
    assert (within - apart).abs().max() > 1e-3
    assert apart.norm() < weights("adamw", 0.0).norm()


def test_patience_ends_a_training_that_no_longer_gets_better() -> None:
    config = replace(CONFIG, epochs=20, learning_rate=0.05)
    for patience in (1, 3):
        stopped = fit_noise(config=replace(config, patience=patience))
        losses = [epoch.valid_loss for epoch in stopped.history]
        assert len(losses) < 20
        assert stopped.best_epoch == len(losses) - patience == losses.index(min(losses)) + 1
        whole = fit_noise(config=replace(config, epochs=len(losses)))
        assert [epoch.valid_loss for epoch in whole.history] == losses


@pytest.mark.parametrize("schedule", ["step", "plateau"])
def test_a_learning_rate_divided_for_ever_becomes_zero(schedule: str) -> None:
    config = replace(CONFIG, epochs=2000, schedule=schedule, decay=10.0)
    assert learning_rate(config, history_of(*[1.0] * 1000), 0, 1) == 0.0


def test_a_warm_up_that_outlasts_the_training_is_told() -> None:
    told: list[str] = []
    fit_noise(config=replace(CONFIG, warmup_steps=1000), warn=told.append)
    assert ["ends before its warm-up" in text for text in told] == [True]
    fit_noise(config=replace(CONFIG, warmup_steps=2), warn=told.append)
    assert len(told) == 1


# Resuming


def stop_in_epoch(number: int) -> tuple[Callable[[Epoch], None], Callable[[], bool]]:
    """Return (progress, should_stop) that stop a training at the third update of an epoch."""
    done = {"epochs": 0, "updates": 0}

    def progress(epoch: Epoch) -> None:
        done.update(epochs=epoch.number, updates=0)

    def should_stop() -> bool:
        done["updates"] += 1
        return done["epochs"] == number - 1 and done["updates"] == 3

    return progress, should_stop


def stop_at_call(number: int) -> Callable[[], bool]:
    """Return a `should_stop` that says so when it is asked for the so-manieth time."""
    calls = itertools.count(1)
    return lambda: next(calls) == number


def interrupt(number: int, cell: str, model: ModelConfig, config: TrainConfig, checkpoints: Checkpoints) -> None:
    progress, should_stop = stop_in_epoch(number)
    with pytest.raises(Stopped, match=f"training stopped: in epoch {number}: run the same command again to go on"):
        fit_noise(cell, model, config, checkpoints=checkpoints, progress=progress, should_stop=should_stop)


@pytest.mark.parametrize(
    ("optimizer", "partition"), [("sgd", "sequential"), ("adam", "random"), ("adamw", "sequential")]
)
@every_cell
def test_a_training_stopped_in_each_epoch_ends_with_the_same_bits(
    cell: str, optimizer: str, partition: str, store: Store
) -> None:
    config = replace(CONFIG, optimizer=optimizer, partition=partition, schedule="cosine", learning_rate=0.05)
    whole = fit_noise(cell, DEEP, config)
    checkpoints = Checkpoints(store, "key")
    for number in (1, 2, 3):
        interrupt(number, cell, DEEP, config, checkpoints)
        torch.rand(number)  # another process has another random state
        snapshot, _ = checkpoints.load()
        assert len(snapshot.facts["history"] if snapshot else []) == number - 1
    assert_same(fit_noise(cell, DEEP, config, checkpoints=checkpoints), whole)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(hidden_size=8, num_layers=2, embedding_size=8, dropout=0.3, tie_weights=True),
        ModelConfig(hidden_size=8, num_layers=2, dropout=0.3, implementation="scratch", init="uniform"),
    ],
    ids=["tied", "scratch"],
)
def test_momentum_plateau_and_accumulation_go_on_where_they_were(model: ModelConfig, store: Store) -> None:
    config = replace(
        CONFIG, epochs=6, optimizer="sgd", learning_rate=2.0, momentum=0.9, weight_decay=1e-3, accumulate=3,
        schedule="plateau", decay=3.0, warmup_steps=2,
    )  # fmt: skip
    whole = fit_noise("lstm", model, config)
    assert whole.history[-1].learning_rate < 2.0
    checkpoints = Checkpoints(store, "key")
    for number in (2, 4, 6):
        interrupt(number, "lstm", model, config, checkpoints)
        torch.rand(number)
    again = fit_noise("lstm", model, config, checkpoints=checkpoints)
    assert_same(again, whole)
    if model.tie_weights:
        assert again.model.embedding.weight is again.model.output.weight


def test_a_training_out_of_patience_does_not_go_on(store: Store) -> None:
    config = replace(CONFIG, epochs=20, learning_rate=0.05, patience=1)
    whole = fit_noise(config=config, checkpoints=Checkpoints(store, "key"))
    again = fit_noise(config=config, checkpoints=Checkpoints(store, "key"), should_stop=lambda: True)
    assert len(whole.history) < 20
    assert_same(again, whole)


def test_the_best_epoch_survives_an_interruption(store: Store) -> None:
    config = replace(CONFIG, epochs=12, learning_rate=0.05)
    whole = fit_noise(config=config)
    assert whole.best_epoch < 10
    interrupt(11, "gru", MODEL, config, Checkpoints(store, "key"))
    assert_same(fit_noise(config=config, checkpoints=Checkpoints(store, "key")), whole)


def test_a_resumed_training_tells_the_epochs_before(store: Store) -> None:
    interrupt(3, "gru", MODEL, CONFIG, Checkpoints(store, "key"))
    told: list[Epoch] = []
    earlier: list[int] = []
    fitted = fit_noise(checkpoints=Checkpoints(store, "key"), progress=told.append, resumed=earlier.append)
    assert tuple(told) == fitted.history
    assert [epoch.number for epoch in told] == [1, 2, 3]
    assert earlier == [2]


def test_a_training_killed_after_its_last_epoch_does_not_train_again(store: Store) -> None:
    whole = fit_noise(model=DEEP, checkpoints=Checkpoints(store, "key"))
    again = fit_noise(model=DEEP, checkpoints=Checkpoints(store, "key"), should_stop=lambda: True)
    assert again.history == whole.history
    assert_same(again, whole)


@pytest.mark.parametrize("num_damaged", [1, 2])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(num_damaged: int, store: Store) -> None:
    whole = fit_noise(model=DEEP)
    checkpoints = Checkpoints(store, "key")
    interrupt(3, "gru", DEEP, CONFIG, checkpoints)
    for digest in json.loads(checkpoints.pointer.read_text())[:num_damaged]:
        path = store.path(Handle("checkpoint", digest)) / "state.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    warnings: list[str] = []
    again = fit_noise(model=DEEP, checkpoints=checkpoints, warn=warnings.append)
    assert_same(again, whole)
    assert len(warnings) == num_damaged
    assert all("checkpoint skipped" in text and "has a damaged state.safetensors" in text for text in warnings)


def test_what_is_done_sooner_than_a_checkpoint_is_due_writes_one_at_the_end(store: Store) -> None:
    whole = fit_noise(checkpoints=Checkpoints(store, "key"), checkpoint_seconds=30.0)
    assert len(Checkpoints(store, "key").digests()) == 1
    again = fit_noise(checkpoints=Checkpoints(store, "key"), should_stop=lambda: True)
    assert again.history == whole.history
    assert_same(again, whole)


def test_a_stop_writes_a_checkpoint_that_is_not_due(store: Store) -> None:
    whole = fit_noise(model=DEEP)
    with pytest.raises(Stopped):
        fit_noise(
            model=DEEP, checkpoints=Checkpoints(store, "key"), checkpoint_seconds=30.0,
            should_stop=stop_at_call(9),
        )  # fmt: skip
    snapshot, _ = Checkpoints(store, "key").load()
    assert snapshot is not None
    assert len(snapshot.facts["history"]) == 1
    assert snapshot.facts["place"]["updates"] == 1
    assert_same(fit_noise(model=DEEP, checkpoints=Checkpoints(store, "key")), whole)


@pytest.mark.parametrize("partition", ["sequential", "random"])
@every_cell
def test_a_training_cut_between_any_two_updates_ends_with_the_same_bits(
    cell: str, partition: str, store: Store
) -> None:
    config = replace(CONFIG, epochs=2, partition=partition, accumulate=2)
    whole = fit_noise(cell, DEEP, config)
    cuts = 0
    for number in itertools.count(1):
        checkpoints = Checkpoints(store, f"key-{number}")
        try:
            fit_noise(cell, DEEP, config, checkpoints=checkpoints, should_stop=stop_at_call(number))
        except Stopped:
            torch.rand(number)  # another process has another random state
            assert_same(fit_noise(cell, DEEP, config, checkpoints=checkpoints), whole)
            cuts += 1
            continue
        break
    assert cuts == 8


# What can go wrong


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_text_one_token_too_short_is_told_with_the_need(partition: str) -> None:
    config = replace(CONFIG, partition=partition)
    ids = TRAIN[: config.fewest_tokens]
    assert len(fit("rnn", V, ids, None, MODEL, config).history) == 3
    told = rf"at least {len(ids)} tokens: {len(ids) - 1} tokens in the training split: .*lower train.batch_size"
    with pytest.raises(DataError, match=told):
        fit("rnn", V, ids[:-1], None, MODEL, config)


def test_a_diverging_training_names_step_numbers_and_remedy() -> None:
    config = replace(CONFIG, optimizer="sgd", learning_rate=1e38, clip_norm=0.0)
    told = r"diverged in epoch \d+ at step \d+: loss (nan|inf), gradient norm .*: lower train.learning_rate"
    with pytest.raises(IntegrityError, match=told):
        fit_noise("rnn", MODEL, config)


def test_weights_spoilt_by_the_last_update_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "stream_loss", lambda *_: math.nan)
    told = r"diverged in epoch 1 at step \d: validation loss nan, gradient norm \d.*: lower train.learning_rate"
    with pytest.raises(IntegrityError, match=told):
        fit_noise(config=replace(CONFIG, epochs=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_first_bad_step(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)
    real = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *a, **k: real(*a, **k) * (bad if next(calls) in (4, 6) else 1))
    with pytest.raises(IntegrityError, match=r"training diverged in epoch 1 at step 4: loss (nan|inf)"):
        fit_noise()


def test_divergence_keeps_the_last_good_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)
    real = nn.utils.clip_grad_norm_
    bad = 10  # the seventh update ends the first epoch
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *a: real(*a) * (math.nan if next(calls) == bad else 1))
    with pytest.raises(IntegrityError, match="training diverged in epoch 2 at step"):
        fit_noise(checkpoints=Checkpoints(store, "key"))
    snapshot, faults = Checkpoints(store, "key").load()
    assert snapshot is not None
    assert faults == []
    assert len(snapshot.facts["history"]) == 1


def test_a_stop_is_obeyed_at_the_first_update() -> None:
    told: list[Epoch] = []
    with pytest.raises(Stopped, match="training stopped: in epoch 1"):
        fit_noise(should_stop=lambda: True, progress=told.append)
    assert told == []


def test_a_missing_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"no such device here \(present: cpu\): cuda:7"):
        fit_noise(config=replace(CONFIG, device="cuda:7"))


# From corpus to published model


def train_text(built: Any, store: Store, **changes: Any):
    config = replace(CONFIG, epochs=2, batch_size=16, num_steps=10, **changes.pop("config", {}))
    return train("gru", built.corpus, built.vocabulary, MODEL, config, store, **{"key": "key", **changes})


def test_a_trained_model_is_published_with_what_it_needs(characters: Any, store: Store) -> None:
    trained = train_text(characters, store)
    saved = load_model(store.open(trained.model))
    assert (trained.cell, trained.device, len(trained.history)) == ("gru", "cpu", 2)
    assert trained.num_parameters == num_parameters(saved.model)
    assert trained.best is trained.history[trained.best_epoch - 1]
    assert (saved.tokenizer.level, saved.normalizer) == ("char", "none")
    assert len(saved.vocabulary) == characters.vocabulary_size
    assert saved.about["corpus"] == characters.corpus.sha256
    assert saved.about["vocabulary"] == characters.vocabulary.sha256
    assert saved.about["best_epoch"] == trained.best_epoch
    assert saved.about["train"]["seed"] == CONFIG.seed
    assert not {"device", "cuda_graph"} & saved.about["train"].keys()
    assert saved.about["train"]["precision"] == "float32"


def test_the_vocabulary_of_another_corpus_is_refused(characters: Any, store: Store) -> None:
    with store.draft("vocabulary") as draft:
        shutil.copytree(store.open(characters.vocabulary), draft.folder, dirs_exist_ok=True)
        (draft.folder / "manifest.json").unlink()
        (draft.folder / "note.txt").write_text("not the same any more")
        other = draft.publish()
    with pytest.raises(IntegrityError, match="the vocabulary is not that of the corpus: the corpus was made with"):
        train("gru", characters.corpus, other, MODEL, CONFIG, store, key="key")


def test_equal_trainings_give_one_artifact(characters: Any, store: Store) -> None:
    first = train_text(characters, store)
    assert train_text(characters, store, key="other").model == first.model
    assert train_text(characters, store, config={"seed": 9}).model != first.model


def test_an_interrupted_training_gives_the_same_artifact(characters: Any, store: Store) -> None:
    progress, should_stop = stop_in_epoch(2)
    with pytest.raises(Stopped, match="in epoch 2"):
        train_text(characters, store, progress=progress, should_stop=should_stop)
    assert Checkpoints(store, "key").load()[0] is not None
    resumed = train_text(characters, store)
    # The checkpoints stay until the result is on record; whoever asks again gets it without training.
    assert train_text(characters, store, should_stop=lambda: True).model == resumed.model
    assert resumed.model == train_text(characters, store, key="other").model


def test_a_corpus_without_validation_split_keeps_the_last_epoch(build: Any, store: Store) -> None:
    trained = train_text(build("abcdefgh " * 100, shares=(100, 0, 0)), store)
    assert trained.best_epoch == 2
    assert trained.best.valid_perplexity is None


def test_a_corpus_that_is_gone_is_told(characters: Any, store: Store, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"artifact corpus:.* is missing"):
        train_text(characters, Store(tmp_path / "empty"))


# Slowness is told


@pytest.mark.parametrize(
    ("load", "threads", "told"),
    [
        (9.0, 2, ["the machine is busy (load 9.0 on 2 cores): 2 threads will wait for each other"]),
        (9.0, 1, []),
        (1.0, 2, []),
    ],
)
def test_threads_on_a_busy_machine_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, load: float, threads: int, told: list[str]
) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", "torch")
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    warnings: list[str] = []
    fit("rnn", V, TRAIN, None, MODEL, replace(CONFIG, epochs=1), warn=warnings.append)
    assert warnings == told


def test_a_training_without_the_native_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", "auto")
    for module in (recurrence, train_module):
        monkeypatch.setattr(module, "why_not_native", lambda: "no C++ compiler here")
    warnings: list[str] = []
    fit("rnn", V, TRAIN, None, MODEL, replace(CONFIG, epochs=1), warn=warnings.append)
    assert warnings == ["slower than it could be, without the native kernel: no C++ compiler here"]


def test_a_training_that_goes_on_in_another_arithmetic_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_RECURRENCE", "torch")
    checkpoints = Checkpoints(store, "key")
    fit("rnn", V, TRAIN, None, MODEL, replace(CONFIG, epochs=1), checkpoints=checkpoints)
    monkeypatch.setenv("RNNLM_RECURRENCE", "autograd")
    warnings: list[str] = []
    fitted = fit("rnn", V, TRAIN, None, MODEL, CONFIG, checkpoints=checkpoints, warn=warnings.append)
    assert warnings == ["the training goes on in another arithmetic (torch, now autograd): its last digits will differ"]
    assert len(fitted.history) == CONFIG.epochs
