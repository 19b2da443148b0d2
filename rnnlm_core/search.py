"""What a sweep tries: the keys of the config that vary, the values they may take, and what defines the sweep.

A space is written `KEY=64,128,256` (one of these), `KEY=0..0.6` (anything between) or `KEY=log:0.1..4` (the same,
evenly in the logarithm). Without one, `default_search` varies what matters most around the values of the preset.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rnnlm_core.config import RunConfig, flatten, has_effect, override, read_value
from rnnlm_core.download import Source, resolve, without_password
from rnnlm_core.errors import ConfigError, one_line
from rnnlm_core.presets import run_config

Value = str | int | float | bool
CELL = "cell"
SEARCHABLE = ("model", "train")
"""Other sections change the tokens that the perplexity is per, or nothing that is measured while training."""
OF_A_TRAINING = ("corpus", "tokenizer", "model", "train")
FORMS = "KEY=64,128,256 (one of these), KEY=0..0.6 (between) or KEY=log:0.1..4 (between, in the logarithm)"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_CORNERS = 20_000
DIGITS = 4
"""Significant digits of a proposed number: more decide nothing, and nobody likes to read or type them."""


@dataclass(frozen=True)
class Dimension:
    """A key that varies: among `choices`, or from `low` to `high` (evenly in the logarithm if `log`)."""

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def text(self) -> str:
        """The space as it is typed."""
        if self.choices:
            return ",".join(_typed(choice) for choice in self.choices)
        return f"{'log:' if self.log else ''}{_typed(self.low)}..{_typed(self.high)}"

    @property
    def corners(self) -> tuple[Value, ...]:
        """The values at which a rule can break: every word, but of numbers the lowest and the highest."""
        if not self.choices:
            return self.low, self.high
        if any(isinstance(choice, str | bool) for choice in self.choices):
            return self.choices
        numbers = [choice for choice in self.choices if not isinstance(choice, str)]
        return min(numbers), max(numbers)

    def holds(self, value: object) -> bool:
        """Whether a value can be proposed."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def tidy(self, value: Value) -> Value:
        """Return a value with the digits that are worth having."""
        if not isinstance(value, float) or self.choices:
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


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
        for dimension in self.dimensions:
            if has_effect(dimension.key, flat):
                value = suggest(dimension)
                values[dimension.key] = value
                flat[dimension.key] = value
                if dimension.key == CELL:
                    flat["cells"] = (value,)
        return values

    def starts(self) -> Iterator[dict[str, Value]]:
        """Yield what the preset itself would be as a proposal, once per cell, if it lies within the search."""
        flat = flatten(self.config)
        for cell in self.config.cells:
            here = flat | {CELL: cell}
            values = self.propose(lambda dimension, here=here: here[dimension.key])  # type: ignore[misc]
            if all(d.holds(values[d.key]) for d in self.dimensions if d.key in values):
                yield values

    def cell(self, values: Mapping[str, Value]) -> str:
        """Return the cell of a proposal."""
        return str(values.get(CELL, self.config.cells[0]))

    def changed(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the config keys and values of a proposal; a tied embedding is as wide as the hidden layer."""
        keys = {key: value for key, value in values.items() if key != CELL}
        tied = keys.get("model.tie_weights", self.config.model.tie_weights)
        if tied and "model.embedding_size" not in self.changes:
            keys["model.embedding_size"] = keys.get("model.hidden_size", self.config.model.hidden_size)
        return keys

    def configured(self, values: Mapping[str, Value]) -> RunConfig:
        """Return the config of a proposal, with its one cell; raises `ConfigError` if it is none."""
        config = override(self.config, self.changed(values))
        cell = self.cell(values)
        # What is set for the GRU alone goes with it.
        model = config.model if cell == "gru" else config.model.for_cell(cell)
        return replace(config, cells=(cell,), model=model)

    def corners(self) -> Iterator[RunConfig]:
        """Yield the configs at the limits of the search, which hold every rule if all others do.

        Raises `ConfigError` for the first that is none.
        """
        number = math.prod(len(dimension.corners) for dimension in self.dimensions)
        if number > MOST_CORNERS:
            raise ConfigError(
                f"the search has too many choices to check them beforehand: {number:,}: search fewer keys"
            )
        seen = set()
        for corner in itertools.product(*(dimension.corners for dimension in self.dimensions)):
            at = dict(zip((dimension.key for dimension in self.dimensions), corner, strict=True))
            values = self.propose(lambda dimension, at=at: at[dimension.key])  # type: ignore[misc]
            if (key := tuple(values.items())) in seen:
                continue
            seen.add(key)
            try:
                yield self.configured(values)
            except ConfigError as error:
                shown = ", ".join(f"{key}={_typed(value)}" for key, value in values.items())
                raise ConfigError(
                    *(f"the search can propose no config: {shown}: {rule}" for rule in error.args)
                ) from None

    @property
    def definition(self) -> dict[str, str]:
        """What makes two sweeps the same one, as texts."""
        varied = {dimension.key for dimension in self.dimensions}
        fixed = {
            key: _typed(value)
            for key, value in flatten(self.config).items()
            if key.split(".")[0] in OF_A_TRAINING and key not in varied and key != "train.device"
        }
        digests = [digest for _, digest in self.source.files if digest]
        return {
            "preset": self.preset,
            "cells": ",".join(self.config.cells),
            **fixed,
            "corpus.name": without_password(self.source.name),
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
            arguments += ["--corpus", self.corpus]
        arguments += ["--cells", self.cell(values)]
        for key, value in self._all_changes(values).items():
            arguments += ["--set", f"{key}={_typed(value)}"]
        return arguments

    def preset_function(self, values: Mapping[str, Value], told: str) -> str:
        """Return a proposal as a preset: the three lines for `rnnlm_core/presets.py`."""
        name = re.sub(r"\W+", "_", f"{self.preset}_swept")
        changes = {key: list(v) if isinstance(v, tuple) else v for key, v in self._all_changes(values).items()}
        call = f"run_config({self.preset!r}, {self.corpus!r}, [{self.cell(values)!r}], {changes!r})"
        return f'def {name}() -> RunConfig:\n    """{told}"""\n    return {call}\n'

    def _all_changes(self, values: Mapping[str, Value]) -> dict[str, Any]:
        changes = {key: read_value(key, value) for key, value in self.changes.items()} | self.changed(values)
        flat = flatten(self.configured(values))
        return {key: value for key, value in changes.items() if key != "cells" and has_effect(key, flat)}


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
    if len(config.cells) > 1:
        dimensions = (Dimension(CELL, config.cells), *dimensions)
    # Words decide whether numbers have an effect (the momentum of an optimizer), so they come first.
    dimensions = tuple(sorted(dimensions, key=lambda d: not (d.choices and isinstance(d.choices[0], str | bool))))
    source = resolve(config.corpus.name)
    plan = Plan("", preset, corpus, fixed, config, source, dimensions, config)
    hungriest = max(plan.corners(), key=lambda corner: corner.train.fewest_tokens)
    return replace(plan, name=name or _default_name(plan), hungriest=hungriest)


def default_search(config: RunConfig, fixed: Collection[str] = ()) -> tuple[Dimension, ...]:
    """Return what a sweep varies by itself: six keys around the values of a config, without those that are `fixed`."""
    model, train = config.model, config.train
    clip = train.clip_norm or 1.0
    found = [
        _range("train.learning_rate", train.learning_rate / 10, min(train.learning_rate * 4, 1e6), log=True),
        Dimension("model.hidden_size", _sizes(model.hidden_size)),
        Dimension("model.num_layers", tuple(sorted({1, 2, model.num_layers}))),
        Dimension("model.dropout", low=0.0, high=max(0.6, model.dropout)),
        _range("train.clip_norm", clip / 4, clip * 4, log=True),
        Dimension("train.weight_decay", tuple(sorted({0.0, 0.01, 0.1, train.weight_decay}))),
    ]
    if train.optimizer != "adamw":  # elsewhere it is part of the gradient, at quite other values
        found.pop()
    return tuple(dimension for dimension in found if dimension.key not in fixed)


def parse_search(search: Sequence[str], config: RunConfig, fixed: Collection[str] = ()) -> tuple[Dimension, ...]:
    """Return the dimensions of spaces as they are typed; raises `ConfigError` with a line per mistake."""
    found: dict[str, Dimension] = {}
    mistakes: list[str] = []
    for entry in search:
        key, _, space = (part.strip() for part in entry.partition("="))
        try:
            if not key or not space:
                raise ConfigError(f"`--search` takes KEY=SPACE: {one_line(entry)}: {FORMS}")
            if key in found:
                raise ConfigError(f"`--search` names {key} twice: {one_line(entry)}: give one space for each key")
            if key in fixed:
                raise ConfigError(f"`{key}` is both set and searched: {one_line(entry)}: leave out one of them")
            found[key] = _dimension(key, space, config)
        except ConfigError as error:
            mistakes += error.args
    if mistakes:
        raise ConfigError(*mistakes)
    return tuple(found.values())


def _dimension(key: str, space: str, config: RunConfig) -> Dimension:
    flat = flatten(config)
    if key not in flat:
        read_value(key, "")  # says which keys may be meant
    if key == "cells":
        raise ConfigError(f"`cells` is searched by naming several: {space}: use --cells {space}")
    if key.split(".", maxsplit=1)[0] not in SEARCHABLE or key == "train.device":
        reason = "a sweep varies model.* and train.* but the device: one text, one kind of token, one machine"
        raise ConfigError(f"`{key}` cannot be searched: {space}: {reason}")
    if ".." in space:
        return _read_range(key, space, flat[key])
    choices = tuple(read_value(key, part.strip()) for part in space.split(","))
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ConfigError(f"`--search` needs two or more different values of {key}: {space}: {FORMS}")
    return Dimension(key, choices)


def _read_range(key: str, space: str, example: object) -> Dimension:
    if isinstance(example, bool | str):
        raise ConfigError(f"`{key}` has no numbers to search between: {space}: list its values, separated by commas")
    log = space.startswith("log:")
    low, high = (read_value(key, part.strip()) for part in space.removeprefix("log:").split("..", 1))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"`{key}` must be searched from a lower to a higher number: {space}: {FORMS}")
    if log and low <= 0:
        raise ConfigError(f"`{key}` has no logarithm at {_typed(low)}: {space}: begin above 0")
    return Dimension(key, low=low, high=high, log=log)


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


def _range(key: str, low: float, high: float, log: bool) -> Dimension:
    return Dimension(key, low=float(f"{low:.2g}"), high=float(f"{high:.2g}"), log=log)


def _sizes(size: int) -> tuple[Value, ...]:
    """Return widths from half of `size` to its double, as round as it is."""
    unit = next(unit for unit in (16, 10, 1) if size % unit == 0)
    return tuple(sorted({max(unit, round(size * share / unit) * unit) for share in (0.5, 1.0, 1.5, 2.0)}))


def _typed(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)
