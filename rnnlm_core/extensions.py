"""What other packages bring, by name: cells, tokenizers, normalisers and corpora.

A package that is installed declares an entry point; code calls `register`, whose child processes inherit it. Nothing is
imported before it is asked for by its name, so a model's file can ask for nothing but what was installed or registered.
"""

import functools
import importlib
import importlib.metadata
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rnnlm_core.errors import ResourceError, UsageError

Kind = Literal["cell", "tokenizer", "normalizer", "corpus"]
GROUPS: dict[Kind, str] = {
    "cell": "rnnlm.cells",
    "tokenizer": "rnnlm.tokenizers",
    "normalizer": "rnnlm.normalizers",
    "corpus": "rnnlm.corpora",
}
"""The entry point groups."""
VARIABLE = "RNNLM_EXTENSIONS"
"""What is registered without being installed: `kind:name=module:attribute`, separated by commas."""
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PLACE = re.compile(r"[\w.]+:[\w.]+")


@dataclass(frozen=True)
class Extension:
    """A name and where it is from: `place` is `module:attribute`, `package` the requirement that brings it, or ""."""

    kind: Kind
    name: str
    place: str
    package: str = ""

    @property
    def module(self) -> str:
        """Where it is written."""
        return self.place.partition(":")[0]

    def load(self) -> Any:
        """Import what is named; raises `ResourceError` if that cannot be had."""
        attributes = self.place.partition(":")[2].split(".")
        try:
            return functools.reduce(getattr, attributes, importlib.import_module(self.module))
        except (ImportError, AttributeError) as error:
            what, where = f"the {self.kind} {self.name} cannot be loaded", f"{self.place} ({error})"
            remedy = f"repair or uninstall {self.package}" if self.package else "put its folder on PYTHONPATH"
            raise ResourceError(what, where, remedy) from error


def extensions(kind: Kind, taken: Collection[str] = ()) -> dict[str, Extension]:
    """Return what there is of a kind, by name.

    Raises `UsageError` for a name that breaks the grammar, is one of those `taken`, or stands for two things.
    """
    found: dict[str, Extension] = {}
    for one in (*_installed(kind), *_registered(kind)):
        if not _NAME.fullmatch(one.name) or not _PLACE.fullmatch(one.place):
            rule = f"a {kind} needs a name of small letters, digits and hyphens, and a place module:attribute"
            raise UsageError(rule, f"{one.name}={one.place}", _remedy(one))
        other = found.get(one.name)
        if one.name in taken or (other is not None and other.place != one.place):
            who = f"{other.place}, {one.place}" if other else one.place
            raise UsageError(f"the name of the {kind} {one.name} is taken", who, _remedy(one))
        found[one.name] = other or one
    return found


def register(kind: Kind, name: str, place: str) -> None:
    """Make a cell, tokenizer, normaliser or corpus known to this process and to those that it starts.

    Args:
        kind: what it is.
        name: what configs and models call it: small letters, digits and hyphens.
        place: `module:attribute`; processes that train import it, so the module is installed, or in a folder of
            PYTHONPATH.

    Raises `UsageError` for what cannot be registered, `ResourceError` for what cannot be imported.
    """
    if place.startswith("__main__:"):
        raise UsageError("the processes that train cannot import a script", place, "put it into a module")
    there = extensions(kind).get(name)
    if there is not None and there.place == place:
        return
    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = ",".join(filter(None, [before, f"{kind}:{name}={place}"]))
    try:
        extensions(kind)[name].load()
    except (UsageError, ResourceError):
        os.environ[VARIABLE] = before
        raise


def _installed(kind: Kind) -> Iterator[Extension]:
    for entry in _entry_points().select(group=GROUPS[kind]):
        package = f"{entry.dist.name}=={entry.dist.version}" if entry.dist else ""
        yield Extension(kind, entry.name, entry.value, package)


@functools.cache
def _entry_points() -> Any:
    """Return those of all packages: looking for them takes as long as for one group."""
    return importlib.metadata.entry_points()


def _registered(kind: Kind) -> Iterator[Extension]:
    for text in filter(None, os.environ.get(VARIABLE, "").split(",")):
        head, _, place = text.partition("=")
        what, _, name = head.partition(":")
        if what not in GROUPS:
            rule = f"`{VARIABLE}` must be kind:name=module:attribute, the kinds {', '.join(GROUPS)}"
            raise UsageError(rule, text, "mend it")
        if what == kind:
            yield Extension(kind, name, place)


def _remedy(one: Extension) -> str:
    return f"uninstall {one.package}" if one.package else f"mend {VARIABLE}, or what was registered"
