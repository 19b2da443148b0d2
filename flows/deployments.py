"""What `prefect.yaml` may say: every mistake in it is told, without a server and before anything is deployed.

Prefect itself passes over a key that it does not know and takes any parameter. `python -m flows.deployments [FILE]`
(part of `make check`) and `rnnlm up` refuse both, and what would have no effect. They refuse the keys of Prefect that
nobody can check without a server as well (automations, blocks, variables).
"""

import asyncio
import difflib
import functools
import importlib
import inspect
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flows.deploy import FILE, POOL
from rnnlm_core.config import RunConfig, read_value
from rnnlm_core.download import resolve
from rnnlm_core.errors import ConfigError, RnnlmError, suggestion
from rnnlm_core.presets import run_config
from tasks import workspace

OF_A_CONFIG = ("preset", "corpus", "cells", "changes")
"""A flow that takes these trains what `run_config` makes of them."""
KINDS = ("cron", "interval", "rrule")
VARIABLES = ("RNNLM_HOME", "RNNLM_MIRROR", "RNNLM_CHECKPOINT_SECONDS", "DO_NOT_TRACK")
"""What a run reads from its environment, beside the settings of Prefect and MLflow."""
ALIKE = 0.85


def check(file: Path) -> None:
    """Raise `ConfigError` with one line per mistake of a file."""
    try:
        found = list(mistakes(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file.name}: cannot be read: {error}") from error
    if found:
        raise ConfigError(*(f"{file.name}: {mistake}" for mistake in found))


def names(file: Path) -> list[str]:
    """Return the names of the deployments of a file without mistakes."""
    return [one["name"] for one in yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]]


def mistakes(text: str) -> Iterator[str]:
    """Yield every mistake of a `prefect.yaml`: where it is, the rule, and the value or the remedy."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        written = [] if root is None else [*_keys_and_anchors(root, "", set(), ()), *_definitions(root, loader)]
        yield from written
        if any(mistake.endswith(HOLDS_ITSELF) for mistake in written):
            return
        document = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-45 is a ValueError
        yield f"it is no YAML: {' '.join(str(error).split())}"
        return
    deployments = document.get("deployments") if isinstance(document, dict) else None
    again = [f"{place}{end}" for place in _shared(deployments, "deployments", set()) for end in (".", "[", ":")]
    for mistake in _in_document(document):
        # What several have by one anchor is told of the first.
        if not mistake.startswith(tuple(again)):
            yield mistake


def _in_document(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        yield from _templates({key: value for key, value in document.items() if key != "definitions"}, "")
    document = _filled(document)
    try:
        File.model_validate(document)
    except ValidationError as error:
        yield from _shape(error)
    if isinstance(document, dict):
        yield from _steps(document, "")
        deployments = document.get("deployments")
        yield from _deployments(deployments if isinstance(deployments, list) else [])


def _shared(value: Any, path: str, seen: set[int]) -> Iterator[str]:
    """Yield where something stands that stands earlier as well."""
    if not isinstance(value, dict | list):
        return
    if id(value) in seen:
        yield path
        return
    seen.add(id(value))
    for name, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _shared(one, _below(path, name), seen)


# What is written: keys and anchors. PyYAML keeps the last of several equal keys and forgets the anchors.

HOLDS_ITSELF = "it holds itself"


class _Loader(yaml.SafeLoader):
    """A safe loader that remembers which anchors there are and which are used."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.anchored: dict[str, yaml.Node] = {}
        self.used: set[str] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self.used.add(event.anchor)
        elif event.anchor is not None:
            self.anchored[event.anchor] = node
        return node


def _keys_and_anchors(node: yaml.Node, path: str, seen: set[int], above: tuple[int, ...]) -> Iterator[str]:
    if id(node) in above:
        yield f"{path}: {HOLDS_ITSELF}"
    if id(node) in seen:
        return
    seen.add(id(node))
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _keys_and_anchors(value, f"{path}[{number}]", seen, above)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            place = _below(path, key.value if isinstance(key, yaml.ScalarNode) else "?")
            if place in keys:
                yield f"{place}: the key is there twice (line {key.start_mark.line + 1}): keep one"
            keys.add(place)
            yield from _keys_and_anchors(value, place, seen, above)


def _definitions(root: yaml.Node, loader: _Loader) -> Iterator[str]:
    """A definition has the name of its anchor and is used: that is all that can be known of its own name."""
    mappings = [value for key, value in root.value if key.value == "definitions"] if _is_mapping(root) else []
    defined = [(str(key.value), value) for one in mappings if _is_mapping(one) for key, value in one.value]
    for name, value in defined:
        if loader.anchored.get(name) is not value:
            yield f"definitions.{name}: it must have the anchor of its name: write `{name}: &{name}`"
    for name in sorted(loader.anchored.keys() - loader.used):
        yield f"&{name}: it is used nowhere: write `*{name}` where it belongs, or delete it"


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)


def _below(path: str, name: object) -> str:
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else str(name)


# Templates: `{{ $NAME }}` is the environment's, at the time of deploying. The rest needs a server.


def _templates(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str) and "{{" in str(_filled(value)):
        yield (
            f"{path}: a template must be `{{{{ $NAME }}}}`, of an environment variable that is set, to be filled in "
            f"here. Got {value!r}"
        )
    for name, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _templates(one, _below(path, name))


def _filled(value: Any) -> Any:
    """Return a value as Prefect deploys it."""
    from prefect.utilities.annotations import NotSet
    from prefect.utilities.templating import apply_values

    if isinstance(value, dict):
        return {name: _filled(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one) for one in value]
    if not isinstance(value, str):
        return value
    filled = apply_values(value, {}, remove_notset=False)
    return value if filled is NotSet else filled


# The shape: which keys there are at each level, and what single values must be.


def _kebab(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        raise ValueError(f"must be small letters and digits joined by hyphens, like `weekly-words`. Got {value!r}")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError(f"must say something. Got {value!r}")
    return value


def _pool(value: str) -> str:
    if value != POOL:
        raise ValueError(f"must be {POOL}, the pool whose worker `rnnlm up` starts. Got {value!r}")
    return value


def _strategy(value: str) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy

    known = [one.value for one in ConcurrencyLimitStrategy]
    if value not in known:
        raise ValueError(f"unknown strategy: {value}: {suggestion(value, known)}")
    return value


def _version(value: str) -> str:
    import prefect

    if not re.fullmatch(r"\d+\.\d+\.\d+", value) or value.split(".")[:2] != prefect.__version__.split(".")[:2]:
        raise ValueError(f"must be of the release that is installed, {prefect.__version__}. Got {value!r}")
    return value


Kebab = Annotated[str, AfterValidator(_kebab)]
Said = Annotated[str, AfterValidator(_said)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ConcurrencyLimit(_Strict):
    """How many runs of a deployment there may be, and what becomes of one more."""

    limit: int = Field(ge=1)
    collision_strategy: Annotated[str, AfterValidator(_strategy)]
    grace_period_seconds: int = Field(default=60, ge=60, le=86_400)


class WorkPool(_Strict):
    """Where the runs of a deployment wait, and what their processes are given."""

    name: Annotated[str, AfterValidator(_pool)]
    work_queue_name: Said = "default"
    job_variables: dict[str, Any] = {}


class Schedule(_Strict):
    """When runs are made: by exactly one of `cron`, `interval` (seconds) and `rrule`."""

    slug: Kebab = ""
    cron: str = ""
    interval: float = Field(default=0.0, gt=0)
    rrule: str = ""
    timezone: Said = ""
    anchor_date: Said = ""
    day_or: bool = True
    active: bool = True
    parameters: dict[str, Any] = {}


class Deployment(_Strict):
    """A flow with its parameters, where and when it runs."""

    name: Kebab
    description: Said
    entrypoint: str
    version: Said = ""
    tags: list[Said] = []
    parameters: dict[str, Any] = {}
    concurrency_limit: ConcurrencyLimit = None
    work_pool: WorkPool
    schedules: list[Schedule] = []
    paused: bool = False
    pull: list[dict[str, Any]] = []


class File(_Strict):
    """A whole `prefect.yaml`."""

    name: Said
    prefect_version: Annotated[str, AfterValidator(_version)] = Field(alias="prefect-version")
    pull: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    deployments: list[Deployment] = Field(min_length=1)


def _shape(error: ValidationError, path: str = "") -> Iterator[str]:
    """Yield what pydantic found, in words of ours."""
    for one in error.errors():
        place = functools.reduce(_below, one["loc"], path) or "the file"
        if one["type"] == "extra_forbidden":
            yield f"{place}: unknown key: {suggestion(str(one['loc'][-1]), _keys(one['loc'][:-1]))}"
        elif one["type"] == "missing":
            yield f"{place}: it must be given"
        else:
            yield f"{place}: {_rule(one)}"


def _rule(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "model_type":
        return f"must be keys and values. Got {error['input']!r}"
    return f"{error['msg'].replace('Input should be', 'must be')}. Got {error['input']!r}"


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that a place in the file may have."""
    model: type[BaseModel] = File
    for part in place:
        if isinstance(part, str):
            kind = model.model_fields[part].annotation
            (model,) = (one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]


# The meaning: what single values cannot show. Only what has the right shape is asked for it.


def _deployments(deployments: list[Any]) -> Iterator[str]:
    names: set[str] = set()
    for number, one in enumerate(deployments):
        path = f"deployments[{number}]"
        if not isinstance(one, dict):
            continue
        if isinstance(name := one.get("name"), str):
            if name in names:
                yield f"{path}.name: two deployments are called {name}: give another name"
            names.add(name)
        if one.get("schedules") and "concurrency_limit" not in one:
            yield f"{path}.concurrency_limit: it must be given where there is a schedule: two runs could meet"
        yield from _steps(one, f"{path}.")
        yield from _work(one.get("work_pool"), f"{path}.work_pool.job_variables")
        schedules = one.get("schedules")
        schedules = [when for when in schedules if isinstance(when, dict)] if isinstance(schedules, list) else []
        yield from _schedules(schedules, f"{path}.schedules")
        if isinstance(entrypoint := one.get("entrypoint"), str):
            try:
                flow = flow_at(entrypoint)
            except ConfigError as error:
                yield f"{path}.entrypoint: {error}"
            else:
                yield from _parameters(flow, one.get("parameters", {}), schedules, path)


def flow_at(entrypoint: str) -> Any:
    """Return the Prefect flow that a module holds; raises `ConfigError` if there is none."""
    from prefect import Flow

    holder, name = _holder(entrypoint)
    flow = getattr(holder, name, None)
    if not isinstance(flow, Flow):
        flows = [name for name, one in vars(holder).items() if isinstance(one, Flow)]
        raise ConfigError(f"no flow: {name}: {suggestion(name, flows) if flows else f'{holder.__name__} has none'}")
    return flow


def _holder(dotted: str) -> tuple[ModuleType, str]:
    """Return the module of a dotted name, and the name that it should hold."""
    module, _, name = dotted.rpartition(".")
    if not re.fullmatch(r"\w+(\.\w+)+", dotted):
        raise ConfigError(f"must be a module and a name in it, like flows.retrain.retrain. Got {dotted!r}")
    try:
        return importlib.import_module(module), name
    except Exception as error:
        raise ConfigError(f"cannot be imported: {type(error).__name__}: {error}") from error


def _parameters(flow: Any, given: Any, schedules: list[dict[str, Any]], path: str) -> Iterator[str]:
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
            yield from _value_mistakes(types[name], value, f"{path}.{name}")
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


def _value_mistakes(kind: TypeAdapter[Any], value: Any, path: str) -> Iterator[str]:
    try:
        # As JSON and strictly: Prefect's server compares what it is sent with the flow's schema.
        kind.validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        for one in error.errors():
            place = functools.reduce(_below, one["loc"], path)
            if one["type"] != "extra_forbidden":
                yield f"{place}: {_rule(one)}"
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


def _schedules(schedules: list[dict[str, Any]], path: str) -> Iterator[str]:
    slugs: set[str] = set()
    for number, raw in enumerate(schedules):
        place = f"{path}[{number}]"
        if isinstance(slug := raw.get("slug"), str):
            if slug in slugs:
                yield f"{place}.slug: two schedules are called {slug}: give another slug"
            slugs.add(slug)
        kinds = [kind for kind in KINDS if kind in raw]
        if len(kinds) != 1:
            yield f"{place}: exactly one of {', '.join(KINDS)} must be given. Got {' and '.join(kinds) or 'none'}"
        else:
            yield from _schedule(raw, kinds[0], place)


def _schedule(raw: dict[str, Any], kind: str, path: str) -> Iterator[str]:
    """Yield what is wrong with a schedule of one kind."""
    if kind != "interval" and "timezone" not in raw:
        yield f"{path}.timezone: it must be given: the hour of a {kind} is that of a place, like Europe/Berlin"
    for key, needed in (("day_or", "cron"), ("anchor_date", "interval")):
        if key in raw and kind != needed:
            yield f"{path}.{key}: no effect without {needed}: delete it"
    try:
        Schedule.model_validate(raw)
    except ValidationError:  # its shape is told elsewhere
        return
    from prefect.server.schemas import schedules

    made = {"cron": schedules.CronSchedule, "interval": schedules.IntervalSchedule, "rrule": schedules.RRuleSchedule}
    values = {key: raw[key] for key in made[kind].model_fields if key in raw}
    try:
        if kind == "interval":
            values["interval"] = timedelta(seconds=raw["interval"])
        schedule = made[kind](**values)
    except ValidationError as error:
        yield from _shape(error, path)
        return
    except OverflowError:
        yield f"{path}.interval: must be seconds that the calendar holds. Got {raw['interval']}"
        return
    try:
        comes = asyncio.run(schedule.get_dates(1))
    except (ValueError, OverflowError):  # a 30th of February
        comes = []
    if not comes:
        yield f"{path}.{kind}: it never comes. Got {raw[kind]!r}"


def _work(pool: Any, path: str) -> Iterator[str]:
    """Yield what is wrong with what the process of a run is given."""
    from prefect.utilities.schema_tools import validate

    given = pool.get("job_variables") if isinstance(pool, dict) else None
    if not isinstance(given, dict):
        return
    schema = _of_a_process()
    known = list(schema["properties"])
    for name in given:
        if name not in known:
            yield f"{path}.{name}: unknown key: {suggestion(str(name), known)}"
    for error in validate(given, schema):
        yield f"{functools.reduce(_below, error.absolute_path, path)}: {error.message}"
    if isinstance(environment := given.get("env"), dict):
        yield from _variables(environment, f"{path}.env")


@functools.cache
def _of_a_process() -> dict[str, Any]:
    """Return the schema of what a pool of processes takes."""
    from prefect.workers.process import ProcessWorker

    variables: dict[str, Any] = ProcessWorker.get_default_base_job_template()["variables"]
    return variables


def _variables(environment: dict[str, Any], path: str) -> Iterator[str]:
    for name in environment:
        if remedy := _unknown_variable(str(name)):
            yield f"{path}.{name}: unknown variable: {remedy}"


@functools.cache
def _unknown_variable(name: str) -> str:
    """Return what to do about a name that nothing reads, "" if something may.

    One of another program is let pass, unless it looks like one of ours.
    """
    from prefect import settings

    from tasks import tracking

    known = [*VARIABLES, *tracking.variables()]
    if name in known or (name.startswith("PREFECT_") and hasattr(settings, name)):
        return ""
    theirs = settings.get_current_settings().to_environment_variables()
    if close := difflib.get_close_matches(name.upper(), [*known, *theirs], n=1, cutoff=ALIKE):
        return f"did you mean {close[0]}?"
    # What follows PREFECT_LOGGING_ may be any key of Prefect's logging.yml.
    owned = name.startswith(("RNNLM_", "MLFLOW_", "PREFECT_")) and not name.startswith("PREFECT_LOGGING_")
    return "delete it" if owned else ""


def _steps(holder: dict[str, Any], path: str) -> Iterator[str]:
    """Yield what is wrong with the steps that a worker takes before a run."""
    steps = holder.get("pull")
    for number, step in enumerate(steps if isinstance(steps, list) else []):
        place = f"{path}pull[{number}]"
        if not isinstance(step, dict) or len(step) != 1:
            yield f"{place}: must be one function with its arguments. Got {step!r}"
            continue
        ((name, arguments),) = step.items()
        try:
            module, last = _holder(str(name))
        except ConfigError as error:
            yield f"{place}.{name}: {error}"
            continue
        function = getattr(module, last, None)
        if not inspect.isfunction(function):
            functions = [one for one, what in vars(module).items() if inspect.isfunction(what)]
            yield f"{place}.{name}: no function: {suggestion(last, functions)}"
            continue
        if not isinstance(arguments, dict):
            yield f"{place}.{name}: must have arguments and their values. Got {arguments!r}"
            continue
        known = inspect.signature(function).parameters
        types = get_type_hints(function, include_extras=True)
        for key, value in arguments.items():
            if key in known:
                yield from _value_mistakes(TypeAdapter(types.get(key, Any)), value, f"{place}.{name}.{key}")
            else:
                yield f"{place}.{name}.{key}: unknown argument: {suggestion(str(key), list(known))}"
        for key, one in known.items():
            if one.default is one.empty and key not in arguments:
                yield f"{place}.{name}.{key}: it must be given"


def main() -> None:
    """Check a file, by default the project's; tell every mistake, one a line."""
    file = Path(sys.argv[1]) if sys.argv[1:] else workspace.PROJECT / FILE
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]  # no server is asked, and a profile of somebody's is not at the home below
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"RNNLM_HOME": home, "PREFECT_HOME": home}
        workspace.prepare_environment()
        try:
            check(file)
        except RnnlmError as error:
            print("\n".join(f"error: {line}" for line in error.lines), file=sys.stderr)
            sys.exit(error.exit_code)
    print(f"{file.name}: no mistakes")


if __name__ == "__main__":
    main()
