"""docs/configuration.md: every key of the config and every preset, from the types and the words under the fields."""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flows.parameters import descriptions
from handbook.marks import table
from rnnlm_core.config import OWN_CELLS, OWN_NAMES, RunConfig, flatten
from rnnlm_core.presets import PRESETS

BOUNDS = {"at_least": "≥", "above": ">", "at_most": "≤", "below": "<"}
KINDS = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text", tuple[str, ...]: "list of texts"}


def configuration() -> str:
    """Return the generated part of the page: a table of keys per section, then the presets."""
    whole, default = get_type_hints(RunConfig), RunConfig()
    parts = [_cells(default)]
    for section, cls in whole.items():
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            parts.append(_section(section, cls, getattr(default, section)))
    return "\n\n".join([*parts, *_presets()])


def _cells(default: RunConfig) -> str:
    row = ["`cells`", f"`{','.join(default.cells)}`", _choices(OWN_CELLS), "What is trained side by side."]
    return "## cells\n\n" + table(["key", "default", "takes", "meaning"], [row])


def _section(section: str, cls: type, default: Any) -> str:
    words, types = descriptions(cls), get_type_hints(cls)
    rows = [
        [
            f"`{section}.{field.name}`",
            _value(getattr(default, field.name)),
            _takes(types[field.name], field.metadata),
            words[field.name],
        ]
        for field in dataclasses.fields(cls)
    ]
    opening = (cls.__doc__ or "").strip()
    return f"## {section}\n\n{opening}\n\n" + table(["key", "default", "takes", "meaning"], rows)


def _takes(kind: Any, limits: Any) -> str:
    if "names" in limits:  # those of this package: the page is the same wherever it is made
        return _choices(OWN_NAMES[limits["names"]])
    if get_origin(kind) is Literal:
        return _choices(get_args(kind))
    bounds = ", ".join(f"{BOUNDS[rule]} {_number(limit)}" for rule, limit in limits.items())
    return KINDS[kind] + (f", {bounds}" if bounds else "")


def _number(limit: float) -> str:
    return f"{int(limit):,}" if limit == int(limit) else str(limit)


def _choices(values: tuple[str, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _value(value: Any) -> str:
    if value in ("", ()):
        return "none"
    return f"`{','.join(value) if isinstance(value, tuple) else str(value).lower()}`"


def _presets() -> list[str]:
    """Return the list of presets, and what each sets."""
    names = [[f"[`{name}`](#{name})", (make.__doc__ or "").strip().splitlines()[0]] for name, make in PRESETS.items()]
    parts = ["## Presets", table(["preset", "what"], names)]
    defaults = flatten(RunConfig())
    for name, make in PRESETS.items():
        values = flatten(make())
        changed = [
            f"{key}={','.join(value) if isinstance(value, tuple) else value}"
            for key, value in values.items()
            if value != defaults[key]
        ]
        parts += [f"### {name}", "```text\n" + "\n".join(changed) + "\n```"]
    return parts
