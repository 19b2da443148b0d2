"""The shape of a `prefect.yaml`: which keys there are at each level, and what single values must be."""

import functools
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flows.deployment_text import below
from rnnlm_core.errors import suggestion
from tasks.workspace import POOL


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


def shape(error: ValidationError, path: str = "") -> Iterator[str]:
    """Yield what pydantic found, in words of ours."""
    for one in error.errors():
        place = functools.reduce(below, one["loc"], path) or "the file"
        if one["type"] == "extra_forbidden":
            yield f"{place}: unknown key: {suggestion(str(one['loc'][-1]), _keys(one['loc'][:-1]))}"
        elif one["type"] == "missing":
            yield f"{place}: it must be given"
        else:
            yield f"{place}: {rule(one)}"


def rule(error: Any) -> str:
    """Return the rule that one of pydantic's errors is about, and the value."""
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
