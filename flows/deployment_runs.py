"""When and where the runs of a deployment happen: schedules, the process of a run, the steps before it."""

import asyncio
import difflib
import functools
import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from flows.deployment_parameters import module_of, value_mistakes
from flows.deployment_shape import Schedule, shape
from flows.deployment_text import below
from rnnlm_core.errors import ConfigError, suggestion

KINDS = ("cron", "interval", "rrule")
VARIABLES = (
    "RNNLM_HOME",
    "RNNLM_MIRROR",
    "RNNLM_STORE",
    "RNNLM_CHECKPOINT_SECONDS",
    "RNNLM_GPU_SLOTS",
    "RNNLM_RECURRENCE",
    "RNNLM_EXTENSIONS",
    "DO_NOT_TRACK",
)
"""What a run reads from its environment, beside the settings of Prefect and MLflow."""
ALIKE = 0.85


def schedule_mistakes(schedules: list[dict[str, Any]], path: str) -> Iterator[str]:
    """Yield what is wrong with the schedules of a deployment."""
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
        yield from shape(error, path)
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


def process_mistakes(pool: Any, path: str) -> Iterator[str]:
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
        yield f"{functools.reduce(below, error.absolute_path, path)}: {error.message}"
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


def step_mistakes(owner: dict[str, Any], path: str) -> Iterator[str]:
    """Yield what is wrong with the steps that a worker takes before a run."""
    steps = owner.get("pull")
    for number, step in enumerate(steps if isinstance(steps, list) else []):
        place = f"{path}pull[{number}]"
        if not isinstance(step, dict) or len(step) != 1:
            yield f"{place}: must be one function with its arguments. Got {step!r}"
            continue
        ((name, arguments),) = step.items()
        try:
            module, last = module_of(str(name))
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
                yield from value_mistakes(TypeAdapter(types.get(key, Any)), value, f"{place}.{name}.{key}")
            else:
                yield f"{place}.{name}.{key}: unknown argument: {suggestion(str(key), list(known))}"
        for key, one in known.items():
            if one.default is one.empty and key not in arguments:
                yield f"{place}.{name}.{key}: it must be given"
