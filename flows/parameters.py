"""What a flow asks for, with types and words that Prefect shows in its form and checks before a run is made.

The keys of `changes` are those of `--set`; their types and descriptions come from the config itself.
"""

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from rnnlm_core.config import RunConfig, known_names
from rnnlm_core.presets import PRESETS

LIMITS = {"at_least": "ge", "above": "gt", "at_most": "le", "below": "lt"}


def _fields() -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, type with description and limits) of every key that `--set` knows."""
    sections = get_type_hints(RunConfig)
    for section, cls in sections.items():
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            continue
        words, types = descriptions(cls), get_type_hints(cls)
        for one in dataclasses.fields(cls):
            limits = {LIMITS[name]: limit for name, limit in one.metadata.items() if name in LIMITS}
            kind = list[str] if types[one.name] == tuple[str, ...] else types[one.name]
            if names := one.metadata.get("names"):
                kind = Literal[known_names(names)]
            if kind is bool:  # a switch that nobody has touched would be sent as false; a choice is not
                kind = Literal["true", "false"]
            strict = True if kind in (int, float, str) else None  # the others take nothing else anyway
            about = Field(title=f"{section}.{one.name}", description=words.get(one.name), strict=strict, **limits)
            yield f"{section}.{one.name}", Annotated[kind, about]


def descriptions(cls: type) -> dict[str, str]:
    """Return what the source says below each field of a dataclass."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef))
    found = {}
    for before, after in itertools.pairwise(body):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            found[before.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


if TYPE_CHECKING:
    Changes = dict[str, Any]
    Preset = str
    Cell = str
else:
    keys = dict(_fields())
    Changes = TypedDict("Changes", keys, total=False)
    Changes.__doc__ = "Config keys and their values; what is left out is as in the preset."
    Changes.__pydantic_config__ = ConfigDict(extra="forbid")
    Preset = Literal[tuple(PRESETS)]
    Cell = Literal[known_names("cell")]

Cells = list[Cell] | None
Text = str | None
"""A name (`rnnlm corpora`), a path or an http(s) address."""
Tolerance = Annotated[float, Field(ge=0, le=10)]
