"""What other packages bring, by name: cells, tokenizers, normalisers and corpora.

A package that is installed declares an entry point; code calls `register`, whose child processes inherit it. Nothing is
imported before it is asked for by its name, so a model's file can ask for nothing but what was installed or registered.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rnnlm_core.errors import ResourceError, UsageError, unknown_name

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
_FINDERS: dict[Kind, str] = {
    "cell": "rnnlm_core.step_layer:find_cell",
    "tokenizer": "rnnlm_core.levels:tokenizer",
    "normalizer": "rnnlm_core.normalize:normalizer",
    "corpus": "rnnlm_core.catalogue:find_corpus",
}
"""What knows the things of a kind; each of these modules imports this one."""
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""What all things with a name are called."""
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
        except Exception as error:  # whatever a module of somebody's raises
            what, where = (
                f"the {self.kind} {self.name} cannot be loaded",
                f"{self.place} ({type(error).__name__}: {error})",
            )
            remedy = f"repair or uninstall {self.package}" if self.package else "mend it"
            if (
                isinstance(error, ModuleNotFoundError)
                and not self.package
                and error.name == self.module.partition(".")[0]
            ):
                remedy = "put its folder on PYTHONPATH"
            raise ResourceError(what, where, remedy) from error

    def digest(self, *, now: bool = False) -> str:
        """Return the digest of the code: all files of the package, or of the module if that stands alone.

        As it was at the first look of this process, which goes on with what it has imported; or as it is `now`.
        """
        package = self.module.partition(".")[0]
        return _present_digest(package, self.package) if now else _digest(package, self.package)


def extensions(kind: Kind, taken: Collection[str] = ()) -> dict[str, Extension]:
    """Return what there is of a kind, by name.

    Raises `UsageError` for a name that breaks the grammar, is one of those `taken`, or stands for two things.
    """
    found: dict[str, Extension] = {}
    for one in (*_installed(kind), *_registered(kind)):
        if not NAME.fullmatch(one.name) or not _PLACE.fullmatch(one.place):
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
    if kind not in GROUPS:
        raise unknown_name("kind", kind, list(GROUPS))
    if place.startswith("__main__:"):
        raise UsageError("the processes that train cannot import a script", place, "put it into a module")
    before = os.environ.get(VARIABLE, "")
    there = extensions(kind).get(name)
    if there is None or there.place != place:
        os.environ[VARIABLE] = ",".join(filter(None, [before, f"{kind}:{name}={place}"]))
    try:
        find(kind, name)
    except BaseException:
        os.environ[VARIABLE] = before
        raise


def find(kind: Kind, name: str) -> Any:
    """Return what a name stands for, found to be of its kind; an unknown name lists the known ones."""
    module, _, function = _FINDERS[kind].partition(":")
    return getattr(importlib.import_module(module), function)(name)


def digests(named: Mapping[Kind, str], *, now: bool = False) -> dict[str, str]:
    """Return the digests of the code of what other packages bring, among the things that are named."""
    found = (extensions(kind).get(name) for kind, name in named.items())
    return {f"{one.kind} {one.name}": one.digest(now=now) for one in found if one}


@functools.cache
def _digest(package: str, version: str) -> str:
    return _present_digest(package, version)


def _present_digest(package: str, version: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ""  # what loads it says so
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = {path.relative_to(folder).as_posix(): path for folder in folders for path in folder.rglob("*")}
    if not folders and spec.origin:
        files = {Path(spec.origin).name: Path(spec.origin)}
    digest = hashlib.sha256(version.encode())
    for name, path in sorted(files.items()):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(b"\0" + name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


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
