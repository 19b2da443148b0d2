"""Cells of other packages beside our own, which are written again as such packages would write them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnlm_core.cells import State, gru_step_reset_before, lstm_step, rnn_step
from rnnlm_core.config import ModelConfig, RunConfig, TrainConfig
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError, ResourceError, UsageError
from rnnlm_core.extensions import VARIABLE
from rnnlm_core.generate import continue_text
from rnnlm_core.levels import CharTokenizer
from rnnlm_core.model import LanguageModel, convert
from rnnlm_core.presets import run_config
from rnnlm_core.saved_model import load_model, save_model
from rnnlm_core.step_layer import Cell, find_cell
from rnnlm_core.store import Store
from rnnlm_core.train import train
from rnnlm_core.vocabulary import Vocabulary

V, HIDDEN, STEPS, BATCH = 7, 5, 6, 3


class Simple(Cell):
    """The RNN, its input's share handed over."""

    num_gates = 1

    @staticmethod
    def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"W_hh": (hidden_size, hidden_size)}

    @staticmethod
    def step(inputs: Tensor, state: State, W_hh: Tensor) -> State:
        return rnn_step(inputs, state, W_hh, None)


class Gated(Cell):
    """The book's GRU."""

    num_gates = 3

    @staticmethod
    def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"W_h": (hidden_size, 3 * hidden_size)}

    @staticmethod
    def step(inputs: Tensor, state: State, W_h: Tensor) -> State:
        return gru_step_reset_before(inputs, state, W_h, None)


class Long(Cell):
    """The LSTM, which carries two parts, and multiplies its input itself."""

    num_gates = 0
    num_states = 2
    title = "an LSTM by hand"

    @staticmethod
    def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"W_x": (input_size, 4 * hidden_size), "W_h": (hidden_size, 4 * hidden_size), "b": (4 * hidden_size,)}

    @staticmethod
    def step(inputs: Tensor, state: State, W_x: Tensor, W_h: Tensor, b: Tensor) -> State:
        return lstm_step(inputs @ W_x + b, state, W_h, None)


TWINS = {"simple": ("rnn", Simple), "gated": ("gru", Gated), "long": ("lstm", Long)}
NAMES = {"W_h": "W_h", "W_hh": "W_h", "W_x": "W_x", "b": "b"}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [f"cell:{name}={cls.__module__}:{cls.__qualname__}" for name, (_, cls) in TWINS.items()]
    monkeypatch.setenv(VARIABLE, ",".join(places))


@pytest.fixture(params=TWINS)
def twins(request: pytest.FixtureRequest) -> tuple[LanguageModel, LanguageModel]:
    """A model of such a cell, two layers of it, and one of our own with the same weights."""
    name: str = request.param
    config = ModelConfig(
        implementation="scratch", init="uniform", init_range=0.9, hidden_size=HIDDEN, num_layers=2,
        embedding_size=4 if name == "gated" else 0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = LanguageModel(name, V, config).double()
    ours = LanguageModel(TWINS[name][0], V, config).double()
    weights = {key.replace("recurrent.", ""): tensor for key, tensor in theirs.weights().items()}
    ours.set_weights({key.replace("W_hh", "W_h"): tensor for key, tensor in weights.items()})
    return theirs, ours


def test_logits_states_and_gradients_are_those_of_our_own(twins: tuple[LanguageModel, LanguageModel]) -> None:
    ids = torch.randint(0, V, (BATCH, STEPS), generator=torch.Generator().manual_seed(1))
    found = []
    for model in twins:
        logits, state = model(ids, model.initial_state(BATCH))
        logits, state = model(ids, state)
        logits.square().mean().backward()
        found.append((logits, [part for layer in state for part in layer], list(model.parameters())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-12)
    gradients = [
        sorted(float(p.grad.abs().sum()) for p in parameters if p.grad is not None) for *_, parameters in found
    ]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-10)


def test_no_step_leaves_the_state(twins: tuple[LanguageModel, LanguageModel]) -> None:
    state = twins[0].initial_state(BATCH)
    logits, after = twins[0](torch.zeros(BATCH, 0, dtype=torch.int32), state)
    assert logits.shape == (BATCH, 0, V)
    torch.testing.assert_close(after, state)


def test_weight_drop_drops_matrices_while_training_alone() -> None:
    torch.manual_seed(0)
    model = LanguageModel("simple", V, ModelConfig(hidden_size=HIDDEN, weight_drop=0.5))
    ids = torch.zeros(BATCH, STEPS, dtype=torch.int32)
    drawn = [model(ids, model.initial_state(BATCH))[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    model.eval()
    still = [model(ids, model.initial_state(BATCH))[0] for _ in range(2)]
    assert torch.equal(*still)


def test_first_weights_follow_the_config() -> None:
    torch.manual_seed(0)
    layer = LanguageModel("simple", V, ModelConfig(hidden_size=64)).layers[0]
    assert float(layer.W_x.detach().abs().max()) == pytest.approx(64**-0.5, rel=0.05)
    book = LanguageModel("simple", V, ModelConfig(hidden_size=64, implementation="scratch")).layers[0]
    assert float(book.W_x.detach().std()) == pytest.approx(0.01, rel=0.2)
    assert not book.b.detach().any()


def test_what_it_depends_on_is_settled() -> None:
    config = ModelConfig(reset_gate="after", order=3)
    assert config.for_cell("simple") == ModelConfig(implementation="scratch", init="torch")
    assert ModelConfig(implementation="scratch").for_cell("simple").init == "book"
    assert ModelConfig(init="uniform", init_range=0.2).for_cell("simple").init == "uniform"


def test_it_trains_is_saved_loads_and_writes(characters: Any, store: Store) -> None:
    settings = TrainConfig(epochs=2, batch_size=4, num_steps=8, device="cpu")
    model = ModelConfig(hidden_size=16, num_layers=2, dropout=0.1)
    trained = train("long", characters.corpus, characters.vocabulary, model, settings, store, key="a")
    assert trained.cell == "long"
    assert trained.history[-1].train_perplexity < trained.history[0].train_perplexity
    again = train("long", characters.corpus, characters.vocabulary, model, settings, store, key="b")
    assert again.model == trained.model
    saved = load_model(store.open(trained.model))
    assert (
        len(continue_text(saved, characters.text[:5], run_config(changes={"generate.length": 7}).generate).text) == 12
    )


def test_a_model_of_a_cell_that_is_not_here_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary(dict.fromkeys("abcdef", 1))
    model = LanguageModel("simple", len(vocabulary), ModelConfig(hidden_size=HIDDEN))
    save_model(tmp_path, model, vocabulary, CharTokenizer(), "none", {})
    assert load_model(tmp_path).model.cell == "simple"
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ResourceError, match=r"this model needs the cell simple: .*: install the package"):
        load_model(tmp_path)


def test_torch_nn_has_none_of_them() -> None:
    with pytest.raises(ValueError, match=r"torch\.nn has no simple"):
        convert(LanguageModel("simple", V, ModelConfig()), "concise")


def test_an_unknown_cell_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown cell: simpel: did you mean simple\?.*known: rnn, gru, lstm, ngram"):
        find_cell("simpel")


class Without(Simple):
    """Forgets what it must say, or says what is not so: each attribute is set by a test."""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"num_gates": None}, "must have `num_gates`, a whole number"),
        ({"num_states": 0}, "at least one of `num_states`"),
        ({"num_states": "2"}, "at least one of `num_states`"),
        ({"num_states": 1.5}, "at least one of `num_states`"),
        ({"shapes": staticmethod(lambda *_: 1 / 0)}, r"must name what it trains, with shapes: .*ZeroDivisionError"),
        ({"shapes": staticmethod(lambda *_: [(2, 2)])}, "must name what it trains, with shapes: .*AttributeError"),
        ({"shapes": staticmethod(lambda *_: {"keys": (2,)})}, "must name what it trains, with shapes: .*KeyError"),
        ({"shapes": staticmethod(lambda *_: {"U": (-1, 2)})}, "must name what it trains, with shapes: .*RuntimeError"),
        ({"num_gates": 0, "shapes": staticmethod(lambda *_: {})}, "must have something to train"),
        ({"num_states": 2}, r"a step of the cell failed.*ValueError"),
        ({"step": staticmethod(lambda _, state, **__: state[0])}, "must return a tuple of 1 x .* returns .*Tensor"),
        ({"step": staticmethod(lambda _, state, **__: (state[0][:1],))}, r"returns \[\(1, 2\)\]"),
    ],
)
def test_a_cell_that_is_none_is_told_before_it_trains(
    said: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setattr(Without, name, value, raising=False)
    monkeypatch.setenv(VARIABLE, f"cell:without={Without.__module__}:Without")
    with pytest.raises(UsageError, match=told):
        find_cell("without")


def test_a_cell_is_tried_without_a_trace() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    find_cell("long")
    assert torch.equal(torch.get_rng_state(), before)


class Independent(Cell):
    """One weight per unit, which weight drop leaves alone (Li et al. 2018)."""

    num_gates = 1

    @staticmethod
    def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"u": (hidden_size,)}

    @staticmethod
    def step(inputs: Tensor, state: State, u: Tensor) -> State:
        return ((inputs + u * state[0]).relu(),)


def test_weight_drop_has_no_effect_on_a_cell_without_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"cell:alone={Independent.__module__}:Independent,cell:simple={__name__}:Simple")
    changes = {"cells": "alone", "model.weight_drop": "0.5"}
    with pytest.raises(ConfigError, match=r"`model\.weight_drop` has no effect on cells without recurrent matrices"):
        override(RunConfig(), changes)
    for cells in ("alone,simple", "alone,gru"):
        override(RunConfig(), changes | {"cells": cells})
    override(RunConfig(), {"cells": "alone"})


def test_an_option_of_our_own_cells_has_no_effect_on_them() -> None:
    changes = {"cells": "simple", "model.implementation": "scratch"}
    assert override(RunConfig(), changes).model.for_cell("simple").init == "book"
    with pytest.raises(ConfigError, match="implementation` has no effect on cells of other packages"):
        override(RunConfig(), changes | {"model.init": "uniform"})
    override(RunConfig(), changes | {"model.init": "uniform", "cells": "gru,simple"})


def test_what_is_no_cell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cell:wrong=pathlib:Path")
    with pytest.raises(UsageError, match=r"the cell wrong must be a class of rnnlm_core\.Cell: pathlib:Path"):
        find_cell("wrong")
