"""The parameters of a deployment: what its flow takes, and what would change nothing."""

import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from flows.deployment_shape import rule
from flows.deployment_text import below
from rnnlm_core.config import RunConfig
from rnnlm_core.config_values import read_value
from rnnlm_core.download import resolve
from rnnlm_core.errors import ConfigError, RnnlmError, suggestion
from rnnlm_core.presets import run_config

OF_A_CONFIG = ("preset", "corpus", "cells", "changes")
"""A flow that takes these trains what `run_config` makes of them."""


def flow_at(entrypoint: str) -> Any:
    """Return the Prefect flow that a module holds; raises `ConfigError` if there is none."""
    from prefect import Flow

    module, name = module_of(entrypoint)
    flow = getattr(module, name, None)
    if not isinstance(flow, Flow):
        flows = [name for name, one in vars(module).items() if isinstance(one, Flow)]
        raise ConfigError(f"no flow: {name}: {suggestion(name, flows) if flows else f'{module.__name__} has none'}")
    return flow


def module_of(dotted: str) -> tuple[ModuleType, str]:
    """Return the module of a dotted name, and the name that it should hold."""
    module, _, name = dotted.rpartition(".")
    if not re.fullmatch(r"\w+(\.\w+)+", dotted):
        raise ConfigError(f"must be a module and a name in it, like flows.retrain.retrain. Got {dotted!r}")
    try:
        return importlib.import_module(module), name
    except Exception as error:
        raise ConfigError(f"cannot be imported: {type(error).__name__}: {error}") from error


def parameters(flow: Any, given: Any, schedules: list[dict[str, Any]], path: str) -> Iterator[str]:
    """Yield what is wrong with the parameters of a deployment, and with those that its schedules put in their place."""
    if not isinstance(given, dict):
        return
    known = inspect.signature(flow.fn).parameters
    defaults = {name: one.default for name, one in known.items() if one.default is not one.empty}
    place = f"{path}.parameters"
    found = [*_values(flow, given, place)]
    # Whoever starts a run by hand, or another flow, gives what is missing; a schedule cannot.
    needed = [name for name in known if schedules and name not in defaults and name not in given]
    found += [f"{place}.{name}: it must be given: the flow {flow.name} needs it" for name in needed]
    found = found or [*_effects(flow, given, defaults, place)]
    yield from found
    for number, schedule in enumerate(schedules):
        theirs, place = schedule.get("parameters"), f"{path}.schedules[{number}].parameters"
        if theirs and isinstance(theirs, dict):
            wrong = [*_values(flow, theirs, place)]
            # What comes of both together can be told when the deployment's own are right.
            yield from wrong or ([] if found else _effects(flow, theirs, defaults | given, place))


def _values(flow: Any, given: dict[str, Any], path: str) -> Iterator[str]:
    types = _types(flow)
    for name, value in given.items():
        if name in types:
            yield from value_mistakes(types[name], value, f"{path}.{name}")
        else:
            remedy = suggestion(str(name), list(types)) if types else f"the flow {flow.name} takes none"
            yield f"{path}.{name}: unknown parameter: {remedy}"


def _effects(flow: Any, given: dict[str, Any], before: dict[str, Any], path: str) -> Iterator[str]:
    """Yield which parameters change nothing of what would be without them, and what they break together."""
    for name, value in given.items():
        if name in before and value == before[name]:
            yield f"{path}.{name}: no effect: it is {value!r} anyway: delete it"
    if set(OF_A_CONFIG) <= set(_types(flow)):
        yield from _config(given, before, path)


@functools.cache
def _types(flow: Any) -> dict[str, TypeAdapter[Any]]:
    """Return the types of a flow's parameters."""
    hints = get_type_hints(flow.fn, include_extras=True)
    return {name: TypeAdapter(hints.get(name, Any)) for name in inspect.signature(flow.fn).parameters}


def value_mistakes(kind: TypeAdapter[Any], value: Any, path: str) -> Iterator[str]:
    """Yield what is wrong with a value of a type."""
    try:
        # As JSON and strictly: Prefect's server compares what it is sent with the flow's schema.
        kind.validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        for one in error.errors():
            place = functools.reduce(below, one["loc"], path)
            if one["type"] != "extra_forbidden":
                yield f"{place}: {rule(one)}"
                continue
            try:
                read_value(str(one["loc"][-1]), None)
            except ConfigError as unknown:  # it knows the keys that may be meant
                yield f"{place}: {unknown}"
    except (TypeError, ValueError):
        yield f"{path}: must be text, numbers, true, false, lists and keys with values alone. Got {value!r}"


def _config(given: dict[str, Any], before: dict[str, Any], path: str) -> Iterator[str]:
    """Yield what the config breaks as a whole, and what of it would be the same anyway."""
    merged = before | given
    try:
        config = _configured(merged)
    except RnnlmError as error:
        yield from (f"{path}: {line}" for line in error.lines)
        return
    for name in ("corpus", "cells"):
        # A parameter that must be given says something by being there.
        same = name in given and name in before and given[name] != before[name]
        if same and _same(config, merged | {name: before[name]}):
            yield f"{path}.{name}: no effect: the preset {merged['preset']} has it anyway: delete it"
    changes = given.get("changes") or {}
    for key in changes:
        if _same(config, merged | {"changes": {name: value for name, value in changes.items() if name != key}}):
            yield f"{path}.changes.{key}: no effect: it is {changes[key]!r} anyway: delete it"
    if "changes" in given and not changes and before["changes"] is None:
        yield f"{path}.changes: no effect: it changes nothing: delete it"
    name = config.corpus.name
    if not Path(name).expanduser().exists():  # one that is there need not be read
        try:
            resolve(name)
        except RnnlmError as error:
            yield from (f"{path}.corpus: {line}" for line in error.lines)


def _configured(parameters: dict[str, Any]) -> RunConfig:
    return run_config(*(parameters[name] for name in OF_A_CONFIG))


def _same(config: RunConfig, parameters: dict[str, Any]) -> bool:
    try:
        return _configured(parameters) == config
    except RnnlmError:
        return False  # it would not even be a config without
