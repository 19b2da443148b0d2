"""What rows of the results page were measured to be, in a file of the repository.

A tracking database comes and goes, and each machine has its own; the file keeps the figures of all of them.
"""

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from rnnlm_core.config import PLACE, RunConfig, flatten
from rnnlm_core.errors import IntegrityError
from rnnlm_core.store import write_atomically
from tasks.tracking import TRAINING_KEYS
from tasks.wording import parameter_text

FORMAT = 1
SEED = "train.seed"
DYNAMIC_KEYS = "evaluate.dynamic_"


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _figures(figures: dict[str, float]) -> dict[str, float]:
    if any(math.isnan(value) for value in figures.values()):
        raise ValueError("no figure is not a number")
    return figures


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One training as it was measured: what it was, what it came to, where and when.

    `settings` are the keys that differ from their defaults, as MLflow keeps them, without the seed and the place.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    preset: str
    cell: str
    settings: dict[str, str]
    seed: Annotated[int, Field(ge=0)]
    figures: Annotated[dict[str, float], Field(min_length=1), AfterValidator(_figures)]
    parameters: Annotated[int, Field(ge=1)] | None = None
    hardware: Annotated[str, Field(min_length=1)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    run_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    date: Annotated[str, AfterValidator(_moment)]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str, int]:
        """What there is one record of: a training with its seed."""
        return self.cell, json.dumps(self.settings, sort_keys=True), self.seed

    @property
    def moment(self) -> datetime:
        """When the training began; records from before the page kept the time have the day alone."""
        moment = datetime.fromisoformat(self.date)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    def is_of(self, config: RunConfig) -> bool:
        """Whether this is what a config with one cell asks for, whatever the seed."""
        return (self.cell,) == config.cells and self.settings == settings_of(config)


_records = TypeAdapter(list[Measured])


@functools.cache
def settings_of(config: RunConfig) -> dict[str, str]:
    """Return what figures of a config depend on beside cell and seed: a key that is new changes no earlier record."""
    return changed({key: parameter_text(value) for key, value in flatten(config).items()})


def changed(parameters: dict[str, str]) -> dict[str, str]:
    """Return those parameters of a training and of dynamic evaluation that are known and not at their defaults."""
    defaults = {key: parameter_text(value) for key, value in flatten(RunConfig()).items()}
    return {
        key: value
        for key, value in parameters.items()
        if (key.split(".")[0] in TRAINING_KEYS or key.startswith(DYNAMIC_KEYS))
        and key not in (SEED, *PLACE)
        and value != defaults.get(key, value)
    }


def read_measured(path: Path) -> list[Measured]:
    """Return the records of a file, none if it is not there; raises `IntegrityError` for anything else than records."""
    remedy = "correct it, or restore it from version control"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError("measured figures cannot be read", f"{path} ({error})", remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise IntegrityError(f"measured figures must be of format {FORMAT}", path, remedy)
    try:
        records = _records.validate_python(content.get("rows"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["rows", *map(str, first["loc"])])
        raise IntegrityError(f"measured figures are wrong: {where}: {first['msg']}", path, remedy) from error
    if len({record.identity for record in records}) < len(records):
        raise IntegrityError("measured figures name a training with its seed twice", path, remedy)
    return records


def write_measured(path: Path, records: Sequence[Measured]) -> None:
    """Write records as a file that `read_measured` reads."""
    content = {"format": FORMAT, "rows": [_plain(record) for record in records]}
    write_atomically(
        path.resolve(), (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def _plain(record: Measured) -> dict[str, Any]:
    figures = {name: value if math.isfinite(value) else str(value) for name, value in record.figures.items()}
    return asdict(record) | {"figures": figures}


def merged(known: Iterable[Measured], found: Iterable[Measured]) -> list[Measured]:
    """Return all of them, one per training and seed: the one that began last."""
    newest = {record.identity: record for record in known}
    for record in found:
        there = newest.get(record.identity)
        if there is None or record.moment >= there.moment:
            newest[record.identity] = record
    return list(newest.values())
