import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core.config import PLACE, CorpusConfig, ModelConfig, RunConfig, TrainConfig, flatten
from rnnlm_core.config_rules import check
from rnnlm_core.config_values import override
from rnnlm_core.errors import ConfigError
from rnnlm_core.presets import run_config

DEFAULT = RunConfig()
SAMPLED = {"generate.temperature": 1.0}


def _lines(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        override(DEFAULT, changes)
    return caught.value.lines


def test_keys_are_dotted_and_start_with_the_cells() -> None:
    flat = flatten(DEFAULT)
    assert next(iter(flat.items())) == ("cells", ("rnn", "gru", "lstm"))
    assert flat["train.learning_rate"] == DEFAULT.train.learning_rate
    assert not any(dataclasses.is_dataclass(value) for value in flat.values())


def test_the_defaults_hold_every_rule() -> None:
    check(DEFAULT)  # raises what is broken
    assert override(DEFAULT, {}) == DEFAULT


def test_flattening_and_overriding_gives_the_config_back() -> None:
    changed = override(
        DEFAULT, {"train.epochs": 3, "corpus.split": "90/10/0", "evaluate.split": "valid", "cells": ["gru"]}
    )
    assert override(DEFAULT, flatten(changed)) == changed
    assert changed != DEFAULT


def test_what_a_preset_set_for_another_schedule_goes_with_it() -> None:
    zaremba = run_config("ptb-zaremba-small", changes={"train.schedule": "constant"})
    assert (zaremba.train.decay, zaremba.train.decay_after) == (DEFAULT.train.decay, DEFAULT.train.decay_after)
    assert run_config("shakespeare", changes={"generate.temperature": 0}).generate.seed == 0
    with pytest.raises(ConfigError, match="decay_after"):  # said by the user, not by the preset
        run_config("ptb-zaremba-small", changes={"train.schedule": "constant", "train.decay_after": 4})


def test_values_survive_json() -> None:
    changed = override(DEFAULT, {"generate.prefixes": ["时间", "a, b"], "model.dropout": 0.25})
    assert override(DEFAULT, json.loads(json.dumps(flatten(changed)))) == changed


@settings(deadline=None, max_examples=100)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "train.epochs": st.integers(1, 10**6),
            "train.learning_rate": st.floats(1e-9, 1e6),
            "model.dropout": st.floats(0, 0.999),
            "tokenizer.level": st.sampled_from(["char", "word"]),
            "tokenizer.reserved_tokens": st.lists(st.text(min_size=1), max_size=3, unique=True),
            "corpus.name": st.text(),
        },
    )
)
def test_valid_values_are_kept_as_given(changes: dict[str, Any]) -> None:
    flat = flatten(override(DEFAULT, changes))
    assert flat == flatten(DEFAULT) | {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 10**6), st.floats(1e-9, 1e6))
def test_strings_are_read_as_the_type_of_their_key(epochs: int, rate: float) -> None:
    train = override(DEFAULT, {"train.epochs": str(epochs), "train.learning_rate": repr(rate)}).train
    assert (train.epochs, train.learning_rate) == (epochs, rate)
    assert type(train.epochs) is int


def test_an_integer_is_a_number() -> None:
    rate = override(DEFAULT, {"train.learning_rate": 1}).train.learning_rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize("value", [True, False, 2.0, "2.5", "abc", "", "+-7", "1e3", " 7", "9" * 5000, None, [2], {}])
def test_what_is_no_integer_is_refused(value: object) -> None:
    (line,) = _lines({"train.epochs": value})
    assert line.startswith("`train.epochs` must be an integer. Got ")


@pytest.mark.parametrize("value", [True, "abc", "", None, [1.0], {}, 10**400])
def test_what_is_no_number_is_refused(value: object) -> None:
    (line,) = _lines({"train.learning_rate": value})
    assert line.startswith("`train.learning_rate` must be a number. Got ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf"])
def test_a_number_must_be_finite(value: object) -> None:
    assert _lines({"model.dropout": value})[0].startswith("`model.dropout` must be finite. Got ")


@pytest.mark.parametrize("value", [7, True, None, ["a"]])
def test_what_is_no_string_is_refused(value: object) -> None:
    assert _lines({"corpus.name": value}) == [f"`corpus.name` must be a string. Got {value!r}"]


@pytest.mark.parametrize("value", ["bytes", 1, True, None, ["char"]])
def test_a_choice_must_be_one_of_its_choices(value: object) -> None:
    assert _lines({"tokenizer.level": value}) == [
        f"`tokenizer.level` must be one of char, word, byte, bpe. Got {value!r}"
    ]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("gru,lstm", ("gru", "lstm")),
        ("gru", ("gru",)),
        ('["rnn", "gru"]', ("rnn", "gru")),
        (["lstm"], ("lstm",)),
        (("lstm", "rnn"), ("lstm", "rnn")),
    ],
)
def test_lists_are_read_from_commas_json_and_lists(value: object, read: tuple[str, ...]) -> None:
    assert override(DEFAULT, {"cells": value}).cells == read


@pytest.mark.parametrize("value", [[1], "[1]", 3, None, {"a": 1}])
def test_a_list_must_hold_strings(value: object) -> None:
    assert _lines({"tokenizer.reserved_tokens": value}) == [
        f"`tokenizer.reserved_tokens` must be a list of strings. Got {value!r}"
    ]


def test_a_broken_json_list_is_refused() -> None:
    (line,) = _lines({"generate.prefixes": '["a'})
    assert line.startswith("`generate.prefixes` must be a JSON list or a comma-separated list. Got ")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("corpus.max_chars", -1, "at least 0"),
        ("corpus.max_tokens", -1, "at least 0"),
        ("tokenizer.min_freq", 0, "at least 1"),
        ("model.hidden_size", 0, "at least 1"),
        ("model.hidden_size", 16385, "at most 16384"),
        ("model.num_layers", 0, "at least 1"),
        ("model.num_layers", 17, "at most 16"),
        ("model.embedding_size", -1, "at least 0"),
        ("model.embedding_size", 16385, "at most 16384"),
        ("model.dropout", -0.1, "at least 0.0"),
        ("model.dropout", 1.0, "below 1.0"),
        ("train.epochs", 0, "at least 1"),
        ("train.epochs", 1_000_001, "at most 1000000"),
        ("train.batch_size", 0, "at least 1"),
        ("train.num_steps", 0, "at least 1"),
        ("train.learning_rate", 0.0, "above 0.0"),
        ("train.learning_rate", 1e7, "at most 1000000.0"),
        ("train.clip_norm", -1.0, "at least 0.0"),
        ("train.weight_decay", -0.1, "at least 0.0"),
        ("train.weight_decay", 1.1, "at most 1.0"),
        ("train.warmup_steps", -1, "at least 0"),
        ("train.patience", -1, "at least 0"),
        ("train.accumulate", 0, "at least 1"),
        ("train.activation_regularization", -1.0, "at least 0.0"),
        ("train.temporal_activation_regularization", -1.0, "at least 0.0"),
        ("model.weight_drop", 1.0, "below 1.0"),
        ("model.mixture", -1, "at least 0"),
        ("train.seed", -1, "at least 0"),
        ("train.seed", 2**32, "at most 4294967295"),
        ("generate.length", 0, "at least 1"),
        ("generate.length", 10_001, "at most 10000"),
        ("generate.temperature", -0.1, "at least 0.0"),
        ("generate.temperature", 5.1, "at most 5.0"),
        ("generate.top_k", -1, "at least 0"),
        ("generate.top_p", 0.0, "above 0.0"),
        ("generate.top_p", 1.1, "at most 1.0"),
        ("generate.repetition_penalty", 0.9, "at least 1.0"),
        ("generate.repetition_penalty", 101.0, "at most 100.0"),
        ("generate.seed", -1, "at least 0"),
        ("generate.seed", 2**32, "at most 4294967295"),
    ],
)
def test_a_value_outside_its_range_names_the_limit(key: str, value: float, rule: str) -> None:
    changes = {key: value} | ({} if key == "generate.temperature" else SAMPLED)
    assert _lines(changes) == [f"`{key}` must be {rule}. Got {value}"]


@pytest.mark.parametrize(
    ("key", "value", "rule", "given"),
    [
        ("tokenizer.bpe_size", 256, "at least 257", {"tokenizer.level": "bpe"}),
        ("tokenizer.bpe_size", 1_000_001, "at most 1000000", {"tokenizer.level": "bpe"}),
        ("model.init_range", 0.0, "above 0.0", {"model.init": "uniform"}),
        ("model.init_range", 10.1, "at most 10.0", {"model.init": "uniform"}),
        ("train.momentum", -0.1, "at least 0.0", {"train.optimizer": "sgd"}),
        ("train.momentum", 1.0, "below 1.0", {"train.optimizer": "sgd"}),
        ("train.decay", 1.0, "above 1.0", {"train.schedule": "step"}),
        ("train.decay", 1e7, "at most 1000000.0", {"train.schedule": "plateau"}),
        ("train.decay_after", 0, "at least 1", {"train.schedule": "step"}),
        ("generate.beam", 0, "at least 1", {}),
        ("generate.beam", 1001, "at most 1000", {}),
        ("generate.length_penalty", -0.1, "at least 0.0", {"generate.beam": 2, "generate.stop": ["."]}),
        ("generate.length_penalty", 10.1, "at most 10.0", {"generate.beam": 2, "generate.stop": ["."]}),
    ],
)
def test_a_range_holds_where_the_option_has_an_effect(key: str, value: float, rule: str, given: dict[str, Any]) -> None:
    assert _lines({**given, key: value}) == [f"`{key}` must be {rule}. Got {value}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("corpus.max_chars", 0),
        ("train.weight_decay", 1.0),
        ("train.accumulate", 1),
        ("generate.top_p", 1.0),
        ("generate.top_p", 1e-9),
        ("generate.repetition_penalty", 100.0),
        ("corpus.max_tokens", 0),
        ("tokenizer.min_freq", 1),
        ("model.hidden_size", 16384),
        ("model.num_layers", 16),
        ("model.embedding_size", 0),
        ("model.dropout", 0.0),
        ("train.epochs", 1_000_000),
        ("train.batch_size", 1),
        ("train.num_steps", 1),
        ("train.learning_rate", 1e6),
        ("train.clip_norm", 0.0),
        ("train.seed", 2**32 - 1),
        ("generate.length", 10_000),
        ("generate.temperature", 5.0),
        ("generate.seed", 2**32 - 1),
    ],
)
def test_the_limit_itself_is_allowed(key: str, value: float) -> None:
    assert flatten(override(DEFAULT, SAMPLED | {key: value}))[key] == value


def test_every_mistake_is_reported() -> None:
    lines = _lines({"train.epochs": "many", "train.batchsize": 3, "model.dropout": 2.0, "tokenizer.level": "bytes"})
    assert len(lines) == 4
    assert [line.split("`")[1] for line in lines if line.startswith("`")] == [
        "train.epochs",
        "tokenizer.level",
        "model.dropout",
    ]


def test_broken_rules_and_ranges_are_reported_together() -> None:
    lines = _lines({"train.epochs": 0, "train.device": "gpu", "cells": ["elman"]})
    assert [line.split(" ")[0] for line in lines] == ["`train.epochs`", "unknown", "`train.device`"]


def test_a_value_that_cannot_be_read_breaks_no_second_rule() -> None:
    config = override(DEFAULT, {"corpus.split": "100/0/0", "evaluate.split": "train"})
    with pytest.raises(ConfigError) as caught:
        override(config, {"corpus.split": 5, "evaluate.split": "valid"})
    assert caught.value.lines == ["`corpus.split` must be a string. Got 5"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.epoch", "train.epochs"),
        ("train.batchsize", "train.batch_size"),
        ("model.hidden", "model.hidden_size"),
        ("epochs", "train.epochs"),
        ("learning_rate", "train.learning_rate"),
        ("model.learning_rate", "train.learning_rate"),
        ("corpus.normaliser", "corpus.normalizer"),
        ("cell", "cells"),
    ],
)
def test_a_misspelt_key_gets_a_suggestion(key: str, meant: str) -> None:
    (line,) = _lines({key: 1})
    assert line.startswith(f"unknown config key: {key}: did you mean {meant}?")


def test_a_section_is_no_key() -> None:
    (line,) = _lines({"train": {"epochs": 3}})
    assert line.startswith("unknown config key: train: ")


def test_an_unknown_cell_gets_a_suggestion() -> None:
    assert _lines({"cells": ["gru", "lstn"]}) == [
        "unknown cell: lstn: did you mean lstm? (known: rnn, gru, lstm, ngram)"
    ]


def test_a_cell_is_named_once() -> None:
    assert _lines({"cells": ["gru", "rnn", "gru", "gru"]}) == ["`cells` must name each cell once. Got gru twice"]


@pytest.mark.parametrize("cells", [[], "", "[]"])
def test_there_must_be_a_cell(cells: object) -> None:
    assert _lines({"cells": cells}) == ["`cells` must name at least one of rnn, gru, lstm, ngram. Got none"]


@pytest.mark.parametrize("split", ["90/10", "90/5/5/0", "0/50/50", "90/5/-5", "90/5/5.0", "a/b/c", "", "Given", "//"])
def test_a_split_is_three_whole_numbers_or_given(split: str) -> None:
    assert _lines({"corpus.split": split}) == [
        f"`corpus.split` must be three whole numbers like 90/5/5, the first above 0, or `given`. Got {split!r}"
    ]


def test_shares_are_numbers_and_given_has_none() -> None:
    assert CorpusConfig(split="8/1/1").shares == (8, 1, 1)
    assert CorpusConfig(split="given").shares is None


@pytest.mark.parametrize(
    ("split", "there"),
    [("90/5/5", {"train", "valid", "test"}), ("90/10/0", {"train", "valid"}), ("1/0/0", {"train"})],
)
def test_a_split_holds_something_when_it_has_a_share(split: str, there: set[str]) -> None:
    config = CorpusConfig(split=split)
    assert {name for name in ("train", "valid", "test") if config.has_split(name)} == there


def test_the_evaluated_split_must_hold_something() -> None:
    assert _lines({"corpus.split": "90/10/0"}) == [
        "`evaluate.split` must name a split that holds something (train, valid under corpus.split=90/10/0). Got test"
    ]
    assert override(DEFAULT, {"corpus.split": "90/10/0", "evaluate.split": "valid"}).evaluate.split == "valid"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_that_can_be_named(device: str) -> None:
    assert override(DEFAULT, {"train.device": device}).train.device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_other_devices_are_refused(device: str) -> None:
    assert _lines({"train.device": device}) == [f"`train.device` must be auto, cpu, cuda or cuda:N. Got {device!r}"]


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_a_precision_that_needs_a_gpu_is_refused_on_the_cpu(precision: str) -> None:
    assert _lines({"train.precision": precision, "train.device": "cpu"}) == [
        f"`train.precision` must be float32 or bfloat16 on the cpu. Got {precision}"
    ]
    assert override(DEFAULT, {"train.precision": precision}).train.precision == precision


def test_what_says_where_and_how_is_a_key() -> None:
    assert set(PLACE) < set(flatten(DEFAULT))
    assert "train.processes" not in PLACE  # it changes last digits


def test_each_process_takes_a_row_and_a_gpu_of_its_own() -> None:
    assert override(DEFAULT, {"train.processes": 32, "train.device": "cuda"}).train.processes == 32
    assert _lines({"train.processes": 33}) == [
        "`train.processes` must be at most train.batch_size (32): each takes rows. Got 33"
    ]
    assert _lines({"train.processes": 2, "train.device": "cuda:1"}) == [
        "`train.device` must be cuda with train.processes=2: one GPU each. Got cuda:1"
    ]
    assert _lines({"train.processes": 0}) == ["`train.processes` must be at least 1. Got 0"]


def test_max_tokens_must_fill_a_batch() -> None:
    need = 32 * 35 + 35 + 1
    assert override(DEFAULT, {"corpus.max_tokens": need}).corpus.max_tokens == need
    assert _lines({"corpus.max_tokens": need - 1}) == [
        f"`corpus.max_tokens` must be at least {need} to fill one batch of 32 x 35. Got {need - 1}"
    ]


def test_the_random_partition_needs_one_token_less() -> None:
    sequential, random = (TrainConfig(partition=kind).fewest_tokens for kind in ("sequential", "random"))
    assert sequential == random + 1


def test_an_empty_prefix_is_refused() -> None:
    assert _lines({"generate.prefixes": ["a", ""]}) == ["`generate.prefixes`: prefix is empty. Got ''"]


@pytest.mark.parametrize(
    ("key", "value", "otherwise", "wanted"),
    [
        ("tokenizer.bpe_size", 300, {}, {"tokenizer.level": "bpe"}),
        ("tokenizer.bpe_size", 300, {"tokenizer.level": "byte"}, {"tokenizer.level": "bpe"}),
        ("tokenizer.min_freq", 2, {"tokenizer.level": "byte"}, {"tokenizer.level": "word"}),
        ("tokenizer.min_freq", 2, {"tokenizer.level": "bpe"}, {"tokenizer.level": "char"}),
        ("model.reset_gate", "after", {"cells": ["rnn", "lstm"]}, {"cells": ["rnn", "gru"]}),
        ("model.init_range", 0.2, {}, {"model.init": "uniform"}),
        ("model.init_range", 0.2, {"model.init": "book"}, {"model.init": "uniform"}),
        ("train.momentum", 0.9, {"train.optimizer": "adam"}, {"train.optimizer": "sgd"}),
        ("train.momentum", 0.9, {"train.optimizer": "adamw"}, {"train.optimizer": "sgd"}),
        ("train.momentum", 0.9, {"train.optimizer": "nt-asgd"}, {"train.optimizer": "sgd"}),
        ("train.non_monotone", 3, {"train.optimizer": "sgd"}, {"train.optimizer": "nt-asgd"}),
        ("train.bptt", "random", {"train.partition": "random"}, {}),
        ("train.cuda_graph", "on", {"train.bptt": "random"}, {}),
        ("train.temporal_activation_regularization", 1.0, {"train.num_steps": 1}, {}),
        ("train.softmax_samples", 9, {"model.mixture": 2}, {}),
        ("model.mixture", 2, {"model.softmax": "adaptive"}, {}),
        ("model.dropout", 0.3, {"model.dropout_output": 0.2}, {"model.num_layers": 2}),
        ("model.dropout_input", 0.3, {}, {"model.embedding_size": 8}),
        ("model.dropout_embedding", 0.3, {}, {"model.embedding_size": 8}),
        ("model.dropout_hidden", 0.3, {}, {"model.num_layers": 2}),
        ("model.variational_dropout", True, {}, {"model.dropout": 0.1}),
        ("model.variational_dropout", True, {"model.dropout_output": 0.0}, {"model.dropout_output": 0.1}),
        ("train.decay", 3.0, {}, {"train.schedule": "step"}),
        ("train.decay", 3.0, {"train.schedule": "cosine"}, {"train.schedule": "plateau"}),
        ("train.decay_after", 3, {}, {"train.schedule": "step"}),
        ("train.decay_after", 3, {"train.schedule": "plateau"}, {"train.schedule": "step"}),
        ("train.cuda_graph", "on", {"train.device": "cpu"}, {"train.device": "cuda"}),
        ("train.cuda_graph", "off", {"train.device": "cpu"}, {}),
        ("train.cuda_graph", "on", {"train.processes": 2}, {}),
        ("generate.seed", 3, {}, SAMPLED),
        ("generate.top_k", 3, {}, SAMPLED),
        ("generate.top_p", 0.9, {}, SAMPLED),
        ("generate.beam", 2, SAMPLED, {"generate.temperature": 0.0}),
        ("generate.length_penalty", 1.0, {}, {"generate.beam": 2, "generate.stop": ["."]}),
        ("generate.length_penalty", 1.0, {"generate.beam": 2}, {"generate.beam": 2, "generate.stop": ["."]}),
    ],
)
def test_an_option_without_effect_is_refused(
    key: str, value: object, otherwise: dict[str, Any], wanted: dict[str, Any]
) -> None:
    (line,) = _lines({**otherwise, key: value})
    assert line.startswith(f"`{key}` has no effect ")
    assert line.endswith(f". Got {value}")
    assert flatten(override(DEFAULT, {**wanted, key: value}))[key] == value


@pytest.mark.parametrize("value", [True, "true"])
def test_a_language_model_is_not_bidirectional(value: object) -> None:
    (line,) = _lines({"model.bidirectional": value})
    assert line.startswith("`model.bidirectional` must be false: ")
    assert "perplexity that means nothing" in line
    assert override(DEFAULT, {"model.bidirectional": "false"}) == DEFAULT


@pytest.mark.parametrize("value", [1, 0, "yes", "", None, [True]])
def test_what_is_neither_true_nor_false_is_refused(value: object) -> None:
    assert _lines({"model.tie_weights": value}) == [f"`model.tie_weights` must be true or false. Got {value!r}"]


def test_a_reset_gate_before_the_product_needs_scratch() -> None:
    (line,) = _lines({"model.reset_gate": "before"})
    assert line.startswith("`model.reset_gate` before needs `model.implementation` scratch")
    changes = {"model.reset_gate": "before", "model.implementation": "scratch"}
    assert override(DEFAULT, changes).model.reset_gate == "before"


def test_tied_weights_of_one_layer_need_equal_sizes() -> None:
    changes = {"model.tie_weights": True, "model.hidden_size": 256}
    assert _lines(changes) == ["`model.tie_weights` needs an embedding: set model.embedding_size. Got 0"]
    assert _lines({**changes, "model.embedding_size": 255}) == [
        "`model.tie_weights` with one layer needs model.embedding_size equal to model.hidden_size (256). Got 255"
    ]
    assert override(DEFAULT, {**changes, "model.embedding_size": 256}).model.layer_sizes == (256,)
    deep = override(DEFAULT, {**changes, "model.embedding_size": 255, "model.num_layers": 3})
    assert deep.model.layer_sizes == (256, 256, 255)
    mixed = override(DEFAULT, {**changes, "model.embedding_size": 255, "model.mixture": 4})
    assert mixed.model.layer_sizes == (256,)


@pytest.mark.parametrize("level", ["char", "byte", "bpe"])
def test_line_ends_are_counted_among_words_alone(level: str) -> None:
    (line,) = _lines({"tokenizer.eos": "line", "tokenizer.level": level})
    assert line.startswith(f"`tokenizer.eos` has no effect at level {level}")


@pytest.mark.parametrize(("normalizer", "keeps"), [("none", True), ("d2l-lines", True), ("letters", False)])
def test_line_ends_are_counted_where_the_normalizer_keeps_them(normalizer: str, keeps: bool) -> None:
    changes = {"tokenizer.eos": "line", "tokenizer.level": "word", "corpus.normalizer": normalizer}
    if keeps:
        assert override(DEFAULT, changes).tokenizer.eos == "line"
    else:
        (line,) = _lines(changes)
        assert line.startswith("`tokenizer.eos` line needs a normalizer that keeps lines")


def test_patience_plateau_and_averaging_need_a_validation_split() -> None:
    changes = {"train.patience": 7, "train.schedule": "plateau", "train.optimizer": "nt-asgd"}
    assert override(DEFAULT, changes).train.patience == 7
    lines = _lines({**changes, "corpus.split": "90/0/10"})
    assert [line.split(" needs ")[0] for line in lines] == [
        "`train.patience`",
        "`train.schedule` plateau",
        "`train.optimizer` nt-asgd",
    ]


def test_max_chars_needs_a_corpus_in_one_file() -> None:
    (line,) = _lines({"corpus.max_chars": 5, "corpus.split": "given"})
    assert line.startswith("`corpus.max_chars` needs a corpus in one file")
    assert override(DEFAULT, {"corpus.max_chars": 5}).corpus.max_chars == 5


def test_an_empty_stop_token_is_refused() -> None:
    assert _lines({"generate.stop": ["a", ""]}) == ["`generate.stop` must hold no empty token. Got ''"]


@pytest.mark.parametrize(
    ("implementation", "cell", "given", "settled"),
    [
        ("concise", "gru", "auto", "after"),
        ("scratch", "gru", "auto", "before"),
        ("scratch", "gru", "after", "after"),
        ("scratch", "lstm", "after", "auto"),
        ("concise", "rnn", "auto", "auto"),
    ],
)
def test_the_reset_gate_is_settled_for_the_gru_alone(implementation: Any, cell: str, given: Any, settled: str) -> None:
    config = ModelConfig(implementation=implementation, reset_gate=given, hidden_size=3)
    assert config.for_cell(cell) == replace(config, reset_gate=settled)


def test_a_refused_change_leaves_the_config_as_it_was() -> None:
    config = RunConfig()
    with pytest.raises(ConfigError, match="must be at least 1"):
        override(config, {"train.epochs": 0})
    assert config == DEFAULT


@pytest.mark.parametrize("tokens", [["<unk>"], [""], ["a", "a"]])
def test_reserved_tokens_are_different_and_none_is_there_already(tokens: list[str]) -> None:
    (line,) = _lines({"tokenizer.reserved_tokens": tokens})
    assert line.startswith("`tokenizer.reserved_tokens` must be different tokens, none empty or <unk>. Got ")


def test_patience_ends_before_the_training_does() -> None:
    (line,) = _lines({"train.patience": 5, "train.epochs": 5})
    assert line == "`train.patience` must be below train.epochs (5) to have an effect. Got 5"
    assert override(DEFAULT, {"train.patience": 4, "train.epochs": 5}).train.patience == 4


@pytest.mark.parametrize("value", [",", ",,"])
def test_a_comma_is_not_silently_no_list(value: str) -> None:
    (line,) = _lines({"generate.stop": value})
    assert line == f"""`generate.stop` must be a list; a comma itself is written [","]. Got {value!r}"""
    assert override(DEFAULT, {"generate.stop": '[","]'}).generate.stop == (",",)
