import pytest

from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.config import CELLS, check, flatten, override
from rnnlm_core.errors import ConfigError, UsageError
from rnnlm_core.model import LanguageModel, num_parameters
from rnnlm_core.presets import PRESETS, run_config


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
    assert config.cells == (("lstm",) if name == "ptb-zaremba-small" else CELLS)
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


def test_zaremba_s_small_model_has_4_65_million_parameters() -> None:
    """Embedding 2,000,000, each layer 321,600 (with the two biases of `torch.nn`), output 2,010,000."""
    model = LanguageModel("lstm", 10_000, run_config("ptb-zaremba-small").model)
    assert num_parameters(model) == 4_653_200


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
