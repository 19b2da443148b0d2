from dataclasses import replace
from typing import Any

import pytest
import torch

from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.config import CELLS, flatten
from rnnlm_core.config_rules import check
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError, UsageError
from rnnlm_core.model import LanguageModel, num_parameters
from rnnlm_core.presets import PRESETS, run_config

ONE_CELL = {
    "shakespeare-best": ("lstm",),
    "ptb-zaremba-small": ("lstm",),
    "ptb-zaremba-medium": ("lstm",),
    "ptb-zaremba-large": ("lstm",),
    "ptb-awd": ("lstm",),
    "wikitext2-tied-200": ("lstm",),
    "wikitext2-tied-650": ("lstm",),
    "ptb-budget-lstm": ("lstm",),
    "ptb-budget-gru": ("gru",),
    "ptb-budget-rnn": ("rnn",),
    "ptb-chars": ("lstm",),
}
"""Presets of a published figure of one cell."""
PTB_WORDS, PTB_CHARACTERS, SHAKESPEARE_CHARACTERS = 10_000, 51, 66
"""Sizes of vocabularies."""


def parameters(vocabulary_size: int, preset: str, cell: str = "lstm", **changes: Any) -> int:
    config = run_config(preset, changes={key.replace("__", "."): value for key, value in changes.items()})
    with torch.device("meta"):
        return num_parameters(LanguageModel(cell, vocabulary_size, config.model))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_holds_every_rule(name: str) -> None:
    check(PRESETS[name]())
    assert run_config(name) == PRESETS[name]()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_flattening(name: str) -> None:
    config = PRESETS[name]()
    assert override(PRESETS["quickstart"](), flatten(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_its_cells_on_a_named_corpus(name: str) -> None:
    config = PRESETS[name]()
    assert config.cells == ONE_CELL.get(name, CELLS)
    assert config.corpus.name in CATALOGUE


@pytest.mark.parametrize("corpus", CATALOGUE)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_accepts_every_corpus(preset: str, corpus: str) -> None:
    config = run_config(preset, corpus=corpus)
    assert config.corpus.name == corpus
    check(config)


def test_the_default_needs_no_network() -> None:
    assert CATALOGUE[run_config().corpus.name].files == ()


def test_the_book_s_settings() -> None:
    flat = flatten(run_config("d2l-time-machine"))
    expected = {
        "corpus.normalizer": "d2l-lines",
        "corpus.max_tokens": 10_000,
        "train.epochs": 500,
        "train.batch_size": 32,
        "train.num_steps": 35,
        "train.optimizer": "sgd",
        "train.learning_rate": 1.0,
        "train.schedule": "constant",
        "train.clip_norm": 1.0,
        "model.hidden_size": 256,
        "model.embedding_size": 0,
        "model.dropout": 0.0,
        "evaluate.split": "train",
        "generate.prefixes": ("time traveller", "traveller"),
        "generate.length": 50,
        "generate.temperature": 0.0,
    }
    assert {key: flat[key] for key in expected} == expected


def test_the_settings_of_zaremba_s_small_model() -> None:
    flat = flatten(run_config("ptb-zaremba-small"))
    expected = {
        "cells": ("lstm",),
        "corpus.split": "given",
        "tokenizer.level": "word",
        "tokenizer.eos": "line",
        "model.hidden_size": 200,
        "model.embedding_size": 200,
        "model.num_layers": 2,
        "model.dropout": 0.0,
        "model.init": "uniform",
        "model.init_range": 0.1,
        "train.epochs": 13,
        "train.batch_size": 20,
        "train.num_steps": 20,
        "train.partition": "sequential",
        "train.optimizer": "sgd",
        "train.learning_rate": 1.0,
        "train.momentum": 0.0,
        "train.weight_decay": 0.0,
        "train.schedule": "step",
        "train.decay": 2.0,
        "train.decay_after": 4,
        "train.clip_norm": 5.0,
        "train.loss": "steps",
        "evaluate.split": "test",
    }
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("preset", "exact", "published"),
    [
        # Embedding, layers (with the two biases of `torch.nn`), output.
        ("ptb-zaremba-small", 2_000_000 + 2 * 321_600 + 2_010_000, 4.65e6),
        ("ptb-zaremba-medium", 6_500_000 + 2 * 3_385_200 + 6_510_000, 20e6),
        ("ptb-zaremba-large", 15_000_000 + 2 * 18_012_000 + 15_010_000, 66e6),
        ("ptb-awd", 4_000_000 + 7_139_200 + 10_589_200 + 2_483_200 + 10_000, 24e6),
        ("wikitext2-tied-200", 2_000_000 + 2 * 321_600 + 10_000, 2.65e6),
        ("wikitext2-tied-650", 6_500_000 + 2 * 3_385_200 + 10_000, 13.3e6),
    ],
)
def test_the_numbers_of_parameters_are_the_published_ones(preset: str, exact: int, published: float) -> None:
    assert parameters(PTB_WORDS, preset) == exact == pytest.approx(published, rel=0.012)


def test_the_largest_tied_example_has_51_million_parameters() -> None:
    wide = {"model__hidden_size": 1500, "model__embedding_size": 1500}
    assert parameters(PTB_WORDS, "wikitext2-tied-650", **wide) == pytest.approx(51.0e6, rel=0.002)


def test_the_same_budget_is_the_same_for_every_cell() -> None:
    sizes = [parameters(PTB_WORDS, f"ptb-budget-{cell}", cell) for cell in CELLS]
    assert sizes == [pytest.approx(13e6, rel=0.01)] * 3
    assert max(sizes) / min(sizes) < 1.01
    recipes = [PRESETS[f"ptb-budget-{cell}"]() for cell in CELLS]
    same = [replace(one, cells=(), model=replace(one.model, hidden_size=1, embedding_size=1)) for one in recipes]
    assert same[0] == same[1] == same[2]


def test_the_models_of_characters_have_their_budgets() -> None:
    sizes = {"lstm": 476, "gru": 552, "rnn": 968}
    for cell, size in sizes.items():
        assert parameters(PTB_CHARACTERS, "ptb-chars", cell, model__hidden_size=size) == pytest.approx(3e6, rel=0.01)
    assert parameters(SHAKESPEARE_CHARACTERS, "shakespeare-best") <= 10.65e6


def test_the_settings_of_zaremba_s_larger_models() -> None:
    medium, large = (run_config(f"ptb-zaremba-{size}") for size in ("medium", "large"))
    shapes = [
        (m.hidden_size, m.embedding_size, m.num_layers, m.dropout, m.init, m.init_range)
        for m in (medium.model, large.model)
    ]
    assert shapes == [(650, 650, 2, 0.5, "uniform", 0.05), (1500, 1500, 2, 0.65, "uniform", 0.04)]
    rates = [(t.epochs, t.decay, t.decay_after, t.clip_norm) for t in (medium.train, large.train)]
    assert rates == [(39, 1.2, 6, 5.0), (55, 1.15, 14, 10.0)]
    for train in (medium.train, large.train):
        assert (train.batch_size, train.num_steps, train.optimizer, train.learning_rate) == (20, 35, "sgd", 1.0)
        assert (train.schedule, train.loss) == ("step", "steps")


def test_the_settings_of_pytorch_s_example() -> None:
    small, large = (run_config(f"wikitext2-tied-{size}") for size in (200, 650))
    shapes = [
        (m.hidden_size, m.embedding_size, m.num_layers, m.dropout, m.tie_weights, m.init, m.init_range)
        for m in (small.model, large.model)
    ]
    assert shapes == [(200, 200, 2, 0.2, True, "uniform", 0.1), (650, 650, 2, 0.5, True, "uniform", 0.1)]
    assert small.train == large.train
    train = small.train
    assert (train.epochs, train.batch_size, train.num_steps, train.optimizer) == (40, 20, 35, "sgd")
    assert (train.learning_rate, train.schedule, train.decay, train.clip_norm) == (20.0, "plateau", 4.0, 0.25)
    assert (small.corpus.name, small.corpus.split, small.tokenizer.eos) == ("wikitext-2", "given", "line")


def test_the_first_edition_s_lyrics_are_10_000_characters() -> None:
    config = run_config("lyrics")
    assert (config.corpus.max_chars, config.corpus.normalizer, config.corpus.split) == (10_000, "chinese", "100/0/0")
    assert (config.train.epochs, config.train.clip_norm, config.evaluate.split) == (160, 1e-2, "train")


@pytest.mark.parametrize(("corpus", "level", "eos"), [("ptb", "word", "line"), ("shakespeare", "char", "none")])
def test_lines_end_in_eos_where_published_figures_count_it(corpus: str, level: str, eos: str) -> None:
    tokenizer = run_config("quickstart", corpus=corpus).tokenizer
    assert (tokenizer.level, tokenizer.eos) == (level, eos)


def test_a_preset_with_eos_loses_it_on_a_text_without() -> None:
    assert run_config("ptb-zaremba-small", corpus="shakespeare").tokenizer.eos == "none"


def test_a_misspelt_preset_gets_a_suggestion() -> None:
    with pytest.raises(
        UsageError, match=r"unknown preset: quick-start: did you mean quickstart\? \(known: quickstart, "
    ):
        run_config("quick-start")


def test_another_corpus_brings_its_conventions() -> None:
    config = run_config("quickstart", corpus="shakespeare")
    assert (config.corpus.normalizer, config.corpus.split) == ("none", "90/10/0")
    assert config.evaluate.split == "valid"
    assert config.generate.prefixes == ("ROMEO:",)
    assert config.train == PRESETS["quickstart"]().train


def test_the_preset_s_own_corpus_keeps_the_preset_s_conventions() -> None:
    assert run_config("d2l-time-machine", corpus="time-machine") == PRESETS["d2l-time-machine"]()


def test_a_text_of_one_s_own_is_kept_as_it_is() -> None:
    config = run_config("d2l-time-machine", corpus="book.txt")
    assert (config.corpus.name, config.corpus.normalizer, config.corpus.split) == ("book.txt", "none", "90/5/5")
    assert config.evaluate.split == "test"
    assert config.generate.prefixes == ()


def test_changes_win_over_the_conventions_of_a_corpus() -> None:
    changes = {"corpus.split": "80/10/10", "generate.prefixes": "JULIET:", "evaluate.split": "test"}
    config = run_config("quickstart", corpus="shakespeare", changes=changes)
    assert (config.corpus.split, config.generate.prefixes, config.evaluate.split) == ("80/10/10", ("JULIET:",), "test")


def test_cells_are_chosen_and_checked() -> None:
    assert run_config(cells=["gru"]).cells == ("gru",)
    with pytest.raises(ConfigError, match="unknown cell: gruu: did you mean gru"):
        run_config(cells=["gruu"])


def test_a_change_that_breaks_a_rule_of_the_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`corpus.max_tokens` must be at least .* Got 30000"):
        run_config("smoke", changes={"train.batch_size": 4096})


def test_a_corpus_in_three_files_is_not_cut_as_the_preset_cuts_its_own() -> None:
    config = run_config("lyrics", corpus="somewhere/folder", changes={"corpus.split": "given"})
    assert (config.corpus.split, config.corpus.max_chars) == ("given", 0)
    assert run_config("lyrics").corpus.max_chars == 10_000
