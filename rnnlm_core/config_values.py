"""Config keys by their dotted names: what `--set`, a form or a file gives, read as the type that the key has.

Values are strictly typed: `true` is no integer, `"7"` is no number.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rnnlm_core.config import RunConfig, flatten, known_names
from rnnlm_core.config_rules import check, limits, without_effect
from rnnlm_core.errors import ConfigError, suggestion
from rnnlm_core.extensions import Kind

_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.ASCII | re.IGNORECASE)
"""A number as it is written everywhere; `float` alone also reads `1_0`, blanks and the digits of other scripts."""


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return `config` with dotted keys changed; a string is read as the type of its key (as `--set` gives it).

    Other options that have no effect any more go back to their defaults.

    Raises `ConfigError` with one line per mistake: unknown keys (with a suggestion), wrong types, values out of range.
    """
    mistakes: list[str] = []
    values = flatten(config)
    for key, value in changes.items():
        try:
            values[key] = read_value(key, value)
        except ConfigError as error:
            mistakes += error.args
    changed: RunConfig = _unflatten(RunConfig, values)
    if mistakes:
        # Rules between keys wait: a value that could not be read may be one half of them.
        raise ConfigError(*mistakes, *limits(changed))
    # What a preset set for a level, a schedule or a temperature that is changed now goes with it.
    defaults = flatten(RunConfig())
    values |= {key: defaults[key] for key, _ in without_effect(changed) if key not in changes}
    changed = _unflatten(RunConfig, values)
    check(changed)
    return changed


def read_value(key: str, value: Any) -> Any:
    """Return `value` as the type of a dotted key; a string is read as `--set` gives it.

    Raises `ConfigError` for an unknown key (with a suggestion) and for what is no value of its type.
    """
    types_of = _types()
    if key not in types_of:
        raise ConfigError(f"unknown config key: {key}: {_meant(key)}")
    kind = _kinds().get(key)
    if kind is not None and value not in (known := known_names(kind)):
        raise ConfigError(f"`{key}` must be one of {', '.join(known)}. Got {value!r}")
    try:
        return _read(value, types_of[key])
    except ValueError as error:
        raise ConfigError(f"`{key}` {error}. Got {value!r}") from None


def close_keys(name: str) -> list[str]:
    """Return the config keys that `name`, mistyped or without its section, may mean, the likeliest first."""
    last = name.rsplit(".", maxsplit=1)[-1].replace("-", "_")

    def likeness(key: str) -> float:
        end = key.rsplit(".", maxsplit=1)[-1]
        return max(difflib.SequenceMatcher(None, part, last).ratio() for part in (end, *end.split("_")))

    return sorted((key for key in _types() if likeness(key) > 0.75), key=likeness, reverse=True)


def _meant(key: str) -> str:
    """Return which known keys a mistyped one may mean: the closest, then those of its section, else all."""
    known = list(_types())
    section = [name for name in known if "." in key and name.split(".")[0] == key.split(".", maxsplit=1)[0]]
    close = close_keys(key)
    listed = list(dict.fromkeys(close + section)) or known
    if close and not difflib.get_close_matches(key, listed, n=1, cutoff=0.6):
        return f"did you mean {' or '.join(close)}?"
    return suggestion(key, listed)


@functools.cache
def _types() -> dict[str, Any]:
    """Return the type of each dotted key."""
    return dict(_typed_keys(RunConfig))


@functools.cache
def _kinds() -> dict[str, Kind]:
    """Return the kind of the things that a dotted key names, of the keys that name one."""
    sections = {item.name: _hints(RunConfig)[item.name] for item in fields(RunConfig)}
    named = [(f"{section}.{item.name}", item) for section, cls in sections.items()
             if dataclasses.is_dataclass(cls) for item in fields(cls)]  # fmt: skip
    return {key: item.metadata["names"] for key, item in named if "names" in item.metadata}


_hints = functools.cache(get_type_hints)


def _typed_keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = _hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            yield from _typed_keys(kind, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, kind


def _unflatten(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = _hints(cls)
    arguments: dict[str, Any] = {}
    for item in fields(cls):
        kind = hints[item.name]
        key = prefix + item.name
        arguments[item.name] = _unflatten(kind, values, f"{key}.") if dataclasses.is_dataclass(kind) else values[key]
    return cls(**arguments)


def _read(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, or raise ValueError("must be …"). Strings are parsed, everything else must fit."""
    if get_origin(kind) is tuple:
        return _read_tuple(value)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise ValueError("must be one of " + ", ".join(map(str, choices)))
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError("must be a string")
        return value
    if kind is bool:
        return _read_bool(value)
    if kind is int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value):
            return int(value)
        if type(value) is int:
            return value
        raise ValueError("must be an integer")
    if kind is float:
        if type(value) in (int, float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
            with contextlib.suppress(OverflowError):  # an integer of more than 308 digits
                return float(value)
        raise ValueError("must be a number")
    raise AssertionError(f"no reader for {kind}")


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):  # as typed, and as MLflow shows it
        return value.lower() == "true"
    raise ValueError("must be true or false")


def _read_tuple(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        if value.startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                raise ValueError("must be a JSON list or a comma-separated list") from None
        else:
            parts = [part for part in value.split(",") if part]
            if value and not parts:
                raise ValueError('must be a list; a comma itself is written [","]')
            value = parts
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise ValueError("must be a list of strings")
    return tuple(value)
