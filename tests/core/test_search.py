"""What a sweep may try: every proposal is a config, every mistake is told before anything starts."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rnnlm_core import presets
from rnnlm_core.config import ModelConfig, RunConfig, flatten
from rnnlm_core.config_rules import check
from rnnlm_core.errors import ConfigError, UsageError
from rnnlm_core.presets import PRESETS, run_config
from rnnlm_core.search import NEWER, Plan, difference, make_plan
from rnnlm_core.search_space import Dimension, Value


def drawn(plan: Plan, seed: int) -> dict[str, Value]:
    """Return a proposal at random."""
    draw = random.Random(seed)  # noqa: S311 - no secret

    def suggest(dimension: Dimension) -> Value:
        if dimension.choices:
            return draw.choice(dimension.choices)
        if isinstance(dimension.low, int) and isinstance(dimension.high, int):
            return draw.randint(dimension.low, dimension.high)
        return dimension.tidy(draw.uniform(dimension.low, dimension.high))

    return plan.propose(suggest)


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name]().corpus.has_split("valid")])
def test_whatever_the_default_search_proposes_is_a_config(name: str) -> None:
    plan = make_plan(name)
    assert {"train.learning_rate", "model.hidden_size", "model.dropout"} <= {d.key for d in plan.dimensions}
    for seed in range(20):
        config = plan.configured(drawn(plan, seed))
        check(config)
        assert len(config.cells) == 1


@pytest.mark.parametrize("name", ["smoke", "time-machine-words", "ptb-zaremba-small"])
def test_a_sweep_starts_from_the_preset_itself_with_each_cell(name: str) -> None:
    plan = make_plan(name)
    starts = [plan.configured(values) for values in plan.starts()]
    assert starts == [run_config(name, cells=[cell]) for cell in run_config(name).cells]


def test_a_preset_outside_the_search_is_no_start() -> None:
    assert list(make_plan("smoke", search=["train.learning_rate=log:0.1..4"]).starts()) == []


@pytest.mark.parametrize("name", ["d2l-time-machine", "lyrics"])
def test_a_sweep_needs_a_validation_split(name: str) -> None:
    with pytest.raises(ConfigError, match=r"chooses by the validation split, .*: use --set corpus\.split=90/5/5"):
        make_plan(name)
    assert make_plan(name, changes={"corpus.split": "90/5/5"}).config.corpus.has_split("valid")


def test_the_three_forms_of_a_space() -> None:
    search = [
        "model.hidden_size=64, 128",
        "model.dropout=0..0.6",
        "train.learning_rate=log:0.1..4",
        "train.epochs=1..3",
    ]
    assert make_plan("smoke", cells=["gru"], search=search).dimensions == (
        Dimension("model.hidden_size", (64, 128)),
        Dimension("model.dropout", low=0.0, high=0.6),
        Dimension("train.learning_rate", low=0.1, high=4.0, log=True),
        Dimension("train.epochs", low=1, high=3),
    )


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ("train.learing_rate=1,2", "unknown config key: train.learing_rate: did you mean train.learning_rate?"),
        ("train.learning_rate", "`--search` takes KEY=SPACE: train.learning_rate: KEY=64,128,256 (one of these), KEY="),
        ("model.hidden_size=", "`--search` takes KEY=SPACE: model.hidden_size=: "),
        ("model.hidden_size=64", "needs two or more different values of model.hidden_size: 64: KEY=64,128,256"),
        ("model.hidden_size=64,64", "needs two or more different values of model.hidden_size: 64,64"),
        ("model.hidden_size=64,big", "`model.hidden_size` must be an integer. Got 'big'"),
        ("train.epochs=1.5..3", "`train.epochs` must be an integer. Got '1.5'"),
        ("train.learning_rate=2..1", "must be searched from a lower to a higher number: 2..1"),
        ("train.learning_rate=1..inf", "must be searched from a lower to a higher number: 1..inf"),
        ("train.learning_rate=log:0..1", "`train.learning_rate` has no logarithm at 0.0: log:0..1: begin above 0"),
        ("train.optimizer=sgd..adam", "`train.optimizer` has no numbers to search between: sgd..adam: list its values"),
        ("train.optimizer=sgd,adamm", "`train.optimizer` must be one of sgd, adam, adamw, nt-asgd. Got 'adamm'"),
        ("tokenizer.level=char,word", "`tokenizer.level` cannot be searched: char,word: a sweep varies model.* and"),
        ("train.device=cpu,cuda", "`train.device` cannot be searched: cpu,cuda"),
        ("train.cuda_graph=on,off", "`train.cuda_graph` cannot be searched: on,off"),
        ("cells=rnn,gru", "`cells` is searched by naming several: rnn,gru: use --cells rnn,gru"),
        (
            "train.epochs=0..3",
            "the search can propose no config: cell=rnn, train.epochs=0: `train.epochs` must be at l",
        ),
        ("model.dropout=0.5..1", "model.dropout=1.0: `model.dropout` must be below 1.0. Got 1.0"),
        ("train.batch_size=16,32", "`train.batch_size` is both set and searched: train.batch_size=16,32: leave out"),
    ],
)
def test_a_mistake_is_a_line_that_says_what_is_understood(search: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan("smoke", changes={"train.batch_size": 8}, search=[search])
    (line,) = caught.value.lines
    assert told in line


def test_several_mistakes_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan("smoke", search=["train.epoch=1,2", "model.dropout", "train.epochs=1,2", "train.epochs=2,3"])
    assert len(caught.value.lines) == 3


def test_a_combination_that_is_no_config_is_found_before_it_is_proposed() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs=2, train\.patience=2: `train\.patience` must be below"):
        make_plan("smoke", cells=["gru"], search=["train.epochs=2..5", "train.patience=0..2"])
    make_plan("smoke", cells=["gru"], search=["train.epochs=3..5", "train.patience=0..2"])


def test_more_choices_than_can_be_checked_are_refused() -> None:
    search = [f"{key}=1..2" for key, value in flatten(RunConfig()).items() if type(value) is int and "train." in key]
    search += [f"model.{key}=0.1..0.2" for key in ("dropout", "init_range")] + ["model.init=auto,torch,book,uniform"]
    search += ["train.loss=mean,steps", "train.optimizer=sgd,adam,adamw", "train.schedule=constant,step,plateau,cosine"]
    with pytest.raises(ConfigError, match="too many choices to check them beforehand"):
        make_plan("smoke", search=search)


def test_an_option_is_proposed_only_where_it_has_an_effect() -> None:
    plan = make_plan(
        "smoke",
        search=["train.momentum=0..0.9", "train.optimizer=sgd,adamw", "model.reset_gate=auto,after"],
    )
    proposals = [drawn(plan, seed) for seed in range(40)]
    assert {("train.momentum" in p, p["train.optimizer"]) for p in proposals} == {(True, "sgd"), (False, "adamw")}
    assert {("model.reset_gate" in p, p["cell"]) for p in proposals} == {(True, "gru"), (False, "rnn"), (False, "lstm")}
    for values in proposals:
        plan.configured(values)


def test_an_option_is_asked_for_after_those_that_it_needs() -> None:
    search = ["model.variational_dropout=true,false", "model.dropout=0.1..0.5"]
    plan = make_plan("smoke", cells=["gru"], search=search)
    assert {drawn(plan, seed)["model.variational_dropout"] for seed in range(8)} == {True, False}
    plan = make_plan("smoke", cells=["gru"], search=[search[0], "model.dropout=0,0.5"])
    asked = {("model.variational_dropout" in p, p["model.dropout"]) for p in (drawn(plan, seed) for seed in range(20))}
    assert asked == {(True, 0.5), (False, 0.0)}


@pytest.mark.parametrize("base", ["sequential", "random"])
@pytest.mark.parametrize(
    "search",
    [
        ["train.bptt=fixed,random", "train.partition=sequential,random"],
        ["train.partition=sequential,random", "train.bptt=fixed,random"],
    ],
)
def test_the_order_in_which_keys_are_typed_refuses_none(
    search: list[str], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = PRESETS["smoke"]()
    monkeypatch.setitem(PRESETS, "based", lambda: replace(smoke, train=replace(smoke.train, partition=base)))
    plan = make_plan("based", cells=["gru"], search=search)
    trained = {(config.train.partition, config.train.bptt) for config in plan.corners()}
    assert trained == {("sequential", "fixed"), ("sequential", "random"), ("random", "fixed")}


def test_keys_that_need_no_other_stay_in_their_order() -> None:
    # It decides what is drawn for a trial of a sweep that is resumed: words first, else as typed.
    search = ["model.dropout=0..0.5", "model.num_layers=1,2", "train.momentum=0..0.9", "train.optimizer=sgd,adamw"]
    keys = [dimension.key for dimension in make_plan("smoke", search=search).dimensions]
    assert keys == ["cell", "train.optimizer", "model.dropout", "model.num_layers", "train.momentum"]
    keys = [dimension.key for dimension in make_plan("ptb-awd").dimensions]
    assert keys == [
        "train.learning_rate", "model.hidden_size", "model.num_layers", "model.dropout", "train.clip_norm",
    ]  # fmt: skip


def test_a_key_that_would_never_be_tried_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan("smoke", search=["model.variational_dropout=true,false", "train.momentum=0..0.9", "train.epochs=2,3"])
    assert sorted(line.split(": leave")[0] for line in caught.value.lines) == [
        "`model.variational_dropout` would never be tried, for it has no effect without dropout: true,false",
        "`train.momentum` would never be tried, for it has no effect without train.optimizer=sgd: 0.0..0.9",
    ]


def test_a_tied_embedding_is_as_wide_as_the_hidden_layer() -> None:
    plan = make_plan("time-machine-words", cells=["lstm"], search=["model.hidden_size=64,128"])
    for size in (64, 128):
        config = plan.configured({"model.hidden_size": size})
        assert (config.model.hidden_size, config.model.embedding_size) == (size, size)
    both = make_plan("smoke", cells=["gru"], search=["model.tie_weights=true,false"])
    assert both.configured({"model.tie_weights": True}).model.embedding_size == 64
    assert both.configured({"model.tie_weights": False}).model.embedding_size == 32
    with pytest.raises(ConfigError, match=r"`model\.tie_weights` with one layer needs model\.embedding_size equal"):
        make_plan("time-machine-words", changes={"model.embedding_size": 256}, search=["model.hidden_size=128,256"])


def test_a_tied_embedding_of_another_width_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(hidden_size=64, num_layers=2, embedding_size=32, tie_weights=True)
    monkeypatch.setitem(PRESETS, "apart", lambda: replace(PRESETS["smoke"](), cells=("gru",), model=model))
    plan = make_plan("apart", search=["model.hidden_size=48,96", "model.num_layers=1,2"])
    deep, flat = (plan.configured({"model.hidden_size": 96, "model.num_layers": layers}).model for layers in (2, 1))
    assert (deep.embedding_size, flat.embedding_size) == (32, 96)
    both = make_plan("apart", search=["model.embedding_size=16,32"])
    assert both.configured({"model.embedding_size": 16}).model.layer_sizes == (64, 16)
    with pytest.raises(ConfigError, match="a tied embedding is as wide as the hidden layer"):
        make_plan("time-machine-words", cells=["gru"], search=["model.embedding_size=16,32"])


def test_the_embedding_of_a_tied_mixture_keeps_its_width() -> None:
    one_layer = {"model.mixture": 15, "model.num_layers": 1, "model.hidden_size": 960}
    plan = make_plan("ptb-awd", changes=one_layer, search=["model.weight_drop=0.1..0.5"])
    assert {config.model.embedding_size for config in plan.corners()} == {400}
    mixed = make_plan("ptb-awd", search=["model.mixture=0,15", "model.num_layers=1,3"])
    models = [config.model for config in mixed.corners()]
    widths = {(model.mixture, model.num_layers): model.embedding_size for model in models}
    assert widths == {(0, 1): 1150, (0, 3): 400, (15, 1): 400, (15, 3): 400}


def test_a_searched_width_of_the_embedding_is_the_one_that_is_trained() -> None:
    search = ["model.embedding_size=200,400", "model.num_layers=1,3"]
    with pytest.raises(
        ConfigError, match=r"under one layer is as wide as that: .*=200,400: search it with .* of 2 or more"
    ):
        make_plan("ptb-awd", search=search)
    with pytest.raises(ConfigError, match="under one layer"):
        make_plan("ptb-awd", search=[*search, "model.mixture=0,15"])
    for plan in (
        make_plan("ptb-awd", changes={"model.mixture": 15}, search=search),
        make_plan("ptb-awd", search=[search[0], "model.num_layers=2,3"]),
    ):
        for seed in range(8):
            values = drawn(plan, seed)
            assert plan.configured(values).model.embedding_size == values["model.embedding_size"]


@pytest.mark.parametrize(
    ("preset", "changes", "search"),
    [
        ("smoke", {"train.epochs": "3", "generate.prefixes": "The ,A "}, None),
        ("time-machine-words", {}, None),
        ("smoke", {"model.reset_gate": "after"}, ["train.optimizer=sgd,adam", "train.momentum=0..0.9"]),
    ],
)
def test_the_command_and_the_preset_function_are_the_proposal(
    preset: str, changes: dict[str, str], search: list[str] | None
) -> None:
    plan = make_plan(preset, changes=changes, search=search)
    for seed in range(12):
        values = drawn(plan, seed)
        expected = plan.configured(values)
        words = plan.command(values)
        assert words[:3] == ["run", "--preset", preset]
        options = list(zip(words[1::2], words[2::2], strict=True))
        sets = dict(value.split("=", 1) for option, value in options if option == "--set")
        (cells,) = [value for option, value in options if option == "--cells"]
        assert run_config(preset, None, [cells], sets) == expected
        source = plan.preset_function(values, "Told.")
        assert len(source.strip().splitlines()) == 3
        names: dict[str, Any] = dict(vars(presets))
        exec(source, names)  # noqa: S102 - what people are told to paste
        (made,) = [value for name, value in names.items() if name.endswith("_swept")]
        assert made() == expected


def test_the_same_request_has_the_same_name_and_any_other_another(tmp_path: Path) -> None:
    text = tmp_path / "My Text.txt"
    text.write_text("the time traveller " * 500)

    def name(**asked: Any) -> str:
        return make_plan("smoke", **{"corpus": str(text), "cells": ["gru"], "changes": {}, **asked}).name

    first = name()
    assert first.startswith("smoke-my-text-txt-gru-")
    assert name() == first
    assert name(changes={"train.device": "cpu"}) == first  # a place, no setting
    assert name(changes={"train.cuda_graph": "off"}) == first
    assert name(changes={"generate.length": 3}) == first
    others = [name(cells=["rnn"]), name(changes={"train.epochs": 3}), name(search=["train.epochs=2..3"])]
    others += [name(changes={"train.precision": "bfloat16"}), name(changes={"train.processes": 2})]
    text.write_text("the time traveler " * 500)
    assert len({first, name(), *others}) == 7
    assert name(name="mine.1") == "mine.1"


@pytest.mark.parametrize("name", ["", "two words", "../up", "ü", "a" * 101])
def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(ConfigError, match="`--name` must be up to 100 letters, digits"):
        make_plan("smoke", name=name)


def test_a_sweep_from_before_a_key_existed_is_the_same_one() -> None:
    assert not dict(NEWER).keys() & make_plan("smoke", cells=["gru"]).definition.keys()
    assert {"train.precision", "model.mixture", "train.bptt"} < dict(NEWER).keys() <= flatten(RunConfig()).keys()
    assert all(flatten(RunConfig())[key] == value for key, value in NEWER)
    lower = make_plan("smoke", cells=["gru"], changes={"train.precision": "bfloat16"}).definition
    assert lower["train.precision"] == "bfloat16"


def test_what_differs_is_named() -> None:
    one = make_plan("smoke", cells=["gru"], search=["train.epochs=2..3"]).definition
    other = make_plan("smoke", cells=["rnn"], search=["train.epochs=2..4"], changes={"model.dropout": 0.1}).definition
    assert difference(one, one) == []
    assert difference(one, other) == [
        "cells was gru, is rnn",
        "model.dropout was 0.0, is 0.1",
        "search train.epochs was 2..3, is 2..4",
    ]


def test_unknown_names_are_told_as_by_run() -> None:
    with pytest.raises(UsageError, match="unknown preset: smok: did you mean smoke"):
        make_plan("smok")
