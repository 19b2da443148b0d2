"""What a sweep tries: the config it starts from, the keys that vary, and what makes two sweeps the same one."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rnnlm_core.config import NGRAM, OF_NGRAMS, PLACE, ModelConfig, RunConfig, flatten
from rnnlm_core.config_rules import has_effect, why_without_effect
from rnnlm_core.config_values import override, read_value
from rnnlm_core.download import Source, resolve, without_password
from rnnlm_core.errors import ConfigError, one_line
from rnnlm_core.presets import run_config
from rnnlm_core.search_space import Dimension, Value, default_search, parse_search, typed

CELL = "cell"
OF_A_TRAINING = ("corpus", "tokenizer", "model", "train")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_CORNERS = 20_000

NEWER = (
    ("train.precision", "float32"),
    ("train.processes", 1),
    ("train.softmax_samples", 0),
    ("model.softmax", "full"),
    ("model.order", 5),
    ("model.discounts", "modified"),
    ("model.dropout_input", 0.0),
    ("model.dropout_hidden", 0.0),
    ("model.dropout_output", 0.0),
    ("model.dropout_embedding", 0.0),
    ("model.variational_dropout", False),
    ("model.weight_drop", 0.0),
    ("model.mixture", 0),
    ("train.bptt", "fixed"),
    ("train.non_monotone", 5),
    ("train.activation_regularization", 0.0),
    ("train.temporal_activation_regularization", 0.0),
)
"""Keys at the values that all had before they were keys: a sweep from then is still the same one."""


@dataclass(frozen=True)
class Plan:
    """A sweep: where it starts from, what it varies, and its name.

    `corpus` and `changes` are what was asked for, `config` is what they come to; `source` is the text, and
    `hungriest` the config among all proposals that needs most of it.
    """

    name: str
    preset: str
    corpus: str | None
    changes: dict[str, Any]
    config: RunConfig
    source: Source
    dimensions: tuple[Dimension, ...]
    hungriest: RunConfig

    def propose(self, suggest: Callable[[Dimension], Value]) -> dict[str, Value]:
        """Return a value for each key that varies; a key that the others leave without effect is not asked for."""
        values: dict[str, Value] = {}
        flat = flatten(self.config)
        # A key not asked for yet stands at a value of its search: that of the config may be none that it can get.
        later = {dimension.key: dimension.corners[0] for dimension in self.dimensions}
        for dimension in self.dimensions:
            if has_effect(dimension.key, self._beside(flat, later | values)):
                values[dimension.key] = suggest(dimension)
            del later[dimension.key]
        return values

    def starts(self) -> Iterator[dict[str, Value]]:
        """Yield what the preset itself would be as a proposal, once per cell, if it lies within the search."""
        flat = flatten(self.config)
        for cell in self.config.cells:
            here = flat | {CELL: cell}
            values = self.propose(_found_in(here))
            if all(d.holds(values[d.key]) for d in self.dimensions if d.key in values):
                yield values

    def cell(self, values: Mapping[str, Value]) -> str:
        """Return the cell of a proposal."""
        return str(values.get(CELL, self.config.cells[0]))

    def changed(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the config keys and values of a proposal; a tied embedding is as wide as the hidden layer.

        Unless the sweep starts from a tied one that is not: then it stays so where there is more than one layer. The
        embedding of a mixture has the width that is configured or proposed.
        """
        keys = {key: value for key, value in values.items() if key != CELL}
        model = self.config.model
        tied = keys.get("model.tie_weights", model.tie_weights) and self.cell(values) != NGRAM
        follows = tied and not keys.get("model.mixture", model.mixture)
        one_layer = keys.get("model.num_layers", model.num_layers) == 1
        chosen = "model.embedding_size" in self.changes or "model.embedding_size" in keys
        if follows and not chosen and (one_layer or not _tied_apart(model)):
            keys["model.embedding_size"] = keys.get("model.hidden_size", model.hidden_size)
        return keys

    def configured(self, values: Mapping[str, Value]) -> RunConfig:
        """Return the config of a proposal, with its one cell; raises `ConfigError` if it is none."""
        # What is set for another cell alone goes with it.
        return override(self.config, {**self.changed(values), "cells": (self.cell(values),)})

    def corners(self) -> Iterator[RunConfig]:
        """Yield the configs at the limits of the search, which hold every rule if all others do.

        Raises `ConfigError` for the first that is none.
        """
        seen = set()
        for corner in self._limits():
            at = dict(zip((dimension.key for dimension in self.dimensions), corner, strict=True))
            values = self.propose(_found_in(at))
            if (key := tuple(values.items())) in seen:
                continue
            seen.add(key)
            try:
                yield self.configured(values)
            except ConfigError as error:
                shown = ", ".join(f"{key}={typed(value)}" for key, value in values.items())
                raise ConfigError(
                    *(f"the search can propose no config: {shown}: {rule}" for rule in error.args)
                ) from None

    def in_order(self) -> "Plan":
        """Return the plan with each key after those that decide whether it has an effect; else their order stays.

        Raises `ConfigError` if they are too many to be checked.
        """
        flat, limits = flatten(self.config), list(self._limits())
        keys = [dimension.key for dimension in self.dimensions]
        beside = [self._beside(flat, dict(zip(keys, limit, strict=True))) for limit in limits]
        needs = {}
        for key in keys:
            met = [has_effect(key, values) for values in beside]
            needs[key] = {keys[place] for place in _deciding(dict(zip(limits, met, strict=True)))}
        left, ordered = list(self.dimensions), []
        while left:
            unasked = {dimension.key for dimension in left}
            ordered.append(min(left, key=lambda dimension: len(needs[dimension.key] & unasked)))
            left.remove(ordered[-1])
        return replace(self, dimensions=tuple(ordered))

    @property
    def definition(self) -> dict[str, str]:
        """What makes two sweeps the same one, as texts."""
        varied = {dimension.key for dimension in self.dimensions}
        fixed = {
            key: typed(value)
            for key, value in flatten(self.config).items()
            if key.split(".")[0] in OF_A_TRAINING
            and key not in varied
            and key not in PLACE
            and (key, value) not in NEWER
        }
        digests = [digest for _, digest in self.source.files if digest]
        # The name of an address is its last part alone, which other addresses share.
        name = self.config.corpus.name if self.source.kind == "address" else self.source.name
        return {
            "preset": self.preset,
            "cells": ",".join(self.config.cells),
            **fixed,
            "corpus.name": without_password(name),
            **({"text": hashlib.sha256("".join(digests).encode()).hexdigest()[:12]} if digests else {}),
            **{f"search {dimension.key}": dimension.text for dimension in self.dimensions},
        }

    @property
    def digest(self) -> str:
        """A digest of the definition."""
        return hashlib.sha256(json.dumps(self.definition, sort_keys=True).encode()).hexdigest()

    def command(self, values: Mapping[str, Value]) -> list[str]:
        """Return the arguments of `rnnlm` that run a proposal as a whole."""
        arguments = ["run", "--preset", self.preset]
        if self.corpus is not None:
            arguments += ["--corpus", without_password(self.corpus)]
        arguments += ["--cells", self.cell(values)]
        for key, value in self._all_changes(values).items():
            arguments += ["--set", f"{key}={typed(value)}"]
        return arguments

    def preset_function(self, values: Mapping[str, Value], told: str) -> str:
        """Return a proposal as a preset: the three lines for `rnnlm_core/presets.py`."""
        name = re.sub(r"\W+", "_", f"{self.preset}_swept")
        changes = {key: list(v) if isinstance(v, tuple) else v for key, v in self._all_changes(values).items()}
        corpus = None if self.corpus is None else without_password(self.corpus)
        call = f"run_config({self.preset!r}, {corpus!r}, [{self.cell(values)!r}], {changes!r})"
        return f'def {name}() -> RunConfig:\n    """{told}"""\n    return {call}\n'

    def _limits(self) -> Iterator[tuple[Value, ...]]:
        number = math.prod(len(dimension.corners) for dimension in self.dimensions)
        if number > MOST_CORNERS:
            raise ConfigError(
                f"the search has too many choices to check them beforehand: {number:,}: search fewer keys"
            )
        return itertools.product(*(dimension.corners for dimension in self.dimensions))

    def _beside(self, flat: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
        return {**flat, **self.changed(values), "cells": (self.cell(values),)}

    def _all_changes(self, values: Mapping[str, Value]) -> dict[str, Any]:
        changes = {key: read_value(key, value) for key, value in self.changes.items()} | self.changed(values)
        if "corpus.name" in changes:
            changes["corpus.name"] = without_password(changes["corpus.name"])
        flat = flatten(self.configured(values))
        return {key: value for key, value in changes.items() if key != "cells" and has_effect(key, flat)}


def _found_in(values: Mapping[str, Value]) -> Callable[[Dimension], Value]:
    return lambda dimension: values[dimension.key]


def _deciding(met: Mapping[tuple[Value, ...], bool]) -> Iterator[int]:
    """Yield the places of the values that a condition depends on, given whether each combination meets it."""
    if len(set(met.values())) > 1:
        first = next(iter(met))
        for place, value in enumerate(first):
            if any(met[(*at[:place], value, *at[place + 1 :])] != here for at, here in met.items()):
                yield place


def make_plan(
    preset: str,
    corpus: str | None = None,
    cells: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    search: Sequence[str] | None = None,
    name: str | None = None,
) -> Plan:
    """Return the plan of a sweep, checked: whatever it proposes is a config.

    `cells` are a choice like any other when they are several; `search` (as it is typed) replaces the default.

    Raises `ConfigError` with a line per mistake.
    """
    config = run_config(preset, corpus, cells, changes)
    fixed = dict(changes or {})
    if not config.corpus.has_split("valid"):
        raise ConfigError(
            f"a sweep chooses by the validation split, and there is none: corpus.split={config.corpus.split}: "
            "use --set corpus.split=90/5/5"
        )
    if name is not None and not NAME.fullmatch(name):
        raise ConfigError(
            f"`--name` must be up to 100 letters, digits and . _ - (a letter or digit first). Got {one_line(name)!r}"
        )
    dimensions = default_search(config, fixed) if not search else parse_search(search, config, fixed)
    keys = {dimension.key for dimension in dimensions}
    if config.cells == (NGRAM,) and not keys & set(OF_NGRAMS):
        varied = " and ".join(OF_NGRAMS)
        raise ConfigError(f"a sweep of {NGRAM} alone varies {varied}: use --search model.order=2,3,4,5,6")
    if "model.embedding_size" in keys:
        _check_embedding(config.model, dimensions)
    if len(config.cells) > 1:
        dimensions = (Dimension(CELL, config.cells), *dimensions)
    # Words come first; `in_order` says which of them, and of the numbers, must wait for others.
    dimensions = tuple(sorted(dimensions, key=lambda d: not (d.choices and isinstance(d.choices[0], str | bool))))
    source = resolve(config.corpus.name)
    plan = Plan("", preset, corpus, fixed, config, source, dimensions, config).in_order()
    hungriest = max(plan.corners(), key=lambda corner: corner.fewest_tokens)
    if search:
        _check_asked(plan)
    return replace(plan, name=name or _default_name(plan), hungriest=hungriest)


def _check_asked(plan: Plan) -> None:
    """Raise `ConfigError` with a line for each key that is searched and has an effect in no config of the search."""
    never = {dimension.key: dimension for dimension in plan.dimensions if dimension.key != CELL}
    for corner in plan.corners():
        if not never:
            return
        flat = flatten(corner)
        reasons = {key: why_without_effect(key, flat) for key in never}
        never = {key: dimension for key, dimension in never.items() if reasons[key]}
    if never:
        raise ConfigError(
            *(
                f"`{key}` would never be tried, for it has no effect {reasons[key]}: {dimension.text}: "
                "leave it out, or set what it needs"
                for key, dimension in never.items()
            )
        )


def _check_embedding(model: ModelConfig, dimensions: Sequence[Dimension]) -> None:
    """Raise `ConfigError` if an embedding whose width is searched may be one that has none of its own."""
    searched = {dimension.key: dimension for dimension in dimensions}

    def may_be(name: str, value: Value) -> bool:
        dimension = searched.get(f"model.{name}")
        return dimension.holds(value) if dimension else getattr(model, name) == value

    if not (may_be("tie_weights", True) and may_be("mixture", 0)):
        return
    if not _tied_apart(model):
        raise ConfigError(
            "a tied embedding is as wide as the hidden layer: search model.hidden_size alone, or set two sizes first"
        )
    if may_be("num_layers", 1):
        raise ConfigError(
            "a tied embedding under one layer is as wide as that: model.embedding_size="
            f"{searched['model.embedding_size'].text}: search it with model.num_layers of 2 or more, or not at all"
        )


def _tied_apart(model: ModelConfig) -> bool:
    """Whether the embedding is tied and has a width of its own."""
    return model.tie_weights and model.embedding_size != model.hidden_size


def difference(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what differs between two definitions, in words."""
    keys = [*then, *(key for key in now if key not in then)]
    return [
        f"{key} was {then.get(key, 'not there')}, is {now.get(key, 'not there')}"
        for key in keys
        if then.get(key) != now.get(key)
    ]


def _default_name(plan: Plan) -> str:
    """Return a name that says what is swept, and is another one for every definition."""
    words = [plan.preset, plan.source.name, *plan.config.cells]
    slugs = [re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")[:24] for word in words]
    return "-".join([*filter(None, slugs), plan.digest[:8]])
