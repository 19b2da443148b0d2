"""What varies in a sweep: a key of the config, and the values that it may take.

A space is written `KEY=64,128,256` (one of these), `KEY=0..0.6` (anything between) or `KEY=log:0.1..4` (the same,
evenly in the logarithm). Without one, `default_search` varies what matters most around the values of a config.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rnnlm_core.config import PLACE, RunConfig, flatten
from rnnlm_core.config_values import read_value
from rnnlm_core.errors import ConfigError, one_line

Value = str | int | float | bool
SEARCHABLE = ("model", "train")
"""Other sections change the tokens that the perplexity is per, or nothing that is measured while training."""
FORMS = "KEY=64,128,256 (one of these), KEY=0..0.6 (between) or KEY=log:0.1..4 (between, in the logarithm)"
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
            return ",".join(typed(choice) for choice in self.choices)
        return f"{'log:' if self.log else ''}{typed(self.low)}..{typed(self.high)}"

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
    if key.split(".", maxsplit=1)[0] not in SEARCHABLE or key in PLACE:
        reason = "a sweep varies model.* and train.* but the place: one text, one kind of token, one machine"
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
        raise ConfigError(f"`{key}` has no logarithm at {typed(low)}: {space}: begin above 0")
    return Dimension(key, low=low, high=high, log=log)


def _range(key: str, low: float, high: float, log: bool) -> Dimension:
    return Dimension(key, low=float(f"{low:.2g}"), high=float(f"{high:.2g}"), log=log)


def _sizes(size: int) -> tuple[Value, ...]:
    """Return widths from half of `size` to its double, as round as it is."""
    unit = next(unit for unit in (16, 10, 1) if size % unit == 0)
    return tuple(sorted({max(unit, round(size * share / unit) * unit) for share in (0.5, 1.0, 1.5, 2.0)}))


def typed(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)
